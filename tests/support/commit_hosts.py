"""The commit status APIs of GitHub and GitLab on loopback, after their documentation."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

GITHUB_STATES = ("error", "failure", "pending", "success")
GITLAB_STATES = ("pending", "running", "success", "failed", "canceled", "skipped")


class CommitHosts:
    """Both on one server: GitHub's API is at /, GitLab's at /api/v4."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.written: list[dict[str, Any]] = []
        """The statuses that were accepted, with the raw path of each."""
        self.calls = 0
        self.before: list[Callable[[web.Request], web.StreamResponse]] = []
        """Answers to the next calls, in place of the documented ones."""
        app = web.Application()
        app.router.add_post("/repos/{owner}/{repo}/statuses/{sha}", self._github)
        app.router.add_post("/repositories/{id}/statuses/{sha}", self._github)
        app.router.add_post("/api/v4/projects/{id}/statuses/{sha}", self._gitlab)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _github(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self.before:
            return self.before.pop(0)(request)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"message": "Bad credentials", "status": "401"}, status=401)
        status = await request.json()
        problem = {"message": "Validation Failed", "documentation_url": "https://docs.github.com/rest"}
        if status["state"] not in GITHUB_STATES or len(status.get("description", "")) > 140:
            return web.json_response(problem, status=422)
        self.written.append({**status, "path": request.raw_path})
        return web.json_response({"id": len(self.written), **status}, status=201)

    async def _gitlab(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self.before:
            return self.before.pop(0)(request)
        if request.headers.get("PRIVATE-TOKEN") != self.token:
            return web.json_response({"message": "401 Unauthorized"}, status=401)
        status = await request.json()
        if status["state"] not in GITLAB_STATES or len(status.get("description", "")) > 255:
            return web.json_response({"error": "state does not have a valid value"}, status=400)
        self.written.append({**status, "path": request.raw_path})
        return web.json_response({"id": len(self.written), **status, "status": status["state"]}, status=201)


@asynccontextmanager
async def commit_hosts(token: str) -> AsyncIterator[CommitHosts]:
    hosts = CommitHosts(token)
    async with hosts.server:
        yield hosts


def limited(request: web.Request) -> web.Response:
    """GitHub's primary rate limit, which has just ended."""
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}
    return web.json_response({"message": "API rate limit exceeded"}, status=403, headers=headers)


def broken(request: web.Request) -> web.Response:
    """A host that is down for maintenance."""
    return web.Response(status=502, text="<html>Unicorn</html>")


def hung_up(request: web.Request) -> web.Response:
    """A connection that is lost before the answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def known(request: web.Request) -> web.Response:
    """GitLab's answer to a state that the commit has already."""
    message = 'Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition via "enqueue")'
    return web.json_response({"message": message}, status=400)
