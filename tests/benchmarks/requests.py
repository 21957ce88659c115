"""From a published request to the start of its builder."""

import asyncio
import json
from datetime import UTC, datetime

from tests.benchmarks.measuring import Report, percentiles, running_consumer
from tests.support.consumer import Consumer, a_request
from tests.support.waiting import eventually

ONE_BY_ONE, AT_ONCE, ROUNDS = 30, 30, 3


def _started(consumer: Consumer) -> dict[str, datetime]:
    found = {}
    for record in consumer.records():
        process = record.parent / "process.json"
        if process.exists():
            name = json.loads(record.read_text())["request_id"]
            found[name] = datetime.fromisoformat(json.loads(process.read_text())["started_at"])
    return found


async def measure() -> Report:
    """Measure requests one after the other, and many at once. The commit is given: no ref has to be resolved."""
    report = Report("requests", {"one_by_one": ONE_BY_ONE, "at_once": AT_ONCE, "rounds": ROUNDS})
    async with running_consumer() as (consumer, _, requester):
        asked: dict[str, datetime] = {}

        async def ask(name: str) -> None:
            request = a_request(name, lines=1)
            asked[name] = datetime.now(UTC)
            await requester.request(request)

        async def seconds(names: list[str]) -> list[float]:
            await eventually(lambda: set(names) <= _started(consumer).keys())
            started = _started(consumer)
            return [(started[name] - asked[name]).total_seconds() for name in names]

        single = []
        for number in range(ONE_BY_ONE):
            await ask(f"one-{number}")
            single += await seconds([f"one-{number}"])
            await asyncio.sleep(0.3)  # until the builder has ended: it shares two cores with us
        together = []
        for turn in range(ROUNDS):
            names = [f"many-{turn}-{number}" for number in range(AT_ONCE)]
            await asyncio.gather(*[ask(name) for name in names])
            together += await seconds(names)
            await asyncio.sleep(5)
    report.results = {"one_by_one_seconds": percentiles(single), "at_once_seconds": percentiles(together)}
    report.at_most("p50 seconds, one by one", report.results["one_by_one_seconds"]["p50"], 0.150)
    return report
