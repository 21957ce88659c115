"""The page of dead letters in a real Chromium, on a real RabbitMQ."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from rabbit2docker.amqp import declare
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.routing import DEAD_QUEUE, FORGED, REQUESTS_QUEUE
from tests.hub.test_pages import small_targets_are_none
from tests.support.browser import PATIENCE_MS, PHONE, a_browser, looking
from tests.support.hub_service import MemoryBuilds, serving
from tests.support.letters import Letter, count, leave

pytestmark = [pytest.mark.hub, pytest.mark.broker, pytest.mark.timeout(300)]
expect.set_options(timeout=PATIENCE_MS)
TOKENS = {"root": "root-secret", "ada": "ada-secret"}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


def as_one(name: str) -> dict[str, object]:
    return {"http_credentials": {"username": name, "password": TOKENS[name]}}


async def test_an_admin_handles_dead_letters_on_a_phone(
    browser: Browser, amqp: AmqpSettings, settings: Settings
) -> None:
    await declare.declare(settings)
    long_name = "a-very-long-name-" + "n" * 80
    await leave(
        amqp,
        Letter(long_name, "unavailable"),
        Letter("forgery", FORGED),
        Letter("broken", "invalid_json", body=b"<script>alert(1)</script> no JSON " + b"x" * 500),
    )
    service = serving(
        MemoryBuilds(),
        auth="tokens",
        tokens=TOKENS,
        admins=["root"],
        dead_letters_url=amqp.url.get_secret_value(),
    )
    async with (
        looking(browser, viewport=PHONE, has_touch=True, is_mobile=True, **as_one("root")) as phone,
        phone.at(service) as viewer,
    ):
        page = phone.page
        await page.goto(f"{viewer.address}?next=dead-letters")
        letters = page.locator("article.letter")
        await expect(letters).to_have_count(3)
        broken = letters.filter(has_text="invalid_json")
        await broken.get_by_text("Content").click()
        await expect(broken.locator("pre")).to_contain_text("<script>alert(1)</script> no JSON")
        await expect(broken).to_contain_text("Its body is not JSON. Fix the program that sent it")
        assert not await phone.scrolls_sideways()
        await small_targets_are_none(page)

        forgery = letters.filter(has_text="forgery")
        await expect(forgery.get_by_role("button", name="Publish again")).to_have_count(0)
        await letters.filter(has_text=long_name).get_by_role("button", name="Publish again").click()
        await expect(page.locator("#result")).to_have_text("1 letter published again.")
        await expect(letters).to_have_count(2)
        assert await count(amqp, REQUESTS_QUEUE) == 1

        await page.get_by_label("Reason").select_option("invalid_json")
        await expect(letters).to_have_count(1)
        await broken.get_by_role("button", name="Discard").click()
        await page.get_by_role("button", name="Keep").click()
        assert await count(amqp, DEAD_QUEUE) == 2
        await broken.get_by_role("button", name="Discard").click()
        await page.get_by_role("dialog").get_by_role("button", name="Discard").click()
        await expect(page.get_by_text("No dead letters")).to_be_visible()
        await page.get_by_label("Reason").select_option("Any")
        await expect(letters).to_have_count(1)


async def test_only_admins_have_the_page_and_without_credentials_it_says_how_to_enable_it(
    browser: Browser,
) -> None:
    async with serving(MemoryBuilds(), auth="tokens", tokens=TOKENS, admins=["root"]) as viewer:
        async with looking(browser, **as_one("ada")) as ada:
            ada.expected = ("403",)
            await ada.page.goto(viewer.address)
            await expect(ada.page.get_by_text("No builds yet")).to_be_visible()
            await expect(ada.page.get_by_role("link", name="Dead letters")).to_have_count(0)
            answer = await ada.page.goto(f"{viewer.address}dead-letters")
            assert answer is not None
            assert answer.status == 403
            await expect(ada.page.get_by_text("Only administrators")).to_be_visible()
            await ada.leave()
        async with looking(browser, **as_one("root")) as root:
            await root.page.goto(viewer.address)
            await expect(root.page.get_by_text("No builds yet")).to_be_visible()
            await root.page.get_by_role("link", name="Dead letters").click()
            await expect(root.page.get_by_text("RABBIT2DOCKER_HUB__DEAD_LETTERS_URL,")).to_be_visible()
            await root.leave()
