"""A real Chromium that records the errors of the pages it opens."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from tests.support.hub_service import Viewer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 120_000
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


def chromium() -> str:
    """Return the program."""
    named = os.environ.get("RABBIT2DOCKER_TEST_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "Chromium is needed: `make test-hub` gets it from Debian"
    return found


@dataclass
class Looking:
    """The window of one user."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, and those that the browser wrote to its console."""
    hosts: set[str] = field(default_factory=set)
    """Hosts that were requested from."""
    expected: tuple[str, ...] = ()
    """Parts of complaints that the test expects."""

    async def check(self) -> None:
        """Fail if anything went wrong out of sight."""
        violations = await self.page.evaluate("window.violations ?? []")
        assert not violations, violations
        bad = [each for each in self.complaints if not any(word in each for word in self.expected)]
        assert not bad, bad

    async def focused(self) -> str:
        """Return id, or else the words, of what has the keyboard."""
        return str(
            await self.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )

    @asynccontextmanager
    async def at(self, service: AbstractAsyncContextManager[Viewer]) -> AsyncIterator[Viewer]:
        """Run a service in this process, and leave its pages before it closes.

        A page that still loads when its service closes complains of a refused connection.
        """
        async with service as viewer:
            yield viewer
            await self.leave()

    async def leave(self) -> None:
        """Leave the page once it requests nothing more: a service in this process may then be closed."""
        await self.page.wait_for_load_state("networkidle")
        await self.page.goto("about:blank")

    async def scrolls_sideways(self) -> bool:
        """Return whether the page is wider than the window."""
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(await self.page.evaluate(wide))


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """Start one."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def looking(browser: Browser, **options: Any) -> AsyncIterator[Looking]:
    """Open a window with cookies of its own. Closing it fails if anything went wrong."""
    context = await browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})
    context.set_default_timeout(PATIENCE_MS)
    await context.add_init_script(VIOLATIONS)
    page = await context.new_page()
    window = Looking(page, context)

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            window.complaints.append(message.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            window.hosts.add(request.url.split("/")[2])

    page.on("console", on_console)
    page.on("pageerror", lambda error: window.complaints.append(str(error)))
    page.on("request", on_request)
    try:
        yield window
        await window.check()
    finally:
        await context.close()
