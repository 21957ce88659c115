"""People at the form of jupyterhub-fancy-profiles."""

from playwright.async_api import Page, expect

from tests.support.browser import PATIENCE_MS


async def open_form(page: Page, address: str, user: str = "ada") -> None:
    """Log in to the hub at an address and wait for the form."""
    await page.goto(f"{address}hub/login?next=/hub/spawn")
    await page.fill("#username_input", user)
    await page.fill("#password_input", "any")
    await page.click("#login_submit")
    await expect(page.get_by_text("Choose your environment")).to_be_visible(timeout=PATIENCE_MS)


async def choose(page: Page, label: str) -> None:
    """Choose one of the images."""
    await page.locator(".select__control").click()
    await page.locator(".select__option", has_text=label).click()


async def order(page: Page, repository: str, ref: str) -> None:
    """Fill in what is to be built, and press the button."""
    await choose(page, "Build your own image")
    await page.get_by_label("Repository", exact=True).fill(repository)
    await page.get_by_label("Git Ref", exact=True).fill(ref)
    await expect(page.locator(".xterm-rows")).to_contain_text("Logs will appear here")
    await page.get_by_role("button", name="Build Image and Start").click()
