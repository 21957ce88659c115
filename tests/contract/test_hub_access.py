"""Access to builds by tokens of the operator and by users of a JupyterHub, which a stand-in plays here."""

import asyncio
import base64
import hmac
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from tornado.web import create_signed_value

from rabbit2docker.cli.information import settings as list_settings
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.hub.health import JupyterHubCheck, RegistryCheck, registry_url
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.auth import make_authenticator
from rabbit2docker.settings import HubSettings, ImageSettings
from rabbit2docker_schemas.events import AnyEventData
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from tests.contract.test_binder_stream import BUILD, PATH, accepted, completed, lines
from tests.support.hub_api import Api, happened
from tests.support.hub_service import MemoryBuilds, Viewer, serving
from tests.support.ports import free_port

TOKENS = {"ci": "a-secret", "bot": "another-secret"}
USERS = {
    "ada-token": {"name": "ada", "kind": "user", "scopes": ["access:services!service=builds"]},
    "bob-token": {"name": "bob", "kind": "user", "scopes": ["access:services!service=other"]},
    "robot-token": {"name": "robot", "kind": "service", "scopes": ["access:services"]},
    "portal-token": {"name": "portal", "kind": "service", "admin": True, "scopes": ["access:services"]},
    "ci-token": {"name": "ci", "kind": "service", "admin": False, "scopes": ["access:services"]},
    "root-token": {"name": "root", "kind": "user", "admin": True, "scopes": ["access:services"]},
    "named-token": {"name": "named", "kind": "user", "admin": False, "scopes": ["access:services"]},
}
PEOPLE = {"ada": "ada-secret", "bob": "bob-secret", "root": "root-secret"}
GH = {"provider": "gh", "spec": "ada/thesis/HEAD"}
FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Origin": "https://evil.example.org"},
    {"Origin": "null"},
    {"Origin": "https://evil.example.org", "Sec_Fetch_Site": "cross-site"},
]
"""Headers that browsers send for pages of other sites."""


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [*BUILD, completed()]
    return builds


