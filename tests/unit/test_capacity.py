"""Requests are taken for free slots alone, from the queue whose turn it is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.amqp.ports import Delivery, RequestSource, WaitingLog
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.executors.base import AttemptState
from rabbit2docker.consumer.intake import capacity as capacity_module
from rabbit2docker.consumer.intake.capacity import Capacity, may_take_bulk
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.consumer.ownership import Ownership, Slots
from rabbit2docker.settings import LimitSettings, Settings
from tests.support.records import an_attempt
from tests.support.waiting import eventually

PEOPLE, LATER, BULK = (f"builds.waiting.lab.{lane}" for lane in ("interactive", "later", "bulk"))


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 10), st.integers(0, 10))
def test_bulk_never_takes_the_last_slot_nor_a_reserved_one_while_something_is_built(
    free: int, share: int, reserved: int, in_hand: int
) -> None:
    slots = Slots(min(free, share), share, reserved)
    if may_take_bulk(slots, in_hand):
        kept = max(1, reserved)
        assert slots.free - in_hand > kept or (slots.free == share <= kept and not in_hand)


def test_bulk_gets_a_single_slot_while_nothing_is_built() -> None:
    assert may_take_bulk(Slots(1, 1, 1), 0)
    assert not may_take_bulk(Slots(0, 1, 1), 0)
    assert not may_take_bulk(Slots(1, 1, 1), 1)


class Message:
    def __init__(self, queue: str) -> None:
        self.queue = queue


class Queues:
    """RabbitMQ's queues in memory, and the free slots."""

    def __init__(self, **waiting: int) -> None:
        self.waiting = {f"builds.waiting.lab.{lane}": count for lane, count in waiting.items()}
        self.looks: list[str] = []
        self.started: list[str] = []
        self.free = 0
        settings = Settings(tenants=["lab"], limits=LimitSettings(concurrent_builds=4))
        shares = Shares(settings.shares)
        self.line = WaitingLine(settings, shares)
        source, ownership = cast("RequestSource", self), cast("Ownership", self)
        attempts = AttemptCache(cast("Any", None))
        self.problem = ""
        log = cast("WaitingLog", self)
        self.capacity = Capacity(source, attempts, ownership, self.line, shares, log, settings)

    async def set_prefetch(self, queue: str, count: int) -> None:
        assert not queue.startswith("builds.waiting"), "messages would be held until a slot is free"

    async def take(self, queue: str) -> Delivery | None:
        self.looks.append(queue)
        if not self.waiting.get(queue):
            return None
        self.waiting[queue] -= 1
        return cast("Delivery", Message(queue))

    def subscribe(self, listener: object) -> None: ...

    def slots(self, limits: LimitSettings, attempts: object) -> Slots:
        return Slots(self.free, limits.concurrent_builds, limits.reserved_for_interactive)

    def start(self, delivery: Delivery) -> None:
        queue = cast("Message", delivery).queue
        self.started.append(queue)
        self.capacity.take(queue)

    async def free_slots(self, count: int) -> None:
        """Free so many slots, and let the builds of what was in hand take others."""
        self.free = count
        for queue in self.started:
            self.capacity.release(queue)
        self.started = []
        self.capacity._changed.set()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity_module, "BLIND_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(capacity_module, "LOOK_SECONDS", 0.02)


@pytest.fixture
async def running() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("often")
async def test_no_more_requests_are_taken_than_slots_are_free_and_bulk_comes_last(
    running: list[asyncio.Task[None]],
) -> None:
    queues = Queues(interactive=2, later=1, bulk=5)
    running.append(asyncio.create_task(queues.capacity.run(queues.start)))
    await asyncio.sleep(0.05)
    assert queues.looks == []
    assert queues.capacity.is_paused
    await queues.free_slots(2)
    await eventually(lambda: queues.started == [PEOPLE, PEOPLE])
    await queues.free_slots(4)
    await eventually(lambda: queues.started == [LATER, BULK, BULK])  # and one slot stays free for people
    looks = len(queues.looks)
    await asyncio.sleep(0.05)
    assert set(queues.looks[looks:]) <= {
        PEOPLE,
        LATER,
        "builds.waiting._.interactive",
        "builds.waiting._.later",
    }
    assert queues.started == [LATER, BULK, BULK]


async def test_a_request_that_another_replica_has_put_into_a_queue_is_taken_at_once(
    running: list[asyncio.Task[None]],
) -> None:
    queues = Queues()
    queues.free = 1
    running.append(asyncio.create_task(queues.capacity.run(queues.start)))
    await eventually(lambda: len(queues.looks) >= 4)
    queues.waiting[PEOPLE] = 1
    other = WaitingLine(Settings(tenants=["lab"]), Shares(Settings().shares))
    queues.line.apply(other.queued("build", "lab", "ada", PEOPLE))
    await eventually(lambda: queues.started == [PEOPLE])


@pytest.mark.looptime
async def test_a_request_that_is_named_before_it_is_in_its_queue_is_looked_for_again_at_once(
    running: list[asyncio.Task[None]],
) -> None:
    queues = Queues()
    queues.free = 1
    running.append(asyncio.create_task(queues.capacity.run(queues.start)))
    await asyncio.sleep(0.5)
    other = WaitingLine(Settings(tenants=["lab"]), Shares(Settings().shares))
    for number in range(3):
        queues.line.apply(other.queued(f"build-{number}", "lab", "ada", PEOPLE))
        await asyncio.sleep(0.1)
        assert queues.started == []
        queues.waiting[PEOPLE] = 1
        await asyncio.sleep(0.2)
        assert queues.started == [PEOPLE]
        queues.line.apply(other.taken(f"build-{number}", PEOPLE))
        await queues.free_slots(1)
    looks = len(queues.looks)
    await asyncio.sleep(5)
    assert queues.looks[looks:].count(PEOPLE) <= 1, "no queue is looked into without a reason"


@pytest.mark.looptime
async def test_a_request_that_never_gets_into_its_queue_is_looked_for_less_and_less(
    running: list[asyncio.Task[None]],
) -> None:
    queues = Queues()
    queues.free = 1
    running.append(asyncio.create_task(queues.capacity.run(queues.start)))
    other = WaitingLine(Settings(tenants=["lab"]), Shares(Settings().shares))
    queues.line.apply(other.queued("lost", "lab", "ada", PEOPLE))
    await asyncio.sleep(20)
    assert queues.looks.count(PEOPLE) < 60


async def test_only_changes_of_slots_make_it_count_again(running: list[asyncio.Task[None]]) -> None:
    """Most changes of attempts are of how far they are."""
    queues = Queues(interactive=0)
    counts: list[int] = []
    original = queues.slots

    def slots(limits: LimitSettings, attempts: object) -> Slots:
        counts.append(len(cast("list[object]", attempts)))
        return original(limits, attempts)

    queues.slots = slots  # type: ignore[method-assign]
    running.append(asyncio.create_task(queues.capacity.run(queues.start)))
    await eventually(lambda: counts)
    attempts = queues.capacity._attempts
    attempts.put(an_attempt("one"))
    await eventually(lambda: counts[-1] == 1)
    for _ in range(3):
        attempts.put(an_attempt("one"))
        assert not queues.capacity._changed.is_set()
    attempts.put(an_attempt("one", state=AttemptState.ENDED))
    assert queues.capacity._changed.is_set()
    await eventually(lambda: counts[-1] == 0)
