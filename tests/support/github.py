"""The part of GitHub's REST API that ref resolution needs, on loopback, after its documentation."""

import hashlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.test_utils import TestServer


def sha(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


MAIN, FOO_MAIN, TAGGED, TAG, OUTER_TAG, PULL, SAME_BRANCH, SAME_TAG, TREE = map(sha, range(1, 10))


GIST = "8a658f7f63b13768d1e75fa2464f5092"


class FakeGitHub:
    """A server with one repository, `o/r`."""

    def __init__(self) -> None:
        self.refs = {
            "refs/heads/main": ("commit", MAIN),
            "refs/heads/foo/main": ("commit", FOO_MAIN),
            "refs/heads/main-2": ("commit", FOO_MAIN),
            "refs/heads/same": ("commit", SAME_BRANCH),
            "refs/tags/same": ("commit", SAME_TAG),
            "refs/tags/v1": ("tag", TAG),
            "refs/tags/v1.0": ("commit", MAIN),
            "refs/tags/signed-twice": ("tag", OUTER_TAG),
            "refs/tags/tree": ("tree", TREE),
            "refs/pull/7/head": ("commit", PULL),
        }
        self.tags = {TAG: ("commit", TAGGED), OUTER_TAG: ("tag", TAG)}
        self.commits = {MAIN, FOO_MAIN, TAGGED, PULL}
        self.head: str | None = MAIN
        self.old_names: set[str] = set()
        self.private_to: set[str] = set()
        """The tokens that may read the repository; it is public if there are none."""
        self.gist: dict[str, Any] = {
            "id": GIST,
            "public": True,
            "owner": {"login": "ada"},
            "history": [{"version": MAIN}, {"version": TAGGED}],
        }
        self.older_versions = {PULL}
        self.requests: list[str] = []
        self.not_modified = 0
        self.authorization: set[str | None] = set()
        self.always: Callable[[], web.Response] | None = None
        app = web.Application()
        app.router.add_get("/repos/{path:.+}", self._answer)
        app.router.add_get("/repositories/{id}{path:.*}", self._answer_by_id)
        app.router.add_get("/gists/{path:.+}", self._answer_gist)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.Response:
        path = unquote(request.raw_path).removeprefix("/repos/")
        self.requests.append(path)
        self.authorization.add(request.headers.get("Authorization"))
        if self.always:
            return self.always()
        owner, _, rest = path.partition("/")
        if owner in self.old_names:
            # GitHub redirects to the id, which stays the same.
            where = f"/repositories/1{rest.removeprefix('r')}"
            return web.json_response(
                {"message": "Moved Permanently", "url": where}, status=301, headers={"Location": where}
            )
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if given.startswith("expired"):
            return web.json_response({"message": "Bad credentials"}, status=401)
        if not path.startswith("o/r") or (self.private_to and given not in self.private_to):
            return web.json_response({"message": "Not Found"}, status=404)
        return self._answer_about(request, path)

    async def _answer_by_id(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        return self._answer_about(request, f"o/r{request.match_info['path']}")

    async def _answer_gist(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.always:
            return self.always()
        gist_id, _, version = request.match_info["path"].partition("/")
        versions = {MAIN, TAGGED} | self.older_versions
        if gist_id != self.gist["id"] or (version and version not in versions):
            return web.json_response({"message": "Not Found"}, status=404)
        return web.json_response(self.gist)

    def _answer_about(self, request: web.Request, path: str) -> web.Response:
        response = self._about(path.removeprefix("o/r").strip("/"))
        if response.status == 200:
            etag = f'"{hash(response.text)}"'
            if request.headers.get("If-None-Match") == etag:
                self.not_modified += 1
                return web.Response(status=304)
            response.headers["ETag"] = etag
        return response

    def _about(self, path: str) -> web.Response:
        kind, _, name = path.partition("/")
        if kind == "":
            return web.json_response({"full_name": "o/r", "private": bool(self.private_to)})
        if kind == "commits":
            found = self.head if name == "HEAD" else self._short(name)
            return web.Response(text=found) if found else self._missing(422)
        what, _, value = name.partition("/")
        if what == "matching-refs":
            return web.json_response(
                [self._ref(ref) for ref in sorted(self.refs) if ref.startswith(f"refs/{value}")]
            )
        if what == "commits":
            return web.json_response({"sha": value}) if value in self.commits else self._missing(404)
        kind_of, target = self.tags[value]
        return web.json_response({"sha": value, "object": {"type": kind_of, "sha": target}})

    def _short(self, name: str) -> str | None:
        return next((commit for commit in sorted(self.commits) if commit.startswith(name)), None)

    def _ref(self, ref: str) -> dict[str, Any]:
        kind, value = self.refs[ref]
        return {"ref": ref, "object": {"type": kind, "sha": value}}

    def _missing(self, status: int) -> web.Response:
        return web.json_response({"message": "No commit found"}, status=status)
