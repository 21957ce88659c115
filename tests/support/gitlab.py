"""The part of GitLab's REST API that ref resolution needs, on loopback, after its documentation."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.github import FOO_MAIN, MAIN, PULL, SAME_BRANCH, SAME_TAG, TAG, TAGGED

PROJECT = "group/sub-group/project"


class FakeGitLab:
    """A server with one project in a subgroup."""

    def __init__(self) -> None:
        self.branches = {"main": MAIN, "feature/x": FOO_MAIN, "same": SAME_BRANCH, "beef": PULL}
        self.tags = {"v1": (TAG, TAGGED), "same": (SAME_TAG, SAME_TAG)}
        self.merge_requests = {"7": PULL}
        self.head: str | None = MAIN
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.old_names: set[str] = set()
        self.private_to: set[str] = set()
        """The tokens that may read the project; it is public if there are none."""
        self.always: Callable[[], web.Response] | None = None
        app = web.Application()
        app.router.add_get("/api/v4/projects/{rest:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.Response:
        project, _, rest = request.raw_path.removeprefix("/api/v4/projects/").partition("/")
        self.requests.append(rest)
        self.tokens.add(request.headers.get("PRIVATE-TOKEN"))
        if self.always:
            return self.always()
        if request.headers.get("PRIVATE-TOKEN", "").startswith("expired"):
            return web.json_response({"message": "401 Unauthorized"}, status=401)
        if self.private_to and request.headers.get("PRIVATE-TOKEN") not in self.private_to:
            return web.json_response({"message": "404 Project Not Found"}, status=404)
        if unquote(project) in self.old_names:
            return web.Response(status=301, headers={"Location": f"/api/v4/projects/42/{rest}".rstrip("/")})
        if unquote(project) not in (PROJECT, "42"):
            return web.json_response({"message": "404 Project Not Found"}, status=404)
        found = self._about(rest)
        return (
            web.json_response(found)
            if found
            else web.json_response({"message": "404 Commit Not Found"}, status=404)
        )

    def _about(self, rest: str) -> dict[str, Any] | None:
        if not rest:
            visibility = "private" if self.private_to else "public"
            return {
                "id": 42,
                "path_with_namespace": PROJECT,
                "empty_repo": self.head is None,
                "visibility": visibility,
            }
        kind, _, name = rest.removeprefix("repository/").partition("/")
        name = unquote(name)
        match kind:
            case "branches" if name in self.branches:
                return {"name": name, "commit": {"id": self.branches[name]}}
            case "tags" if name in self.tags:
                target, commit = self.tags[name]
                return {"name": name, "target": target, "commit": {"id": commit}}
            case "merge_requests" if name in self.merge_requests:
                return {"iid": int(name), "sha": self.merge_requests[name]}
            case "commits" if found := self._commit(name):
                return {"id": found}
        return None

    def _commit(self, name: str) -> str | None:
        """Return what GitLab finds for any revision: also a branch or the beginning of an id."""
        if name == "HEAD":
            return self.head
        commits = sorted({*self.branches.values(), TAGGED, PULL})
        return self.branches.get(name) or next(
            (commit for commit in commits if commit.startswith(name)), None
        )