class TestTokens:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "token", "Token"])
    async def test_a_valid_token_requests_builds_under_its_name(
        self, builds: MemoryBuilds, scheme: str
    ) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            sent = await viewer.watch(PATH, Authorization=f"{scheme} another-secret")
        assert sent[-1].phase == "ready"
        assert builds.asked[0].requester == "bot"

    @pytest.mark.parametrize(
        "header",
        ["", "Bearer", "Bearer wrong", "Basic a-secret", "a-secret", "Bearer a-secret x", "Bearer a-secre"],
    )
    async def test_an_invalid_token_is_refused(self, builds: MemoryBuilds, header: str) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            [only] = await viewer.watch(PATH, Authorization=header)
        assert only.phase == "failed"
        assert only.data["status_code"] == 403
        assert "secre" not in only.message
        assert not builds.asked

    async def test_a_token_in_the_url_is_ignored(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            [only] = await viewer.watch(f"{PATH}&token=a-secret")
        assert only.data["status_code"] == 403

    async def test_resuming_a_stream_needs_the_token_again(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            sent = await viewer.watch(PATH, Authorization="Bearer a-secret")
            [only] = await viewer.watch(PATH, Last_Event_ID=str(sent[1].id))
        assert only.data["status_code"] == 403

    async def test_health_versions_metrics_and_providers_need_no_token(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            for path in ("health", "versions", "metrics", "api/repoproviders"):
                assert (await viewer.raw(path))[0] == 200
            assert (await viewer.raw(""))[0] == 403

    @pytest.mark.parametrize("tokens", [{}, {"ci": ""}, {"ci": "x", "bot": " "}])
    def test_tokens_auth_without_tokens_is_a_configuration_error(self, tokens: dict[str, str]) -> None:
        settings = HubSettings.model_validate({"auth": "tokens", "tokens": tokens})
        with pytest.raises(ConfigurationError, match="HUB__TOKENS"):
            make_authenticator(settings, "/")


class People:
    """Three users with tokens, and a build that Ada requested."""

    def __init__(self, address: str, store: Store) -> None:
        api = Api(address)
        self.ada, self.bob, self.root = (api.with_token(PEOPLE[name]) for name in ("ada", "bob", "root"))
        self.anonymous = api
        self.store = store
        self.request_id = "adas-own"
        self.build_id = build_id_of("default", self.request_id)

    async def build(self, *, ended: bool = False) -> None:
        """Record Ada's build."""
        end = [completed(attempt=1, lines=1)] if ended else []
        whole: list[AnyEventData] = [accepted(requester="ada"), lines(0, "a line of Ada's"), *end]
        await self.store.put(happened(self.request_id, *whole))

    async def waiting(self) -> None:
        """Record Ada's request as queued."""
        await self.store.record_request(
            BuildRequest(**GH, request_id=self.request_id, requester="ada"), at=datetime.now(UTC)
        )


@pytest.fixture
async def people(builds: MemoryBuilds, store: Store) -> AsyncIterator[People]:
    async with serving(builds, store, auth="tokens", tokens=PEOPLE, admins=["root"]) as viewer:
        yield People(viewer.address, store)


EVERYWHERE = [
    ("GET", "{id}"),
    ("GET", "{id}/log"),
    ("GET", "{id}/log?format=json"),
    ("GET", "{id}/events"),
    ("DELETE", "{id}"),
    ("POST", "{id}/rebuild"),
]


class TestVisibility:
    @pytest.mark.parametrize("state", ["waiting", "running", "ended"])
    @pytest.mark.parametrize("by", ["build_id", "request_id"])
    async def test_a_build_of_another_user_is_404(
        self, people: People, builds: MemoryBuilds, state: str, by: str
    ) -> None:
        await (people.waiting() if state == "waiting" else people.build(ended=state == "ended"))
        id_ = getattr(people, by)
        for method, path in EVERYWHERE:
            theirs = await people.bob.call(method, f"api/builds/{path.format(id=id_)}")
            unknown = await people.bob.call(method, f"api/builds/{path.format(id='unknown')}")
            assert (theirs.status, theirs.body) == (404, unknown.body)
        assert (await people.bob.get("api/builds")).json["builds"] == []
        assert (await people.bob.get("api/builds?requester=ada")).json["builds"] == []
        assert (await people.bob.get("api/builds?q=thesis")).json["builds"] == []
        assert not builds.cancelled
        assert not builds.asked

    @pytest.mark.parametrize("name", ["ada", "root"])
    async def test_a_requester_and_an_admin_see_a_build(
        self, people: People, builds: MemoryBuilds, name: str
    ) -> None:
        await people.build(ended=True)
        api: Api = getattr(people, name)
        for id_ in (people.build_id, people.request_id):
            assert (await api.get(f"api/builds/{id_}")).json["id"] == people.build_id
            assert (await api.get(f"api/builds/{id_}/log")).text == "a line of Ada's\n"
            assert (await api.follow(id_))[-1].event == "completed"
            assert (await api.post(f"api/builds/{id_}/rebuild")).json["requester"] == name
        assert people.build_id in [each["id"] for each in (await api.get("api/builds")).json["builds"]]

    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", ""), *EVERYWHERE])
    async def test_a_client_without_a_valid_token_is_refused_everywhere(
        self, people: People, builds: MemoryBuilds, method: str, path: str
    ) -> None:
        await people.build(ended=True)
        path = f"api/builds/{path.format(id=people.build_id)}".rstrip("/")
        for api in (people.anonymous, people.anonymous.with_token("wrong")):
            answer = await api.call(method, path)
            assert answer.status == 403
            assert "WWW-Authenticate" not in answer.headers
        assert not builds.asked

    async def test_a_user_who_shares_a_build_sees_it(self, people: People) -> None:
        await people.build()
        await people.store.record_share(people.request_id, "bob")
        assert (await people.bob.get(f"api/builds/{people.build_id}")).status == 200

    async def test_viewers_who_share_a_request_are_recorded_as_requesters(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        builds.plan = [*BUILD]
        viewer = Viewer(people.anonymous.address)
        async with (
            viewer.live(PATH, **people.ada.headers) as hers,
            viewer.live(PATH, **people.bob.headers) as his,
        ):
            await anext(hers)
            await anext(his)
        [asked] = builds.asked
        build = (await people.bob.get(f"api/builds/{asked.request_id}")).json
        assert (build["requester"], sorted(build["requesters"])) == ("ada", ["ada", "bob"])

    async def test_a_client_cannot_name_another_requester(self, people: People, builds: MemoryBuilds) -> None:
        for api in (people.ada, people.root):
            refused = await api.post("api/builds", {**GH, "requester": "bob"})
            assert (refused.status, "Only a service" in refused.message) == (403, True)
        own = (await people.ada.post("api/builds", {**GH, "requester": "ada"})).json
        assert own["requester"] == "ada"
        made = (await people.ada.post("api/builds?requester=bob", GH, X_Requester="bob")).json
        assert (made["requester"], made["requesters"]) == ("ada", ["ada"])
        await Viewer(people.anonymous.address).watch(f"{PATH}&requester=bob", **people.ada.headers)
        assert {request.requester for request in builds.asked} == {"ada"}

    async def test_without_authentication_every_client_sees_and_cancels_all_builds(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store) as viewer:
            people = People(viewer.address, store)
            await people.build()
            assert (await people.anonymous.get(f"api/builds/{people.build_id}")).status == 200
            assert (await people.anonymous.delete(f"api/builds/{people.build_id}")).status == 202


class TestCancel:
    async def test_the_only_requester_can_cancel_a_build(self, people: People, builds: MemoryBuilds) -> None:
        await people.build()
        assert (await people.ada.delete(f"api/builds/{people.build_id}")).status == 202
        assert builds.cancelled == [(people.build_id, "ada")]

    @pytest.mark.parametrize("name", ["ada", "bob"])
    async def test_a_requester_cannot_cancel_a_build_that_others_share(
        self, people: People, builds: MemoryBuilds, name: str
    ) -> None:
        await people.build()
        await people.store.record_share(people.request_id, "bob")
        answer = await getattr(people, name).delete(f"api/builds/{people.request_id}")
        assert answer.status == 409
        assert "administrator" in answer.message
        assert not builds.cancelled

    async def test_an_admin_can_cancel_a_build_that_others_share(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        await people.build()
        await people.store.record_share(people.request_id, "bob")
        assert (await people.root.delete(f"api/builds/{people.request_id}")).status == 202
        assert builds.cancelled == [(people.build_id, "root")]

    async def test_only_an_admins_withdrawal_cancels_a_build_that_the_request_has_joined(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        await people.waiting()
        for api in (people.ada, people.root):
            assert (await api.delete(f"api/builds/{people.request_id}")).status == 202
        assert builds.cancelled == [(people.request_id, "ada"), (people.request_id, "root")]
        assert builds.spared == [True, False]

    async def test_after_a_withdrawal_the_next_viewer_makes_a_new_request(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        builds.plan = []
        viewer = Viewer(people.anonymous.address, dict(people.ada.headers))
        async with viewer.live(PATH) as sent:
            await anext(sent)
            [asked] = builds.asked
            assert (await people.ada.delete(f"api/builds/{asked.request_id}")).status == 202
            async with viewer.live(PATH) as again:
                await anext(again)
        assert len({request.request_id for request in builds.asked}) == 2


class TestCrossSiteRequests:
    @pytest.mark.parametrize("auth", ["tokens", "none"])
    @pytest.mark.parametrize("headers", FOREIGN)
    async def test_pages_of_other_sites_cannot_change_anything(
        self, builds: MemoryBuilds, store: Store, auth: str, headers: dict[str, str]
    ) -> None:
        async with serving(builds, store, auth=auth, tokens=PEOPLE, admins=["root"]) as viewer:
            people = People(viewer.address, store)
            await people.build()
            answers = [
                await people.ada.post("api/builds", GH, **headers),
                await people.ada.delete(f"api/builds/{people.build_id}", **headers),
                await people.ada.post(f"api/builds/{people.build_id}/rebuild", **headers),
            ]
        assert [answer.status for answer in answers] == [403, 403, 403]
        assert "other sites" in answers[0].message
        assert not builds.asked
        assert not builds.cancelled

    async def test_own_pages_can_request_builds(self, people: People, builds: MemoryBuilds) -> None:
        own = people.ada.address.rstrip("/")
        for headers in (
            {"Origin": own},
            {"Origin": own, "Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "none"},
            {},
        ):
            assert (await people.ada.post("api/builds", GH, **headers)).status == 202
        assert len(builds.asked) == 5

    async def test_the_allowed_origin_can_request_builds_after_a_preflight(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        origin = "https://pages.example.org"
        from_there = {"Origin": origin, "Sec_Fetch_Site": "cross-site"}
        async with serving(builds, store, auth="tokens", tokens=PEOPLE, allow_origin=origin) as viewer:
            people = People(viewer.address, store)
            asked = await people.anonymous.call("OPTIONS", "api/builds", headers=from_there)
            given = await people.ada.post("api/builds", GH, **from_there)
        assert asked.status == 204
        assert asked.headers["Access-Control-Allow-Origin"] == origin
        assert "authorization" in asked.headers["Access-Control-Allow-Headers"]
        assert given.status == 202

    async def test_without_an_allowed_origin_there_are_no_cors_headers(self, people: People) -> None:
        asked = await people.anonymous.call(
            "OPTIONS", "api/builds", headers={"Origin": "https://x.example.org"}
        )
        given = await people.ada.get("api/builds", Origin="https://x.example.org")
        for answer in (asked, given):
            assert not [name for name in answer.headers if name.startswith("Access-Control")]

    @pytest.mark.parametrize(
        "kind",
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
            "text/json",
        ],
    )
    async def test_only_a_json_body_is_accepted(
        self, people: People, builds: MemoryBuilds, kind: str
    ) -> None:
        await people.build()
        body, headers = json.dumps(GH).encode(), {"Content-Type": kind} if kind else {}
        for method, path, content in (
            ("POST", "api/builds", body),
            ("POST", f"api/builds/{people.build_id}/rebuild", b"{}"),
            ("DELETE", f"api/builds/{people.build_id}", b"{}"),
        ):
            answer = await people.ada.call(method, path, content, headers=headers)
            assert answer.status == (400 if "multipart" in kind else 415)
        if kind and "multipart" not in kind:
            answer = await people.ada.call("POST", f"api/builds/{people.build_id}/rebuild", headers=headers)
            assert answer.status == 415
        assert not builds.asked
        assert not builds.cancelled

    async def test_the_json_content_type_may_name_a_charset(self, people: People) -> None:
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        answer = await people.ada.call("POST", "api/builds", json.dumps(GH).encode(), headers=headers)
        assert answer.status == 202


class TestHostileRequests:
    async def test_a_body_that_is_too_long_is_refused(self, people: People, builds: MemoryBuilds) -> None:
        request = {**GH, "appendix": "x" * 70_000}
        assert (await people.ada.post("api/builds", request)).status == 413
        at_most = {**GH, "build_args": {f"A{number}": "x" * 1000 for number in range(50)}}
        assert (await people.ada.post("api/builds", at_most)).status == 202
        assert len(builds.asked) == 1

    @pytest.mark.parametrize(
        "request_",
        [
            b"POST /api/builds HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 100_000,
            b"POST /api/builds HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"10000\r\n"
            + b"x" * 0x10000
            + b"\r\n10000\r\n"
            + b"x" * 0x10000
            + b"\r\n10000\r\n",
            b"GET /api/builds HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
            b"GET /api/builds HTTP/1.1\r\nHost: x\r\n" + b"X-Many: y\r\n" * 5_000 + b"\r\n",
            b"GET /api/builds/" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /api/builds?q=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /build/gh/" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01" + b"\x00" * 1000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        ],
    )
    async def test_an_oversized_or_malformed_request_does_not_affect_other_clients(
        self, people: People, builds: MemoryBuilds, request_: bytes
    ) -> None:
        status = await spoken(people.anonymous.address, request_)
        assert status in (None, 400, 413, 414, 431)
        assert (await people.ada.get("api/builds")).status == 200
        assert not builds.asked

    @pytest.mark.parametrize(
        "path",
        [
            "/api/builds/../../health",
            "/api/builds/%2e%2e/%2e%2e/health",
            "/api/builds/..%2f..%2fetc%2fpasswd/log",
            "/api/builds/%00/log",
            "/api/builds/%ff/log",
            "/api/builds//log",
            "/api/builds/x/log/../../..",
            "/static/../server.py",
            "/static/..%2fserver.py",
            "/static/%2e%2e/server.py",
            "//evil.example.org/api/builds/x",
        ],
    )
    async def test_path_traversal_reaches_nothing(self, people: People, path: str) -> None:
        bearer = people.root.headers["Authorization"].encode()
        request_ = (
            b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + bearer
        )
        assert await spoken(people.anonymous.address, request_ + b"\r\n\r\n") in (400, 404)


async def spoken(address: str, raw: bytes) -> int | None:
    """Send bytes, and return the status of the answer; None when there is none."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(raw)
        line = await reader.readline()
        return int(line.split()[1]) if line else None
    except ConnectionError:
        return None
    finally:
        writer.close()


class TestSecrets:
    async def test_a_token_in_a_url_is_ignored_and_appears_in_no_log(
        self, people: People, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(0)
        await people.build()
        for path in ("api/builds", f"api/builds/{people.build_id}/events", "api/nothing", "api/builds/%ff"):
            for name in ("token", "access_token"):
                answer = await people.anonymous.get(f"{path}?{name}={PEOPLE['ada']}")
                assert answer.status in (400, 403, 404)
                assert PEOPLE["ada"] not in answer.text
        shown = caplog.text + "".join(capsys.readouterr())
        assert PEOPLE["ada"] not in shown

    async def test_a_password_in_a_repository_url_is_not_stored(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        spec = "https%3A%2F%2Fme%3Ahidden%40git.example.org%2Fr/HEAD"
        viewer = Viewer(people.anonymous.address, dict(people.ada.headers))
        [only] = await viewer.watch(f"build/git/{spec}?build_only=true")
        assert (only.phase, only.data["status_code"]) == ("failed", 400)
        assert "password" in only.message
        assert "hidden" not in only.message
        assert (await people.ada.get("api/builds")).json["builds"] == []
        assert not builds.asked

    async def test_an_internal_error_is_logged_without_the_clients_data(
        self, builds: MemoryBuilds, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(0)
        builds.problem = RuntimeError("a defect")
        async with serving(builds, auth="tokens", tokens=PEOPLE) as viewer:
            api = Api(viewer.address).with_token(PEOPLE["ada"])
            answer = await api.post(f"api/builds?token={PEOPLE['bob']}", GH)
        assert answer.status == 500
        assert "defect" not in answer.text
        shown = caplog.text + "".join(capsys.readouterr())
        assert "a defect" in shown
        assert "-secret" not in shown

    async def test_no_url_in_a_response_contains_a_token(self, people: People) -> None:
        answer = await people.ada.post(f"api/builds?token={PEOPLE['ada']}", GH)
        assert answer.headers["Location"] == f"/api/builds/{answer.json['id']}"
        assert PEOPLE["ada"] not in answer.text
        assert answer.headers["Cache-Control"] == "no-store"


def basic(name: str, token: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{token}'.encode()).decode()}"


class TestBasicAuth:
    """Browsers send a name and a token as HTTP Basic."""

    @pytest.fixture
    async def viewer(self, people: People) -> Viewer:
        return Viewer(people.anonymous.address)

    async def test_a_page_without_credentials_is_a_basic_challenge(self, viewer: Viewer) -> None:
        status, headers, _ = await viewer.raw("", Accept="text/html")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic ")

    async def test_a_page_is_shown_for_valid_credentials(self, viewer: Viewer) -> None:
        given = basic("ada", PEOPLE["ada"])
        assert (await viewer.raw("", Accept="text/html", Authorization=given))[0] == 200

    @pytest.mark.parametrize(
        "header",
        [
            basic("ada", "bob-secret"),
            basic("bob", "ada-secret"),
            basic("", "ada-secret"),
            basic("ada", ""),
            basic("unknown", "x"),
            "Basic ada:ada-secret",
            "Basic =",
            "Basic //8=",
            "Basic",
        ],
    )
    async def test_wrong_basic_credentials_are_refused(
        self, viewer: Viewer, people: People, builds: MemoryBuilds, header: str
    ) -> None:
        assert (await viewer.raw("", Accept="text/html", Authorization=header))[0] == 401
        answer = await people.anonymous.post("api/builds", GH, Authorization=header)
        assert answer.status == 403
        assert "WWW-Authenticate" not in answer.headers
        assert not builds.asked

    async def test_own_pages_can_request_builds_with_basic_credentials(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        given = {"Authorization": basic("ada", PEOPLE["ada"])}
        assert (
            await people.anonymous.post("api/builds", GH, Sec_Fetch_Site="same-origin", **given)
        ).status == 202
        assert builds.asked[0].requester == "ada"

    @pytest.mark.parametrize("headers", FOREIGN)
    async def test_pages_of_other_sites_cannot_use_basic_credentials(
        self, people: People, builds: MemoryBuilds, headers: dict[str, str]
    ) -> None:
        given = {"Authorization": basic("ada", PEOPLE["ada"]), **headers}
        assert (await people.anonymous.post("api/builds", GH, **given)).status == 403
        [only] = await Viewer(people.anonymous.address).watch(PATH, **given)
        assert only.data["status_code"] == 403
        assert not builds.asked

    async def test_the_build_route_accepts_basic_credentials_from_own_pages_only(
        self, people: People, builds: MemoryBuilds
    ) -> None:
        viewer, given = Viewer(people.anonymous.address), basic("ada", PEOPLE["ada"])
        [only] = await viewer.watch(PATH, Authorization=given)
        assert "Bearer" in only.message
        assert not builds.asked
        sent = await viewer.watch(PATH, Authorization=given, Sec_Fetch_Site="same-origin")
        assert sent[-1].phase == "ready"


@asynccontextmanager
async def a_jupyterhub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, int]]:
    """Play the part of a JupyterHub's API; counts how often it is asked about each token."""
    asked: dict[str, int] = {}

    async def user(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].split()[1]
        asked[token] = asked.get(token, 0) + 1
        if token == "trouble":
            return web.Response(status=503)
        if token not in USERS:
            return web.json_response({"status": 403}, status=403)
        return web.json_response(USERS[token])

    app = web.Application()

    async def root(request: web.Request) -> web.Response:
        asked["root"] = asked.get("root", 0) + 1
        return web.json_response({"version": "6"})

    app.router.add_get("/hub/api/user", user)
    app.router.add_get("/hub/api", root)
    runner = web.AppRunner(app)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
    monkeypatch.setenv("JUPYTERHUB_API_URL", f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "our-own")
    monkeypatch.setenv("JUPYTERHUB_SERVICE_NAME", "builds")
    monkeypatch.setenv("JUPYTERHUB_CLIENT_ID", "service-builds")
    monkeypatch.delenv("JUPYTERHUB_OAUTH_ACCESS_SCOPES", raising=False)
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    try:
        yield asked
    finally:
        await site.stop()
        await runner.cleanup()


class TestJupyterHub:
    @pytest.fixture
    async def hub(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, int]]:
        async with a_jupyterhub(monkeypatch) as asked:
            yield asked

    @pytest.fixture
    async def viewer(self, hub: dict[str, int], builds: MemoryBuilds) -> AsyncIterator[Viewer]:
        async with serving(builds, auth="jupyterhub", base_url="/services/builds/") as viewer:
            yield viewer

    @pytest.mark.parametrize(("token", "name"), [("ada-token", "ada"), ("robot-token", "robot")])
    async def test_users_and_services_with_the_access_scope_request_builds_under_their_name(
        self, viewer: Viewer, builds: MemoryBuilds, hub: dict[str, int], token: str, name: str
    ) -> None:
        for _ in range(2):
            assert (await viewer.watch(PATH, Authorization=f"Bearer {token}"))[-1].phase == "ready"
        assert {request.requester for request in builds.asked} == {name}
        assert hub[token] == 1

    @pytest.mark.parametrize(
        ("token", "may"),
        [("portal", True), ("ci", True), ("robot", False), ("root", False), ("named", False)],
    )
    async def test_services_that_are_admins_or_listed_may_name_a_requester_and_see_its_build(
        self, hub: dict[str, int], builds: MemoryBuilds, store: Store, token: str, may: bool
    ) -> None:
        hub_settings: dict[str, Any]
        base, request = "/services/builds/", {**GH, "requester": "ada"}
        hub_settings = {"auth": "jupyterhub", "services": ["ci", "named"], "admins": ["named"]}
        async with serving(builds, store, base_url=base, **hub_settings) as viewer:
            api = Api(viewer.address).with_token(f"{token}-token")
            made = await api.post("api/builds", request)
            if not may:
                assert (made.status, builds.asked) == (403, [])
                assert "HUB__SERVICES" in made.message
                return
            assert (made.status, made.json["requesters"]) == (202, ["ada"])
            path = f"api/builds/{made.json['id']}"
            for each in (api, Api(viewer.address).with_token("ada-token")):
                assert (await each.get(path)).status == 200
            assert len((await api.get("api/builds?requester=ada")).json["builds"]) == 1

    @pytest.mark.parametrize(("token", "requester"), [("portal", "bob"), ("ada", "ada")])
    async def test_the_build_route_takes_a_requester_from_services_only(
        self, viewer: Viewer, builds: MemoryBuilds, token: str, requester: str
    ) -> None:
        sent = await viewer.watch(f"{PATH}&requester=bob", Authorization=f"Bearer {token}-token")
        assert sent[-1].phase == "ready"
        assert [request.requester for request in builds.asked] == [requester]

    async def test_a_service_that_may_not_name_a_requester_is_refused_in_the_stream(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(f"{PATH}&requester=bob", Authorization="Bearer robot-token")
        assert (only.phase, only.data["status_code"]) == ("failed", 403)
        assert "Only a service that acts for people" in only.message
        assert not builds.asked

    async def test_access_to_another_service_is_not_sufficient(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(PATH, Authorization="Bearer bob-token")
        assert only.data == {
            "phase": "failed",
            "status_code": 403,
            "message": "bob is not allowed to use this service.\n",
        }
        assert not builds.asked

    @pytest.mark.parametrize("header", ["", "Bearer unknown", "token our-own-but-wrong"])
    async def test_an_unknown_jupyterhub_token_is_refused(
        self, viewer: Viewer, builds: MemoryBuilds, header: str
    ) -> None:
        [only] = await viewer.watch(PATH, Authorization=header)
        assert (only.phase, only.data["status_code"]) == ("failed", 403)
        assert not builds.asked

    async def test_an_unavailable_jupyterhub_is_a_server_error_not_a_refusal(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(PATH, Authorization="Bearer trouble")
        assert only.data["status_code"] >= 500
        assert "try again" in only.message
        assert not builds.asked

    async def test_a_browser_without_a_login_is_redirected_to_jupyterhub(self, viewer: Viewer) -> None:
        status, headers, _ = await viewer.raw_once("", Accept="text/html")
        assert status == 302
        assert re.search(r"/hub/api/oauth2/authorize\?client_id=service-builds&", headers["Location"])
        assert "oauth-state" in headers["Set-Cookie"]

    async def test_a_forged_cookie_is_refused(self, viewer: Viewer) -> None:
        [only] = await viewer.watch(PATH, Cookie="service-builds=ada-token")
        assert only.data["status_code"] == 403

    @pytest.mark.parametrize("name", ["ada", "root", "named"])
    async def test_admins_of_jupyterhub_and_of_the_settings_see_all_builds(
        self, hub: dict[str, int], builds: MemoryBuilds, store: Store, name: str
    ) -> None:
        base = "/services/builds/"
        async with serving(builds, store, auth="jupyterhub", base_url=base, admins=["named"]) as viewer:
            people = People(viewer.address, store)
            await store.put(happened(people.request_id, accepted(requester="another")))
            api = people.anonymous.with_token(f"{name}-token")
            answer = await api.get(f"api/builds/{people.build_id}")
            shown = len((await api.get("api/builds")).json["builds"])
        assert (answer.status, shown) == ((404, 0) if name == "ada" else (200, 1))

    async def test_a_token_in_the_url_is_ignored_even_for_a_websocket(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(f"{PATH}&token=ada-token", Sec_Fetch_Mode="websocket")
        assert only.data["status_code"] == 403
        answer = await Api(viewer.address).get("api/builds?token=ada-token", Sec_Fetch_Mode="websocket")
        assert answer.status == 403

    async def test_a_cookie_requests_builds_only_with_the_xsrf_token(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        login = a_login("ada-token")
        api = Api(viewer.address)
        refused = await api.post("api/builds", GH, Cookie=login)
        assert (refused.status, "X-Xsrftoken" in refused.message) == (403, True)
        forged = await api.post("api/builds", GH, Cookie=f"{login}; _xsrf=x", X_Xsrftoken="x")
        assert forged.status == 403
        assert not builds.asked
        _, headers, _ = await viewer.raw("", Accept="text/html", Cookie=login)
        proof = SimpleCookie(headers["Set-Cookie"])["_xsrf"].value
        both = {"Cookie": f"{login}; _xsrf={proof}", "X_Xsrftoken": proof}
        assert (await api.post("api/builds", GH, **both)).status == 202
        assert builds.asked[0].requester == "ada"
        for headers in FOREIGN:
            assert (await api.post("api/builds", GH, **both, **headers)).status == 403

    async def test_a_cookie_requests_no_build_for_a_page_of_another_site(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(
            PATH, Cookie=a_login("ada-token"), Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"
        )
        assert only.data["status_code"] == 403
        assert not builds.asked

    async def test_an_oauth_callback_without_a_login_is_refused(self, viewer: Viewer) -> None:
        status, _, _ = await viewer.raw("oauth_callback?code=1&state=2")
        assert status in (400, 403)


def a_login(token: str) -> str:
    """Return the cookie of a user who has logged in."""
    secret = hmac.digest(b"our-own", b"rabbit2docker hub cookies", "sha256")
    return f"service-builds={create_signed_value(secret, 'service-builds', token).decode()}"


class TestHealth:
    async def test_the_jupyterhub_check_is_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with a_jupyterhub(monkeypatch) as asked:
            api = JupyterHubCheck(os.environ["JUPYTERHUB_API_URL"])
            checks = await asyncio.gather(*(api.check() for _ in range(20)))
        assert all(check.ok for check in checks)
        assert asked["root"] == 1

    async def test_an_unavailable_jupyterhub_fails_the_check(self) -> None:
        check = await JupyterHubCheck(f"http://127.0.0.1:{free_port()}/hub/api").check()
        assert not check.ok
        assert "does not answer" in check.detail


@asynccontextmanager
async def a_registry(*statuses: int) -> AsyncIterator[tuple[ImageSettings, list[str]]]:
    """Play a registry that answers with these statuses, the last one from then on."""
    asked: list[str] = []

    async def api(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=statuses[min(len(asked), len(statuses)) - 1])

    app = web.Application()
    app.router.add_get("/v2/", api)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield ImageSettings(prefix=f"127.0.0.1:{runner.addresses[0][1]}/hub/r2d-"), asked
    finally:
        await runner.cleanup()


class TestRegistryHealth:
    @pytest.mark.parametrize("statuses", [(200,), (401,), (502, 503, 200)])
    async def test_a_registry_that_answers_is_asked_once_in_a_while(self, statuses: tuple[int, ...]) -> None:
        async with a_registry(*statuses) as (images, asked):
            registry = RegistryCheck(images)
            checks = await asyncio.gather(*(registry.check() for _ in range(20)))
        assert {(check.service, check.ok, check.detail) for check in checks} == {
            ("Docker registry", True, "")
        }
        assert asked == ["/v2/"] * len(statuses)

    async def test_a_registry_that_fails_or_is_away_fails_the_check(self) -> None:
        async with a_registry(502) as (images, _):
            check = await RegistryCheck(images).check()
        assert (check.ok, check.detail) == (False, "answers 502; builds cannot push their images")
        check = await RegistryCheck(images).check()
        assert not check.ok
        assert check.detail.startswith("does not answer (")

    @pytest.mark.parametrize(
        ("images", "url"),
        [
            ({"prefix": "registry.example.org/hub/r2d-"}, "https://registry.example.org"),
            ({"prefix": "127.0.0.1:5000/r2d-"}, "http://127.0.0.1:5000"),
            ({"prefix": "localhost/r2d-"}, "http://localhost"),
            ({"prefix": "[::1]:5000/r2d-"}, "http://[::1]:5000"),
            ({"prefix": "my-organisation/r2d-"}, "https://registry-1.docker.io"),
            ({"prefix": "docker.io/my-organisation/r2d-"}, "https://registry-1.docker.io"),
            ({"prefix": "x/y-", "registry_url": "https://r.example.org/"}, "https://r.example.org"),
        ],
    )
    def test_the_registrys_address_follows_from_the_settings(self, images: dict[str, str], url: str) -> None:
        assert registry_url(ImageSettings.model_validate(images)) == url


class TestSettings:
    def test_the_list_of_settings_does_not_show_tokens(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RABBIT2DOCKER_HUB__TOKENS", '{"ci": "a-secret"}')
        list_settings(as_json=True)
        shown = capsys.readouterr().out
        assert "HUB__TOKENS" in shown
        assert "a-secret" not in shown

    def test_a_missing_jupyterhub_api_token_is_a_configuration_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
        with pytest.raises(ConfigurationError, match="JUPYTERHUB_API_TOKEN"):
            make_authenticator(HubSettings(), "/")

    def test_a_missing_jupyterhub_service_name_is_a_configuration_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "x")
        for name in ("JUPYTERHUB_SERVICE_NAME", "JUPYTERHUB_OAUTH_ACCESS_SCOPES", "JUPYTERHUB_OAUTH_SCOPES"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigurationError, match="JUPYTERHUB_SERVICE_NAME"):
            make_authenticator(HubSettings(), "/")
