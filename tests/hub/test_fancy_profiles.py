"""People who build an image in the form of jupyterhub-fancy-profiles: the example's hub, and a real browser."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

import pytest
from deploy.jupyterhub.profiles import Profiles
from playwright.async_api import Page, Request, expect
from tornado.web import HTTPError

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Accepted, Completed
from tests.faults.conftest import MakeConsumer
from tests.hub.conftest import Hub, running
from tests.support.browser import PATIENCE_MS, Looking, a_browser, looking
from tests.support.consumer import Consumer
from tests.support.fancy_profiles import choose, open_form, order
from tests.support.github import FakeGitHub
from tests.support.promises import captured, ends_of

pytestmark = [pytest.mark.hub, pytest.mark.broker, pytest.mark.docker, pytest.mark.timeout(300)]

PREFIX = "registry.example.org/hub/r2d-"
IMAGE = r"[\w.\-]+:[\w.\-]+(@sha256:[0-9a-f]{64})?"
PROFILE = {
    "slug": "only",
    "profile_options": {
        "image": {
            "choices": {"first": {"kubespawner_override": {"image": "minimal"}}},
            "unlisted_choice": {"enabled": True},
        }
    },
}
HOLD = """() => {
const form = document.querySelector("form");
let free = false;
form.addEventListener("submit", (event) => {
  if (!free) {
    event.preventDefault();
    window.held = true;
  }
});
window.let_go = () => {
  free = true;
  form.requestSubmit();
};
}"""
"""Gives the test the time to look at the form that is sent as soon as the image is there."""
CHOICE = "profile-option-environment--image"


@dataclass
class Site:
    """A hub with its form, and what can be built for it."""

    hub: Hub
    github: FakeGitHub
    consumer: Consumer

    def started(self) -> list[dict[str, str]]:
        """Return the servers that the spawner was asked to start."""
        noted = self.hub.log.with_name("started.jsonl")
        return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


@pytest.fixture
async def site(tmp_path: Path, amqp: AmqpSettings, make_consumer: MakeConsumer) -> AsyncIterator[Site]:
    github = FakeGitHub()
    await github.server.start_server()
    try:
        consumer = make_consumer(
            RABBIT2DOCKER_PROVIDERS__GITHUB_API_URL=str(github.server.make_url("/")),
            RABBIT2DOCKER_IMAGES__PREFIX=PREFIX,
            RABBIT2DOCKER_BUILDER__REPO2DOCKER_ARGS=json.dumps(["--build-arg", "LINES=12"]),
        )
        await asyncio.to_thread(consumer.start_and_wait)
        directory = tmp_path / "jupyterhub"
        settings = {
            "RABBIT2DOCKER_IMAGES__PREFIX": PREFIX,
            # Nothing is pushed, but the service is healthy only while its registry answers.
            "RABBIT2DOCKER_IMAGES__REGISTRY_URL": f"http://{os.environ['RABBIT2DOCKER_TEST_REGISTRY']}",
            "RABBIT2DOCKER_HUB__STORE_URL": f"sqlite:///{directory / 'builds.sqlite'}",
            "HUB_PREFIX": "unused",
        }
        async with running(directory, amqp, "fancy_config.py", **settings) as hub:
            yield Site(hub, github, consumer)
    finally:
        await github.server.close()


@pytest.fixture
async def window() -> AsyncIterator[Looking]:
    async with a_browser() as browser, looking(browser) as window:
        yield window


def posted(page: Page) -> asyncio.Future[dict[str, str]]:
    """Return what the form is going to send to the hub."""
    sent: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    def look(request: Request) -> None:
        if request.method == "POST" and "/hub/spawn" in request.url and not sent.done():
            sent.set_result(fields(request.headers["content-type"], request.post_data_buffer or b""))

    page.on("request", look)
    return sent


def fields(kind: str, body: bytes) -> dict[str, str]:
    """Return the fields of a form as browsers send it."""
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    found = {}
    for part in message.walk():
        if name := part.get_param("name", header="content-disposition"):
            found[str(name)] = bytes(part.get_payload(decode=True)).decode()
    return found


async def test_the_server_starts_with_the_image_built_in_the_form(
    site: Site, window: Looking, amqp: AmqpSettings
) -> None:
    page = window.page
    await open_form(page, site.hub.address)
    await page.evaluate(HOLD)
    sent = posted(page)
    await order(page, "o/r", "v1")
    await page.wait_for_function("window.held", timeout=PATIENCE_MS)
    log = page.locator(".xterm-rows")
    await expect(log).to_contain_text("line 11 of the build")
    await expect(log).to_contain_text("Image has been built!")
    in_the_form = await page.locator(f'input[name="{CHOICE}--unlisted-choice"]').input_value()
    await page.evaluate("window.let_go()")
    await expect(page.get_by_text("This is a server.")).to_be_visible(timeout=PATIENCE_MS)
    events = await captured(amqp)
    [end] = ends_of(events).values()
    assert isinstance(end.data, Completed)
    assert in_the_form == (await sent)[f"{CHOICE}--unlisted-choice"] == end.data.image
    assert end.data.image.startswith(PREFIX)
    assert site.started() == [{"user": "ada", "image": end.data.image}]
    [accepted] = [event.data for event in events if isinstance(event.data, Accepted)]
    assert (accepted.provider, accepted.spec, accepted.requester) == ("gh", "o/r/v1", "ada")


async def test_a_failed_build_shows_its_reason_in_the_form_and_starts_nothing(
    site: Site, window: Looking
) -> None:
    page = window.page
    (site.consumer.fake_docker / "denied").touch()
    await open_form(page, site.hub.address)
    await order(page, "o/r", "HEAD")
    log = page.locator(".xterm-rows")
    await expect(log).to_contain_text("denied: requested access", timeout=PATIENCE_MS)
    await expect(page.locator(".invalid-feedback", has_text="image build failed")).to_be_visible()
    await expect(page.get_by_role("button", name="Build Image and Start")).to_be_enabled()
    assert site.started() == []


async def test_a_missing_branch_is_named_in_the_form(site: Site, window: Looking) -> None:
    page = window.page
    await open_form(page, site.hub.address)
    await order(page, "o/r", "nowhere")
    await expect(page.locator(".xterm-rows")).to_contain_text("no branch, tag or commit", timeout=PATIENCE_MS)
    await expect(page.locator(".invalid-feedback", has_text="image build failed")).to_be_visible()
    assert site.started() == []


async def test_an_image_built_before_starts_and_any_other_image_does_not(site: Site, window: Looking) -> None:
    page, ours = window.page, f"{PREFIX}o-r-1a2b3c:0123456"
    await open_form(page, site.hub.address)
    await choose(page, "An image that was built before")
    await page.get_by_role("combobox", name="Name of the image").fill("docker.io/someone/else:latest")
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_text("This image was not built for this hub.").first).to_be_visible()
    await page.get_by_role("combobox", name="Name of the image").fill(ours)
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_text("This is a server.")).to_be_visible(timeout=PATIENCE_MS)
    assert site.started() == [{"user": "ada", "image": ours}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"built": "docker.io/someone/else:latest"}, "not built for this hub"),
        ({"built": f"{PREFIX}x:1@sha256:../../else"}, "not built for this hub"),
        ({"picked": "nothing"}, "no such image"),
        ({"profile": "unknown"}, "no such profile"),
    ],
)
def test_options_sent_without_the_form_get_no_other_image(options: dict[str, str], words: str) -> None:
    profiles = Profiles([PROFILE], built=re.escape(PREFIX) + IMAGE)
    with pytest.raises(HTTPError, match=words):
        profiles.image(options)
    assert profiles.image({}) == "minimal"
