"""The pages of batches in a real Chromium, on a real database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from rabbit2docker_schemas.batches import BatchName
from rabbit2docker_schemas.reasons import RejectReason
from tests.contract.test_binder_stream import BUILD, completed, failed, rejected
from tests.hub.test_pages import small_targets_are_none
from tests.support.browser import PATIENCE_MS, PHONE, a_browser, looking
from tests.support.hub_api import happened
from tests.support.hub_service import MemoryBuilds, a_store, serving

pytestmark = [pytest.mark.hub, pytest.mark.timeout(300)]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


async def test_a_batch_is_one_thing_with_its_progress_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    batch = BatchName("prebuild-20260131t120000-0a1b2c", 4)
    async with (
        a_store(tmp_path) as store,
        looking(browser, viewport=PHONE, has_touch=True, is_mobile=True) as phone,
        phone.at(serving(MemoryBuilds(), store)) as viewer,
    ):
        page = phone.page
        await page.goto(viewer.address)
        await page.get_by_role("link", name="Batches").click()
        await expect(page.get_by_text("No batches yet")).to_be_visible()

        await store.put(happened(batch.request_id(1), *BUILD, completed(attempt=1)))
        await store.put(happened(batch.request_id(2), *BUILD, failed()))
        await store.put(happened(batch.request_id(3), rejected(RejectReason.NOT_ALLOWED, "x" * 300)))
        counts = "3 of 4 requests ended: 1 completed, 1 failed, 1 rejected, 1 not answered yet."
        await expect(page.locator("article.batch")).to_contain_text(counts)
        assert not await phone.scrolls_sideways()
        await small_targets_are_none(page)

        await page.get_by_role("link", name="Prebuild of").click()
        rows = page.locator("#requests tbody tr")
        await expect(rows).to_have_count(3)
        await expect(rows.filter(has_text="Rejected")).to_contain_text(batch.request_id(3))
        await expect(page.get_by_role("progressbar")).to_have_js_property("value", 3)
        assert not await phone.scrolls_sideways()
        await small_targets_are_none(page)
        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Report (CSV)").click()
        report = (await (await downloading.value).path()).read_text()
        assert report.count(batch.id) == 3

        # The page follows it to its end.
        await store.put(happened(batch.request_id(4), *BUILD, completed(attempt=1)))
        await expect(page.locator("#summary")).to_contain_text("4 of 4 requests ended")
        await rows.filter(has_text="Failed").get_by_role("link").click()
        await expect(page.locator("#state")).to_have_text("Failed")
