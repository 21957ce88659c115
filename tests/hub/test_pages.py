"""The pages in a browser: a real Chromium on real service, consumer and RabbitMQ."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas import events
from tests.behaviour.test_hub_service import doing
from tests.contract.test_binder_stream import BUILD, completed
from tests.contract.test_binder_stream import lines as log_of
from tests.faults.conftest import MakeConsumer
from tests.hub.conftest import Hub
from tests.support.browser import PATIENCE_MS, PHONE, Looking, a_browser, looking
from tests.support.consumer import COMMIT
from tests.support.hub_service import HubService, MemoryBuilds, serving
from tests.support.waiting import eventually

pytestmark = [pytest.mark.hub, pytest.mark.broker, pytest.mark.timeout(300)]
expect.set_options(timeout=PATIENCE_MS)

BASE = "/services/images/"
TOKENS = {"ada": "a-secret", "bob": "another-secret", "root": "a-third-secret"}
MakeService = Callable[..., HubService]


@pytest.fixture
def make_service(tmp_path: Path, amqp: AmqpSettings) -> Iterator[MakeService]:
    """Make services below a path of their own; nothing of them is left afterwards."""
    made: list[HubService] = []

    def make(**variables: str) -> HubService:
        store = f"sqlite:///{tmp_path / 'hub.sqlite'}"
        own = {"RABBIT2DOCKER_HUB__BASE_URL": BASE, "RABBIT2DOCKER_HUB__STORE_URL": store}
        hub = HubService(tmp_path, amqp, **own, **variables)
        hub.address = f"http://{hub.bind}{BASE}"
        made.append(hub)
        return hub

    yield make
    for hub in made:
        hub.end()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


@pytest.fixture
async def window(browser: Browser) -> AsyncIterator[Looking]:
    async with looking(browser) as window:
        yield window


@pytest.fixture
def start(make_consumer: MakeConsumer, make_service: MakeService) -> Callable[..., HubService]:
    """Start a consumer whose builds all do the same, and the service."""

    def starting(variables: dict[str, str] | None = None, **options: object) -> HubService:
        make_consumer(**doing(**options)).start_and_wait()
        hub = make_service(**(variables or {}))
        hub.start_and_wait()
        return hub

    return starting


def repository(name: str) -> str:
    return f"https://127.0.0.1/{name}"


async def ask(page: Page, address: str, name: str) -> None:
    """Ask for a build as people do, and be at its page then."""
    await page.goto(f"{address}new")
    await page.get_by_label("Repository", exact=True).fill(repository(name))
    await page.get_by_text("Options").click()
    await page.get_by_label("Branch, tag or commit").fill(COMMIT)
    await page.get_by_role("button", name="Build", exact=True).click()
    await page.wait_for_url(re.compile(r"/builds/[^/]+$"))


async def state_is(page: Page, *states: str) -> None:
    await expect(page.locator("#state")).to_have_text(re.compile(f"^({'|'.join(states)})$"))


async def shown(page: Page) -> list[str]:
    """Return the build's lines in the page."""
    texts = await page.locator("#log .text").all_text_contents()
    return [text for text in texts if re.fullmatch(r"line \d+ of the build", text)]


async def has_lines(page: Page, count: int) -> None:
    async def are_there() -> bool:
        return len(await shown(page)) >= count

    await eventually(are_there)


def lines(count: int) -> list[str]:
    return [f"line {number} of the build" for number in range(count)]


