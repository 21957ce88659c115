"""Takes the documentation's screenshots of the hub's pages: `python -m docs.screenshots DIRECTORY`.

The pages are served from a store with a few example builds; no RabbitMQ and no Docker engine is needed. Chromium is.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from playwright.async_api import Browser, Page, async_playwright

from rabbit2docker.hub.health import HealthCheck
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.app import WebServer, make_application
from rabbit2docker.settings import HubAuth, HubSettings, Settings
from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Phase
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority

TENANT: Final = "default"
SIZES: Final = {"": (1280, 900), "-phone": (390, 844)}
"""Suffix of the file's name, and width and height of the window."""
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOG: Final = (
    (Phase.FETCHING, "Cloning into '/tmp/repo2docker'..."),
    (Phase.BUILDING, "Using PythonBuildPack builder"),
    (Phase.BUILDING, "Step 1/52 : FROM docker.io/library/buildpack-deps:jammy"),
    (Phase.BUILDING, "Step 38/52 : RUN \x1b[1mpip install --no-cache-dir -r requirements.txt\x1b[0m"),
    (Phase.BUILDING, "Collecting numpy==2.1.0 (from -r requirements.txt (line 1))"),
)
ERROR: Final = "\x1b[31mERROR: No matching distribution found for nunpy\x1b[0m"


class ExampleBuild:
    """The events of one example build, which began a number of minutes ago."""

    def __init__(self, name: str, minutes: float, requester: str) -> None:
        """Take the repository's `owner/name`, the age in minutes and the requester."""
        self.spec = f"{name}/HEAD"
        self.request_id = name.replace("/", "-")
        self.build_id = ids.build_id_of(TENANT, self.request_id)
        self.image = f"registry.example.org/r2d-{name.replace('/', '-2d')}-1a2b3c"
        self.requester = requester
        self.ref = "50533eb470ee6c24e872043d30b2fee463d6943f"
        self.events: list[Event] = []
        self._at = datetime.now(UTC) - timedelta(minutes=minutes)

    def _add(self, event_id: str, data: events.AnyEventData, seconds: float = 1) -> None:
        self._at += timedelta(seconds=seconds)
        self.events.append(Event(ids.EventId(event_id), TENANT, self._at, data))

    def accept(self) -> None:
        """Add the acceptance and the progress of the phases before the build itself."""
        accepted = events.Accepted(
            request_id=self.request_id,
            build_id=self.build_id,
            build_name=f"build-{self.request_id}",
            provider="gh",
            spec=self.spec,
            resolved_ref=self.ref,
            repo_url=f"https://github.com/{self.spec.removesuffix('/HEAD')}",
            image=f"{self.image}:{self.ref}",
            requester=self.requester,
        )
        self._add(ids.request_event_id(TENANT, self.request_id, accepted.kind), accepted)
        for phase, message in (
            (Phase.WAITING, "Waiting for the Docker engine"),
            (Phase.FETCHING, "Fetching the repository"),
            (Phase.BUILDING, "Installing packages"),
        ):
            progress = events.Progress(build_id=self.build_id, attempt=1, phase=phase, message=message)
            self._add(ids.progress_event_id(self.build_id, 1, phase), progress)

    def write(self, *more: str) -> None:
        """Add the log."""
        texts = [*LOG, *((Phase.BUILDING, text) for text in more)]
        lines = [events.LogLine(phase=phase, text=text, ts=self._at) for phase, text in texts]
        log = events.Log(build_id=self.build_id, attempt=1, n=0, lines=lines)
        event_id = ids.lines_event_id(self.build_id, 1, 0, len(lines) - 1, log.kind)
        self._add(event_id, log, seconds=20)

    def complete(self) -> None:
        """Add the successful end."""
        timings = events.Timings(queued=0.4, waiting=3, fetching=2.1, building=64.5, pushing=8.2)
        completed = events.Completed(
            build_id=self.build_id,
            image=f"{self.image}:{self.ref}",
            digest=f"sha256:{'5a' * 32}",
            size=412_000_000,
            resolved_ref=self.ref,
            timings=timings,
            attempt=1,
            lines=len(LOG),
        )
        self._add(ids.terminal_event_id(self.build_id), completed, seconds=50)

    def fail(self) -> None:
        """Add the end by a step that failed."""
        reason = FailureReason.BUILD_STEP_FAILED
        failed = events.Failed(
            build_id=self.build_id,
            reason=reason,
            category=CATEGORY_OF[reason],
            message="The step `RUN pip install -r requirements.txt` ended with exit code 1.",
            hint=HINT_OF[reason],
            exit_code=1,
            failed_step="RUN pip install --no-cache-dir -r requirements.txt",
            tail=[LOG[-1][1], ERROR],
            attempt=1,
            lines=len(LOG) + 1,
        )
        self._add(ids.terminal_event_id(self.build_id), failed, seconds=30)


