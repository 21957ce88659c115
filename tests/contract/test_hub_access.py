"""Who may ask for builds: tokens of the operator, and users of a JupyterHub, which a stand-in plays here."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from rabbit2docker.cli.information import settings as list_settings
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import HubSettings
from rabbit2docker_hub.web.guards import make_guard
from rabbit2docker_hub.web.server import HubApi
from tests.contract.test_binder_stream import BUILD, PATH, completed
from tests.support.hub_service import MemoryBuilds, Viewer, serving
from tests.support.rabbitmq import free_port

TOKENS = {"ci": "a-secret", "bot": "another-secret"}
USERS = {
    "ada-token": {"name": "ada", "kind": "user", "scopes": ["access:services!service=builds"]},
    "bob-token": {"name": "bob", "kind": "user", "scopes": ["access:services!service=other"]},
    "robot-token": {"name": "robot", "kind": "service", "scopes": ["access:services"]},
}


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [*BUILD, completed()]
    return builds


class TestTokens:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "token", "Token"])
    async def test_a_known_token_may_ask_under_its_name(self, builds: MemoryBuilds, scheme: str) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            sent = await viewer.watch(PATH, Authorization=f"{scheme} another-secret")
        assert sent[-1].phase == "ready"
        assert builds.asked[0].requester == "bot"

    @pytest.mark.parametrize(
        "header",
        ["", "Bearer", "Bearer wrong", "Basic a-secret", "a-secret", "Bearer a-secret x", "Bearer a-secre"],
    )
    async def test_no_other_may(self, builds: MemoryBuilds, header: str) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            [only] = await viewer.watch(PATH, Authorization=header)
        assert only.phase == "failed"
        assert only.data["status_code"] == 403
        assert "secre" not in only.message
        assert not builds.asked

    async def test_a_token_in_the_address_is_none(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            [only] = await viewer.watch(f"{PATH}&token=a-secret")
        assert only.data["status_code"] == 403

    async def test_who_comes_back_needs_it_again(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            sent = await viewer.watch(PATH, Authorization="Bearer a-secret")
            [only] = await viewer.watch(PATH, Last_Event_ID=str(sent[1].id))
        assert only.data["status_code"] == 403

    async def test_what_operators_look_at_is_open(self, builds: MemoryBuilds) -> None:
        async with serving(builds, auth="tokens", tokens=TOKENS) as viewer:
            for path in ("health", "versions", "metrics", "api/repoproviders"):
                assert (await viewer.raw(path))[0] == 200
            assert (await viewer.raw(""))[0] == 403

    @pytest.mark.parametrize("tokens", [{}, {"ci": ""}, {"ci": "x", "bot": " "}])
    def test_tokens_have_to_be_there(self, tokens: dict[str, str]) -> None:
        settings = HubSettings.model_validate({"auth": "tokens", "tokens": tokens})
        with pytest.raises(ConfigurationError, match="HUB__TOKENS"):
            make_guard(settings, "/")


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
    async def test_users_and_services_with_access_may_ask_under_their_name(
        self, viewer: Viewer, builds: MemoryBuilds, hub: dict[str, int], token: str, name: str
    ) -> None:
        for _ in range(2):
            assert (await viewer.watch(PATH, Authorization=f"Bearer {token}"))[-1].phase == "ready"
        assert {request.requester for request in builds.asked} == {name}
        assert hub[token] == 1

    async def test_access_to_another_service_is_not_enough(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(PATH, Authorization="Bearer bob-token")
        assert only.data == {
            "phase": "failed",
            "status_code": 403,
            "message": "bob may not use this service.\n",
        }
        assert not builds.asked

    @pytest.mark.parametrize("header", ["", "Bearer unknown", "token our-own-but-wrong"])
    async def test_nobody_else_may(self, viewer: Viewer, builds: MemoryBuilds, header: str) -> None:
        [only] = await viewer.watch(PATH, Authorization=header)
        assert (only.phase, only.data["status_code"]) == ("failed", 403)
        assert not builds.asked

    async def test_a_hub_that_does_not_answer_is_told_from_one_that_refuses(
        self, viewer: Viewer, builds: MemoryBuilds
    ) -> None:
        [only] = await viewer.watch(PATH, Authorization="Bearer trouble")
        assert only.data["status_code"] >= 500
        assert "try again" in only.message
        assert not builds.asked

    async def test_a_browser_without_a_login_is_sent_to_the_hub(self, viewer: Viewer) -> None:
        status, headers, _ = await viewer.raw_once("", Accept="text/html")
        assert status == 302
        assert re.search(r"/hub/api/oauth2/authorize\?client_id=service-builds&", headers["Location"])
        assert "oauth-state" in headers["Set-Cookie"]

    async def test_a_forged_cookie_is_none(self, viewer: Viewer) -> None:
        [only] = await viewer.watch(PATH, Cookie="service-builds=ada-token")
        assert only.data["status_code"] == 403

    async def test_a_way_back_that_nobody_has_begun_is_refused(self, viewer: Viewer) -> None:
        status, _, _ = await viewer.raw("oauth_callback?code=1&state=2")
        assert status in (400, 403)


class TestHealth:
    async def test_a_hub_that_answers_is_asked_seldom(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with a_jupyterhub(monkeypatch) as asked:
            api = HubApi(os.environ["JUPYTERHUB_API_URL"])
            checks = await asyncio.gather(*(api.check() for _ in range(20)))
        assert all(check.ok for check in checks)
        assert asked["root"] == 1

    async def test_a_hub_that_is_away_is_told(self) -> None:
        check = await HubApi(f"http://127.0.0.1:{free_port()}/hub/api").check()
        assert not check.ok
        assert "does not answer" in check.detail


class TestSettings:
    def test_tokens_are_not_shown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RABBIT2DOCKER_HUB__TOKENS", '{"ci": "a-secret"}')
        list_settings(as_json=True)
        shown = capsys.readouterr().out
        assert "HUB__TOKENS" in shown
        assert "a-secret" not in shown

    def test_a_hub_that_gives_no_token_is_a_wrong_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
        with pytest.raises(ConfigurationError, match="JUPYTERHUB_API_TOKEN"):
            make_guard(HubSettings(), "/")

    def test_without_a_name_nobody_could_be_kept_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "x")
        for name in ("JUPYTERHUB_SERVICE_NAME", "JUPYTERHUB_OAUTH_ACCESS_SCOPES", "JUPYTERHUB_OAUTH_SCOPES"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigurationError, match="JUPYTERHUB_SERVICE_NAME"):
            make_guard(HubSettings(), "/")
