"""The wait of a tenant with few requests beside one with hundreds, on a real RabbitMQ, against its own share of the slots.

`python -m tests.benchmarks fairness`.
"""

import json
from datetime import UTC, datetime

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import Settings, TenantSettings
from rabbit2docker_schemas.events import Accepted
from tests.benchmarks.measuring import Report, percentiles, running_consumer
from tests.support.consumer import a_request
from tests.support.promises import captured
from tests.support.waiting import eventually

SLOTS = 4
MANY, FEW = 500, 5
ROUNDS = 3
BUILD_SECONDS = 3.0
TENANTS = {"many": TenantSettings(), "few": TenantSettings()}


async def measure() -> Report:
    """Measure the waits of `few` alone with half of the slots, then beside `many` with all of them."""
    parameters = {"slots": SLOTS, "many": MANY, "few": FEW, "build_seconds": BUILD_SECONDS, "rounds": ROUNDS}
    report = Report("fairness", parameters)
    alone, beside = [], []
    for _ in range(ROUNDS):
        alone += await _waits(slots=SLOTS // 2, others=0)
        beside += await _waits(slots=SLOTS, others=MANY)
    report.results = {
        "alone on its share, seconds": percentiles(alone),
        "beside the other, seconds": percentiles(beside),
    }
    share, found = (report.results[name]["p95"] for name in report.results)
    report.at_most("p95 wait beside 500 requests, share of that alone", found / share, 1.5)
    return report


async def _waits(*, slots: int, others: int) -> list[float]:
    """Return the seconds from each request of `few` to its acceptance, with builds of `many`, or its own, in all slots."""
    variables = {
        "RABBIT2DOCKER_TENANTS": json.dumps({name: {} for name in TENANTS}),
        "RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS": str(slots),
    }
    async with running_consumer(**variables) as (consumer, settings, _):
        ours = Settings(amqp=settings.amqp, tenants=TENANTS)
        await declare.declare(ours)
        async with publishing(ours, wait_seconds=60) as publisher:
            busy = RequestPublisher(publisher, "many")
            for number in range(max(others, slots)):
                await busy.request(a_request(f"many-{number}", lines=1, every=BUILD_SECONDS))
            await eventually(lambda: len(consumer.records()) >= slots)
            requester, asked = RequestPublisher(publisher, "few"), {}
            for number in range(FEW):
                name = f"few-{number}"
                await requester.request(a_request(name, lines=1, every=BUILD_SECONDS))
                asked[name] = datetime.now(UTC)

            async def answers() -> dict[str, datetime] | None:
                events = await captured(ours.amqp, "few")
                found = {e.data.request_id: e.time for e in events if isinstance(e.data, Accepted)}
                return found if len(found) == FEW else None

            accepted = await eventually(answers)
            assert accepted is not None
        return [(accepted[name] - moment).total_seconds() for name, moment in asked.items()]