class ExampleBuilds:
    """Builds that only replay what they were given, in place of a connection to RabbitMQ."""

    def __init__(self, builds: list[ExampleBuild]) -> None:
        """Take the example builds."""
        self._builds = {build.build_id: build for build in builds}

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Accept the request without an effect."""
        return RequestId(str(request.request_id))

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """Ignore the cancellation."""

    async def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the known events, then wait: the build is running."""
        for event in self._builds[ids.BuildId(build_id)].events:
            yield event
        await asyncio.Event().wait()

    async def of_request(
        self, request_id: str, *, since: datetime | None = None
    ) -> AsyncGenerator[Event, None]:
        """Wait: no example request is queued."""
        nothing: list[Event] = []
        await asyncio.Event().wait()
        for event in nothing:
            yield event


def example_builds() -> list[ExampleBuild]:
    """Return a completed, a failed and a running build, the running one last."""
    completed = ExampleBuild("binder-examples/requirements", 95, "ada")
    failed = ExampleBuild("ada/thesis", 30, "ada")
    running = ExampleBuild("binder-examples/conda", 0.7, "bob")
    for build in (completed, failed, running):
        build.accept()
    completed.write()
    completed.complete()
    failed.write(ERROR)
    failed.fail()
    running.write()
    return [completed, failed, running]


async def take_all(directory: Path) -> None:
    """Serve the pages and take all screenshots into a directory."""
    builds = example_builds()
    settings = Settings(hub=HubSettings(auth=HubAuth.NONE))

    async def run_checks() -> list[HealthCheck]:
        return []

    with TemporaryDirectory() as temporary:
        async with Store(f"sqlite:///{temporary}/hub.sqlite", TENANT) as store:
            await store.put([event for build in builds for event in build.events])
            application = make_application(
                settings, "/", builds=ExampleBuilds(builds), records=store, run_checks=run_checks
            )
            server = WebServer(application, "127.0.0.1", 0)
            try:
                await _take(f"http://{server.host}:{server.port}/", builds, directory)
            finally:
                await server.close()


async def _take(address: str, builds: list[ExampleBuild], directory: Path) -> None:
    completed, failed, running = builds
    pages = {
        "list": "",
        "new": "new?repo=https://github.com/binder-examples/requirements",
        "build-running": f"builds/{running.build_id}",
        "build-failed": f"builds/{failed.build_id}",
        "build-completed": f"builds/{completed.build_id}",
    }
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=_chromium(), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        try:
            for suffix, (width, height) in SIZES.items():
                page = await _window(browser, width, height)
                for name, path in pages.items():
                    await page.goto(address + path)
                    await _settle(page)
                    await page.screenshot(path=directory / f"{name}{suffix}.png")
        finally:
            await browser.close()


async def _window(browser: Browser, width: int, height: int) -> Page:
    context = await browser.new_context(
        viewport={"width": width, "height": height}, locale="en-GB", color_scheme="light"
    )
    return await context.new_page()


async def _settle(page: Page) -> None:
    """Wait until the scripts have filled the page."""
    await page.locator("#builds tbody tr, #repo-detected strong, #log .line").first.wait_for(state="attached")
    # Lines of the log are drawn in animation frames.
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _chromium() -> str | None:
    """Return an installed Chromium; None for the one that playwright brings."""
    named = os.environ.get("RABBIT2DOCKER_TEST_CHROMIUM")
    return named or next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def main() -> None:
    """Take the screenshots into the directory that is the one argument."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m docs.screenshots DIRECTORY")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(directory))


if __name__ == "__main__":
    main()
