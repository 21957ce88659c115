"""People and programs of a real JupyterHub, through its real proxy, with its real logins."""

import asyncio
import subprocess
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Accepted
from tests.faults.conftest import MakeConsumer
from tests.hub.conftest import NODE, Hub
from tests.support.hub_service import build_path, parse, texts
from tests.support.promises import captured

pytestmark = [pytest.mark.hub, pytest.mark.broker, pytest.mark.timeout(300)]

LINES = [f"line {number} of the build" for number in range(5)]


@pytest.fixture(autouse=True)
async def a_consumer(make_consumer: MakeConsumer) -> None:
    await asyncio.to_thread(make_consumer().start_and_wait)


async def test_a_users_token_builds_under_their_name(hub: Hub, amqp: AmqpSettings) -> None:
    sent = await hub.viewer(await hub.token_of("ada")).watch(build_path("token"))
    assert texts(sent) == LINES
    assert sent[-1].phase == "ready"
    [accepted] = [event.data for event in await captured(amqp) if isinstance(event.data, Accepted)]
    assert accepted.requester == "ada"


async def test_a_user_without_access_and_an_unknown_token_are_refused(hub: Hub) -> None:
    for token in (await hub.token_of("bob"), "unknown-token", ""):
        [only] = await hub.viewer(token).watch(build_path("refused"))
        assert (only.phase, only.data["status_code"]) == ("failed", 403)


async def test_a_logged_in_browser_requests_with_a_cookie_and_the_xsrf_token(hub: Hub) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, headers={"Accept": "text/html"}) as browser:
        await log_in(browser, hub, "ada")
        async with browser.get(f"{hub.address}services/binder/") as answer:
            assert "text/html" in answer.headers["Content-Type"]
        async with browser.get(f"{hub.address}services/binder/", headers={"Accept": "*/*"}) as answer:
            assert (await answer.json())["user"] == "ada"
        url = hub.viewer().address + build_path("cookie")
        page = {"Accept": "text/event-stream", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        async with browser.get(URL(url, encoded=True), headers=page) as answer:
            [without] = parse(await answer.read())
        token = jar.filter_cookies(URL(f"{hub.address}services/binder/"))["_xsrf"].value
        page["X-Xsrftoken"] = token
        async with browser.get(URL(url, encoded=True), headers=page) as answer:
            sent = parse(await answer.read())
    assert (without.phase, without.data["status_code"]) == ("failed", 403)
    assert texts(sent) == LINES
    assert sent[-1].phase == "ready"


async def log_in(browser: aiohttp.ClientSession, hub: Hub, user: str) -> None:
    login = f"{hub.address}hub/login"
    async with browser.get(login):
        xsrf = browser.cookie_jar.filter_cookies(URL(login))["_xsrf"].value
    form = {"username": user, "password": "any", "_xsrf": xsrf}
    async with browser.post(login, data=form, allow_redirects=False) as answer:
        assert answer.status == 302, await answer.text()


# The client is made for browsers: what it takes from one is not there in Node under that name.
CLIENT = """
globalThis.window = globalThis;
import { BinderRepository } from "@jupyterhub/binderhub-client/client.js";
const [spec, endpoint, apiToken, leaveAt] = process.argv.slice(2);
const build = new BinderRepository(spec, new URL(endpoint), { apiToken, buildOnly: true });
for await (const event of build.fetch()) {
  console.log(JSON.stringify(event));
  if (event.phase === "ready" || event.phase === "failed" || event.phase === leaveAt) {
    build.close();
    break;
  }
}
"""


async def test_binderhub_client_works_unchanged(hub: Hub, tmp_path: Path) -> None:
    token = await hub.token_of("ada")
    (tmp_path / "node_modules").symlink_to(NODE)
    script = tmp_path / "client.mjs"
    script.write_text(CLIENT)
    endpoint = f"{hub.address}services/binder/build/"
    good = build_path("client").removeprefix("build/").partition("?")[0]
    ready = await asyncio.to_thread(run_client, script, good, endpoint, token)
    assert '"phase":"ready"' in ready[-1]
    assert '"imageName"' in ready[-1]
    assert sum("of the build" in line for line in ready) == 5
    failed = await asyncio.to_thread(run_client, script, "svn/x/y", endpoint, token)
    assert "No provider found for prefix svn" in failed[-1]


async def test_binderhub_client_that_reconnects_gets_the_whole_build(hub: Hub, tmp_path: Path) -> None:
    token = await hub.token_of("ada")
    (tmp_path / "node_modules").symlink_to(NODE)
    script = tmp_path / "client.mjs"
    script.write_text(CLIENT)
    endpoint = f"{hub.address}services/binder/build/"
    spec = build_path("comes-back").removeprefix("build/").partition("?")[0]
    left = await asyncio.to_thread(run_client, script, spec, endpoint, token, "building")
    assert '"phase":"building"' in left[-1]
    again = await asyncio.to_thread(run_client, script, spec, endpoint, token)
    assert [line for line in LINES if sum(line in each for each in again) == 1] == LINES
    assert '"phase":"ready"' in again[-1]


def run_client(script: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        ["node", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=script.parent,
    )
    assert done.stdout, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("{")]