class TestOneBuild:
    @pytest.mark.parametrize("by_tls", [True, False])
    async def test_a_build_is_asked_for_and_watched_to_its_image(
        self, by_tls: bool, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=40, every=0.05)
        page = window.page
        await window.context.grant_permissions(["clipboard-read", "clipboard-write"])
        if not by_tls:
            # Browsers treat this machine as if there were TLS; elsewhere pages must not touch the clipboard as they like.
            await page.add_init_script(
                "Object.defineProperty(window, 'isSecureContext', { get: () => false })"
            )
        await ask(page, hub.address, "plain")
        await state_is(page, "Completed")
        await has_lines(page, 40)
        assert await shown(page) == lines(40)
        image = await page.locator("#image-name").inner_text()
        assert image.endswith(COMMIT)
        await expect(page.locator("#image-facts")).to_contain_text("sha256:")
        await page.get_by_role("button", name="Copy", exact=True).click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == image
        await expect(page.locator("#phases li.done")).to_have_count(5)
        await expect(page.locator("#facts")).to_contain_text(COMMIT[:7])
        assert await page.locator("#facts a").get_attribute("href") == repository("plain")
        assert await page.title() == f"Completed: 127.0.0.1/plain at {COMMIT[:7]} · Image builds"
        assert window.hosts == {hub.bind}

    async def test_a_page_opened_after_the_end_shows_the_same(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=30)
        page = window.page
        await ask(page, hub.address, "later")
        await state_is(page, "Completed")
        await has_lines(page, 30)
        await page.reload()
        await state_is(page, "Completed")
        await has_lines(page, 30)
        assert await shown(page) == lines(30)
        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Download").click()
        text = (await (await downloading.value).path()).read_text()
        assert [line for line in text.splitlines() if line in lines(30)] == lines(30)

    async def test_the_reason_of_a_failed_build_stands_above_everything_else(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, fail=3)
        page = window.page
        await ask(page, hub.address, "broken")
        await state_is(page, "Failed")
        problem = page.locator("#problem")
        await expect(problem).to_contain_text("make it so")
        await expect(page.locator("#problem-hint")).not_to_be_empty()
        await expect(page.locator("#problem-tail")).to_contain_text("line 4 of the build")
        await expect(page.locator("#phases li.broken")).to_contain_text("Building")
        tops = [
            box["y"]
            for part in ("#problem", "#phases", "#facts", "#log")
            if (box := await page.locator(part).bounding_box())
        ]
        assert tops == sorted(tops)
        assert len(tops) == 4

    async def test_a_rejected_request_shows_its_reason(
        self, make_consumer: MakeConsumer, make_service: MakeService, window: Looking
    ) -> None:
        consumer = make_consumer(RABBIT2DOCKER_PROVIDERS__BANNED_SPECS='{"git": [".*banned.*"]}')
        await asyncio.to_thread(consumer.start_and_wait)
        hub = make_service()
        await asyncio.to_thread(hub.start_and_wait)
        page = window.page
        await page.goto(f"{hub.address}new?repo={quote(repository('banned'))}&ref={COMMIT}&subdir=inside")
        await page.get_by_role("button", name="Build", exact=True).click()
        await state_is(page, "Rejected")
        await expect(page.locator("#problem-message")).to_contain_text("does not allow")
        await expect(page.locator("#facts")).to_contain_text("directory inside")
        await expect(page.locator("#log-section")).to_be_hidden()

    async def test_a_build_is_cancelled_only_after_confirmation(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=2000, every=0.1)
        page = window.page
        await ask(page, hub.address, "long")
        await has_lines(page, 1)
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Keep building").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await state_is(page, "Building")
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Cancel the build").click()
        await state_is(page, "Cancelled")
        await expect(page.locator("#problem-message")).to_contain_text("Cancelled by ")
        await expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_hidden()

    async def test_building_again_makes_another_build(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start)
        page = window.page
        await ask(page, hub.address, "again")
        await state_is(page, "Completed")
        first = page.url
        await page.get_by_role("button", name="Build again").click()
        await page.wait_for_url(lambda url: "/builds/" in url and url != first)
        await state_is(page, "Completed")
        await expect(page.locator("#facts")).to_contain_text("build even if the image exists")
        await has_lines(page, 5)
        assert await shown(page) == lines(5)

    async def test_a_waiting_build_shows_its_position_in_the_queue(
        self, make_consumer: MakeConsumer, make_service: MakeService, window: Looking
    ) -> None:
        consumer = make_consumer(**doing(lines=2000, every=0.1), RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1")
        await asyncio.to_thread(consumer.start_and_wait)
        hub = make_service()
        await asyncio.to_thread(hub.start_and_wait)
        page = window.page
        await ask(page, hub.address, "first")
        await state_is(page, "Building")
        await ask(page, hub.address, "second")
        await expect(page.locator("#progress")).to_contain_text("this build is next")
        await ask(page, hub.address, "third")
        await expect(page.locator("#progress")).to_contain_text("1 build is before this one")
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Cancel the build").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()


class TestLog:
    async def test_the_log_follows_new_lines_until_the_reader_scrolls_back(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=1500, every=0.02)
        page = window.page
        await ask(page, hub.address, "followed")
        await has_lines(page, 150)
        follow = page.get_by_role("button", name="Follow")
        await expect(follow).to_have_attribute("aria-pressed", "true")
        assert await distance_to_end(page) < 40
        await page.locator("#log").hover()
        await page.mouse.wheel(0, -1200)
        await expect(follow).to_have_attribute("aria-pressed", "false")
        before = await page.locator("#log").evaluate("log => log.scrollTop")
        seen = len(await shown(page))
        await has_lines(page, seen + 50)
        assert await page.locator("#log").evaluate("log => log.scrollTop") == before
        await page.get_by_role("button", name="Latest lines").click()
        await expect(follow).to_have_attribute("aria-pressed", "true")
        await has_lines(page, seen + 100)
        assert await distance_to_end(page) < 40
        await page.locator("#log").hover()
        await page.mouse.wheel(0, -20)
        await expect(follow).to_have_attribute("aria-pressed", "false")
        await page.mouse.wheel(0, 1200)
        await expect(follow).to_have_attribute("aria-pressed", "true")
        await follow.click()
        await expect(follow).to_have_attribute("aria-pressed", "false")

    async def test_the_log_continues_by_itself_after_a_restart_of_the_service(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=120, every=0.1)
        window.expected = ("net::ERR_",)
        page = window.page
        await ask(page, hub.address, "restarted")
        await has_lines(page, 20)
        await asyncio.to_thread(hub.kill)
        await expect(page.locator("#connection")).to_contain_text("connection is lost")
        await asyncio.to_thread(hub.start_and_wait)
        await expect(page.locator("#connection")).to_be_hidden()
        await state_is(page, "Completed")
        await has_lines(page, 120)
        assert await shown(page) == lines(120)

    async def test_markup_in_the_log_stays_text(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        said = [
            "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
            "\x1b[31mred\x1b[0m and \x1b[1;44mbold on blue\x1b[0m",
            "\x1b]8;;javascript:window.hacked=3\x07a link\x1b]8;;\x07 \x1b[2J\x1b[10;10Hgone",
            "\x1b[38;5;196mfar\x1b[48;2;255;255;255mnear\x1b[m",
        ]
        hub = await asyncio.to_thread(start, say="\n".join(said), fail=1)
        page = window.page
        await ask(page, hub.address, "<b>evil</b>")
        await state_is(page, "Failed", "Rejected")
        texts = page.locator("#log .text")
        await expect(texts.filter(has_text="<script>")).to_have_text(said[0])
        await expect(page.locator("#log .fg1").first).to_have_text("red")
        await expect(page.locator("#log .bold.bg4")).to_have_text("bold on blue")
        await expect(texts.filter(has_text="a link")).to_have_text("a link gone")
        await expect(page.locator("#log .fg9.bg15")).to_have_text("near")
        assert await page.locator("#log img, #log script, #log .text a, h1 b, #problem img").count() == 0
        assert await page.evaluate("window.hacked") is None

    async def test_a_long_log_shows_its_newest_lines_and_links_to_the_rest(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=22_000)
        page = window.page
        await ask(page, hub.address, "huge")
        await state_is(page, "Completed")
        await expect(page.locator("#log .line").last).to_be_attached()
        await expect(page.locator("#trimmed")).to_contain_text("see the full log")

        async def has_the_end() -> bool:
            return "line 21999 of the build" in (await shown(page))[-1:]

        async def is_at_the_end() -> bool:
            return await distance_to_end(page) < 40

        await eventually(has_the_end)
        assert 19_000 < await page.locator("#log .line").count() < 21_000
        await eventually(is_at_the_end)
        # Those out of sight have estimated heights, which must not be those that they had while they grew.
        heights = await page.evaluate("[...document.querySelectorAll('.chunk')].map(c => c.offsetHeight)")
        assert max(heights) - min(heights[:-1]) < 100, heights
        async with window.context.expect_page() as opening:
            await page.get_by_role("link", name="Full log").click(modifiers=["ControlOrMeta"])
        full = await opening.value
        await expect(full.locator("body")).to_contain_text("line 0 of the build")

    async def test_long_lines_are_wrapped_or_scrolled_to_and_the_browser_remembers_which(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, say="wide " * 400)
        page = window.page
        wide = "log => log.scrollWidth > log.clientWidth"
        await ask(page, hub.address, "wide")
        await state_is(page, "Completed")
        await has_lines(page, 5)
        assert not await page.locator("#log").evaluate(wide)
        await page.get_by_role("button", name="Wrap lines").click()
        assert await page.locator("#log").evaluate(wide)
        assert not await window.scrolls_sideways()
        await page.reload()
        await has_lines(page, 5)
        await expect(page.get_by_role("button", name="Wrap lines")).to_have_attribute("aria-pressed", "false")
        assert await page.locator("#log").evaluate(wide)

    @pytest.mark.parametrize(
        ("raw", "drawn"),
        [
            ("plain", [["", "plain"]]),
            ("10%\r55%\r100%", [["", "100%"]]),
            ("\x1b[31m10%\r100%\r", [["fg1", "100%"]]),
            (
                "a\x1b[1;4;32mb\x1b[22mc\x1b[0md",
                [["", "a"], ["fg2 bold underline", "b"], ["fg2 underline", "c"], ["", "d"]],
            ),
            ("\x1b[7minverse\x1b[27m", [["fg0 bg7", "inverse"]]),
            ("\x1b[38;5;300;1mx", [["fg7 bold", "x"]]),
            ("\x1b[38:2:0:0:255mx", [["fg4", "x"]]),
            (
                "\x1b]0;title\x07a\x1b[Kb\x1b(Bc\x1b[?25ld\x08e\x00f",
                [["", "a"], ["", "b"], ["", "c"], ["", "d"], ["", "e"], ["", "f"]],
            ),
            ("unfinished\x1b[3", [["", "unfinished"]]),
            ("unfinished\x1b]8;;http", [["", "unfinished"]]),
            ("", []),
        ],
    )
    async def test_terminal_sequences_are_rendered(
        self, raw: str, drawn: list[list[str]], window: Looking
    ) -> None:
        async with window.at(serving(MemoryBuilds())) as viewer:
            await window.page.goto(viewer.address)
            style = await window.page.locator("link[rel=stylesheet]").get_attribute("href")
            nodes = await window.page.evaluate(
                """async ([styles, raw]) => {
                  const { Terminal } = await import(styles.replace("style.css", "ansi.js"));
                  return new Terminal().line(raw).map((node) => [node.className ?? "", node.textContent]);
                }""",
                [style, raw],
            )
        assert nodes == drawn

    async def test_missing_lines_and_a_new_attempt_are_announced(self, window: Looking) -> None:
        builds = MemoryBuilds()
        builds.plan = [
            *BUILD[:1],
            log_of(0, "one", "two"),
            events.Gap(build_id="", attempt=1, first=2, last=4, message="the node was lost"),
            events.Progress(build_id="", attempt=2, phase=events.Phase.WAITING, message="Attempt 2"),
            log_of(0, "again", attempt=2),
            completed(),
        ]
        page = window.page
        async with window.at(serving(builds)) as viewer:
            await ask(page, viewer.address, "twice")
            await state_is(page, "Completed")
            await expect(page.locator("#log")).to_contain_text("again")
            said = await page.locator("#log .text, #log .remark").all_text_contents()
        assert said == [
            "one",
            "two",
            "Lines 2 to 4 are missing: the node was lost",
            "Attempt 2 begins.",
            "again",
        ]

    async def test_a_wait_counts_down_and_an_incomplete_image_is_marked(self, window: Looking) -> None:
        builds, page = MemoryBuilds(), window.page
        until = events.ProgressDetail(retry_at=datetime.now(UTC) + timedelta(hours=1))
        builds.plan = [
            events.Progress(
                build_id="", attempt=0, phase=events.Phase.WAITING, message="Limited", detail=until
            )
        ]
        async with window.at(serving(builds)) as viewer:
            await ask(page, viewer.address, "limited")
            await expect(page.locator("#facts")).to_contain_text(re.compile(r"Next try\s*in \d+ min \d\d s"))
            await builds.add(*BUILD, completed(warnings=["Git LFS files are missing.", "So is a submodule."]))
            await state_is(page, "Completed")
            await expect(page.locator("#image-warnings")).to_have_text(
                "Git LFS files are missing.\nSo is a submodule.", use_inner_text=True
            )
            await expect(page.locator("#facts")).not_to_contain_text("Next try")

    async def test_a_line_has_an_address(self, start: Callable[..., HubService], window: Looking) -> None:
        hub = await asyncio.to_thread(start, lines=400)
        page = window.page
        await ask(page, hub.address, "lines")
        await state_is(page, "Completed")
        await has_lines(page, 400)
        number = page.locator(".line", has_text="line 17 of the build").locator("a")
        await page.goto(page.url + str(await number.get_attribute("href")))
        await page.reload()
        await expect(page.locator(".line.marked .text")).to_have_text("line 17 of the build")
        await expect(page.locator(".line.marked")).to_be_in_viewport()
        await has_lines(page, 400)
        await expect(page.locator(".line.marked")).to_be_in_viewport()


async def distance_to_end(page: Page) -> float:
    """Return how many pixels of the log are below what is seen of it."""
    return float(
        await page.locator("#log").evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight")
    )


class TestAsking:
    async def test_the_form_shows_how_it_reads_an_address_while_it_is_typed(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start)
        page = window.page
        await page.goto(f"{hub.address}new")
        read = page.locator("#repo-detected")
        field = page.get_by_label("Repository", exact=True)
        for typed, shown_as in {
            "ada/thesis": "GitHub: ada/thesis, default branch",
            "https://github.com/ada/thesis/tree/feature/x": "GitHub: ada/thesis, feature/x",
            "github.com/ada/thesis.git": "GitHub: ada/thesis, default branch",
            "https://git.example.org/a/b.git": "Git: git.example.org/a/b, default branch",
            "https://gitlab.com/a/b/c/-/tree/feature/x": "GitLab: a/b/c, feature/x",
            "https://gist.github.com/ada/0a1b2c": "Gist: ada/0a1b2c, default branch",
            "https://zenodo.org/records/3242074": "Zenodo: 10.5281/zenodo.3242074",
            "doi:10.7910/DVN/TJCLKP": "Dataverse: 10.7910/DVN/TJCLKP",
            "https://x.org/dataset.xhtml?persistentId=doi:10.7910/DVN/X": "Dataverse: 10.7910/DVN/X",
            "https://demo.ckan.org/dataset/sample": "CKAN: https://demo.ckan.org/dataset/sample",
            "hello": "",
            "https://git.example.org/%E0%A4%A": "",
        }.items():
            await field.fill(typed)
            if shown_as or typed == "hello":
                await expect(read).to_have_text(shown_as)

    async def test_a_wrong_address_is_explained_beside_its_field_and_no_input_is_lost(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start)
        window.expected = ("400",)
        page = window.page
        await page.goto(f"{hub.address}new")
        build = page.get_by_role("button", name="Build", exact=True)
        await build.click()
        await expect(page.locator("#repo-error")).to_contain_text("URL of a repository")
        field = page.get_by_label("Repository", exact=True)
        await expect(field).to_be_focused()
        await field.fill("https://ada:secret@git.example.org/thesis")
        await expect(page.locator("#repo-error")).to_be_hidden()
        await page.get_by_text("Options").click()
        await page.get_by_label("Branch, tag or commit").fill("main")
        await build.click()
        await expect(page.locator("#repo-error")).to_contain_text("password")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_value("https://ada:secret@git.example.org/thesis")
        await expect(page.get_by_label("Branch, tag or commit")).to_have_value("main")
        await field.fill(repository("inside"))
        await page.get_by_label("Directory inside").fill("../outside")
        await build.click()
        await expect(page.locator("#subdir-error")).not_to_be_empty()
        await expect(page.get_by_label("Directory inside")).to_be_focused()

    async def test_a_build_can_be_requested_with_the_keyboard_alone(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=2000, every=0.1)
        page = window.page
        await page.goto(hub.address)
        await expect(page.locator("#empty")).to_be_visible()
        await page.keyboard.press("Tab")
        assert await window.focused() == "Skip to content"
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await window.focused() == "New build"
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{hub.address}new")
        await expect(page.locator("#repo")).to_be_focused()
        await page.keyboard.type(repository("keys"))
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await window.focused() == "ref"
        await page.keyboard.type(COMMIT)
        await page.keyboard.press("Enter")
        await page.wait_for_url(re.compile("/builds/"))
        await has_lines(page, 1)  # a request that is cancelled before its build begins is rejected
        await tab_to(window, "cancel")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await window.focused() == "keep-building"
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert await window.focused() == "cancel"
        await page.keyboard.press("Enter")
        await tab_to(window, "confirm-cancel")
        await page.keyboard.press("Enter")
        await state_is(page, "Cancelled")


async def tab_to(window: Looking, wanted: str) -> None:
    for _ in range(40):
        if await window.focused() == wanted:
            return
        await window.page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} cannot be reached")


class TestList:
    async def test_the_list_shows_running_builds_and_their_progress(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, lines=60, every=0.1)
        page = window.page
        await page.goto(hub.address)
        await expect(page.get_by_text("No builds yet")).to_be_visible()
        await ask(page, hub.address, "listed")
        await page.goto(hub.address)
        row = page.get_by_role("row").filter(has_text="127.0.0.1/listed")
        await expect(row.locator(".badge.running")).to_be_visible()
        await expect(row.locator(".badge.completed")).to_be_visible()
        await expect(row.locator("time")).to_have_attribute("title", re.compile(r"\d{4}"))
        await row.get_by_role("link").click()
        await state_is(page, "Completed")

    async def test_search_and_filters_of_the_list_are_kept_in_its_address(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start)
        page = window.page
        for name in ("apples", "pears"):
            await ask(page, hub.address, name)
            await state_is(page, "Completed")
        await page.goto(hub.address)
        rows = page.locator("#builds tbody tr")
        await expect(rows).to_have_count(2)
        await page.get_by_role("searchbox", name="Search").fill("apple")
        await expect(rows).to_have_count(1)
        await page.get_by_label("State").select_option("Failed")
        await expect(page.get_by_text("No builds match")).to_be_visible()
        await page.reload()
        await expect(page.get_by_text("No builds match")).to_be_visible()
        await expect(page.get_by_role("searchbox", name="Search")).to_have_value("apple")
        await page.go_back()
        await expect(rows).to_have_count(1)
        await page.get_by_label("State").select_option("Completed")
        await expect(rows).to_have_count(1)

    async def test_older_builds_are_on_further_pages(
        self, start: Callable[..., HubService], window: Looking
    ) -> None:
        hub = await asyncio.to_thread(start, {"RABBIT2DOCKER_HUB__REQUESTS_PER_ADDRESS": "0"})
        async with aiohttp.ClientSession() as session:
            for number in range(53):
                request = {"provider": "git", "spec": f"no-address-{number}/HEAD"}
                async with session.post(f"{hub.address}api/builds", json=request) as answer:
                    assert answer.status == 202, await answer.text()
        page = window.page
        await page.goto(hub.address)
        rows = page.locator("#builds tbody tr")
        await expect(rows).to_have_count(50)
        await page.get_by_role("link", name="Older").click()
        await expect(rows).to_have_count(3)
        await expect(rows.last).to_contain_text("no-address-0")
        await page.get_by_role("link", name="Newest").click()
        await expect(rows).to_have_count(50)


class TestWhoSees:
    def as_one(self, name: str) -> dict[str, object]:
        return {"http_credentials": {"username": name, "password": TOKENS[name]}}

    async def test_a_build_of_another_user_is_visible_to_admins_only(
        self, start: Callable[..., HubService], browser: Browser
    ) -> None:
        hub = await asyncio.to_thread(
            start,
            {
                "RABBIT2DOCKER_HUB__AUTH": "tokens",
                "RABBIT2DOCKER_HUB__TOKENS": json.dumps(TOKENS),
                "RABBIT2DOCKER_HUB__ADMINS": '["root"]',
            },
        )
        async with looking(browser, **self.as_one("ada")) as ada:
            await ask(ada.page, hub.address, "private")
            await state_is(ada.page, "Completed")
            await expect(ada.page.locator(".account")).to_contain_text("ada")
            await expect(ada.page.locator("#owner")).to_have_count(0)
            address = ada.page.url
        async with looking(browser, **self.as_one("bob")) as bob:
            bob.expected = ("404",)
            answer = await bob.page.goto(address)
            assert answer is not None
            assert answer.status == 404
            await expect(bob.page.get_by_role("heading")).to_have_text("Page not found")
            await bob.page.get_by_role("link", name="Go to builds").click()
            await expect(bob.page.get_by_text("No builds yet")).to_be_visible()
        async with looking(browser, **self.as_one("root")) as root:
            # The first address that a browser opens may be that of a build.
            await root.page.goto(address)
            await state_is(root.page, "Completed")
            await has_lines(root.page, 5)
            await root.page.goto(hub.address)
            await expect(root.page.locator("td.requester")).to_have_text("ada")
            await root.page.get_by_label("Requested by").select_option("Me")
            await expect(root.page.get_by_text("No builds match")).to_be_visible()

    async def test_a_visitor_without_a_token_is_asked_for_one_and_then_sent_on(
        self, start: Callable[..., HubService]
    ) -> None:
        hub = await asyncio.to_thread(
            start,
            {"RABBIT2DOCKER_HUB__AUTH": "tokens", "RABBIT2DOCKER_HUB__TOKENS": json.dumps(TOKENS)},
        )
        viewer = hub.viewer
        _, headers, _ = await viewer.raw_once("new?repo=x", Accept="text/html")
        wanted = headers["Location"].removeprefix(BASE)
        status, headers, body = await viewer.raw_once(wanted, Accept="text/html")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic ")
        assert "A token is required" in body.decode()
        ada = "Basic " + base64.b64encode(f"ada:{TOKENS['ada']}".encode()).decode()
        status, headers, _ = await viewer.raw_once(wanted, Accept="text/html", Authorization=ada)
        assert (status, headers["Location"]) == (302, f"{BASE}new?repo=x")
        for elsewhere in ("//elsewhere.example.org", "../hub", "https:x", "builds/../../x"):
            status, headers, _ = await viewer.raw_once(
                f"?next={quote(elsewhere)}", Accept="text/html", Authorization=ada
            )
            assert status == 200


class TestWindows:
    async def test_a_phone_shows_everything_without_scrolling_sideways(
        self, start: Callable[..., HubService], browser: Browser
    ) -> None:
        long_line = "x" * 4000
        hub = await asyncio.to_thread(start, say=long_line, fail=2)
        async with looking(browser, viewport=PHONE, has_touch=True, is_mobile=True) as phone:
            page = phone.page
            await ask(page, hub.address, "a/repository/with/a/very-long-name/" + "n" * 80)
            await state_is(page, "Failed")
            await has_lines(page, 5)
            assert not await phone.scrolls_sideways()
            await small_targets_are_none(page)
            for path in ("", "new?repo=x&ref=y", "builds/none"):
                phone.expected = ("404",)
                await page.goto(hub.address + path)
                if not path:
                    await expect(page.locator("#builds tbody tr")).to_have_count(1)
                assert not await phone.scrolls_sideways(), path
                await small_targets_are_none(page)

    async def test_pages_and_what_they_need_have_strict_headers(
        self, start: Callable[..., HubService]
    ) -> None:
        hub = await asyncio.to_thread(start)
        for path in ("", "new", "builds/none", "nowhere"):
            _, headers, body = await hub.viewer.raw(path, Accept="text/html")
            policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == "'self'"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "same-origin"
            assert headers["Content-Type"] == "text/html; charset=utf-8"
            [style] = re.findall(r'rel="stylesheet" href="([^"]+)"', body.decode())
            status, kept, _ = await hub.viewer.raw(style.removeprefix(BASE))
            assert status == 200
            assert "immutable" in kept["Cache-Control"]
        assert (
            json.loads((await hub.viewer.raw("", Accept="application/json"))[2])["service"] == "rabbit2docker"
        )
        assert json.loads((await hub.viewer.raw("nowhere", Accept="*/*"))[2])["status"] == 404


async def small_targets_are_none(page: Page) -> None:
    """Fail if a button, link or field is too small for a finger; links inside of sentences may be as they are."""
    small = await page.evaluate(
        """
        [...document.querySelectorAll("button, a, input, select, summary")]
          .filter((each) => each.checkVisibility() && !each.closest("dd, p, .line, .skip, noscript"))
          .filter((each) => !each.matches(".skip, .visually-hidden"))
          .map((each) => (each.type === "checkbox" ? each.closest(".check") : each))
          .filter((each) => each.getBoundingClientRect().height < 43.5)
          .map((each) => each.outerHTML.slice(0, 120))
        """
    )
    assert not small, small


class TestJupyterHub:
    @pytest.fixture(autouse=True)
    async def a_consumer(self, make_consumer: MakeConsumer) -> None:
        await asyncio.to_thread(make_consumer(**doing(lines=2000, every=0.1)).start_and_wait)

    async def test_a_logged_in_user_builds_with_cookies(self, hub: Hub, window: Looking) -> None:
        page, address = window.page, hub.viewer().address
        await page.goto(f"{address}new?repo={quote(repository('cookies'))}&ref={COMMIT}")
        await page.get_by_label("Username").fill("ada")
        await page.get_by_label("Password").fill("any")
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(re.compile("/services/binder/new"))
        await expect(page.locator("#repo")).to_have_value(repository("cookies"))
        await page.get_by_role("button", name="Build", exact=True).click()
        await page.wait_for_url(re.compile("/builds/"))
        await has_lines(page, 20)
        seen = await shown(page)
        assert seen == lines(len(seen))
        await expect(page.locator(".account")).to_contain_text("ada")
        await expect(page.locator("#facts")).to_contain_text("ada")
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Cancel the build").click()
        await state_is(page, "Cancelled")
        await expect(page.locator("#problem-message")).to_have_text("Cancelled by ada.")
        await page.get_by_role("link", name="Builds", exact=True).click()
        row = page.get_by_role("row").filter(has_text="127.0.0.1/cookies")
        await expect(row.locator(".badge.cancelled")).to_be_visible()
        home = page.get_by_role("link", name="JupyterHub home")
        assert await home.get_attribute("href") in ("/hub/home", f"{hub.address}hub/home")
