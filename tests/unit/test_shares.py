"""Fair shares: who is served next, and what is said to those who wait."""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.intake.places import AGAIN_PER_TICK, STARTING_SECONDS, due_places, place_text
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting_line import (
    GHOST_SECONDS,
    OVERTAKEN_SECONDS,
    WaitingLine,
    WaitingRequest,
)
from rabbit2docker.settings import Settings, ShareSettings
from rabbit2docker_schemas.routing import Lane, waiting_queue


@dataclass
class Site:
    """Queues, slots and builds that all take the same time."""

    settings: Settings
    slots: int = 4
    queues: dict[str, deque[str]] = field(default_factory=dict)
    running: deque[tuple[str, str]] = field(default_factory=deque)
    started: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shares = Shares(self.settings.shares)
        self.line = WaitingLine(self.settings, self.shares)

    def request(self, tenant: str, requester: str, count: int = 1, priority: str = "interactive") -> None:
        for number in range(count):
            name = f"{tenant} {requester} {priority} {number}"
            running = sum(one == (tenant, requester) for one in self.running)
            queue = self.line.queue_for(name, tenant, requester, priority, running=running)
            self.line.queued(name, tenant, requester, queue)
            self.queues.setdefault(queue, deque()).append(name)

    def live(self) -> Counter[str]:
        return Counter(tenant for tenant, _ in self.running)

    def start(self) -> str | None:
        """Let the oldest build end if all slots are taken, and start the next."""
        if len(self.running) == self.slots:
            self.running.popleft()
        waiting = [queue for queue, requests in self.queues.items() if requests]
        queue = self.shares.choose(waiting, self.live(), self.slots, with_bulk=True)
        if queue is None:
            return None
        name = self.queues[queue].popleft()
        self.shares.count(queue, waiting)
        self.line.taken(name, queue)
        self.running.append((name.split()[0], name.split()[1]))
        self.started.append(name)
        return name

    def until(self, wanted: str, count: int) -> int:
        """Start builds until `count` of those that begin so have started; return how many started in all."""
        before = len(self.started)
        while sum(name.startswith(wanted) for name in self.started[before:]) < count:
            assert self.start() is not None
        return len(self.started) - before


def site(slots: int = 4, **shares: object) -> Site:
    settings = Settings(tenants=["a", "b", "c"], shares=ShareSettings.model_validate(shares))
    return Site(settings, slots)


@pytest.mark.parametrize("slots", [1, 2, 4, 10])
def test_a_tenant_with_few_requests_does_not_wait_behind_one_with_many(slots: int) -> None:
    here = site(slots)
    for person in range(50):
        here.request("a", f"p{person}", 10)
    for _ in range(slots):
        here.start()
    for person in range(5):
        here.request("b", f"q{person}")
    assert here.until("b", 5) <= 1.5 * 2 * 5, "its own share is every second build"


def test_weights_decide_how_many_of_the_builds_a_tenant_gets() -> None:
    for slots in (1, 3, 10):
        here = site(slots, weights={"a": 3})
        here.request("a", "script", 400)
        here.request("b", "script", 400)
        for _ in range(200):
            here.start()
        counts = Counter(name.split()[0] for name in here.started)
        assert 140 <= counts["a"] <= 160, (slots, counts)


def test_forty_people_do_not_wait_behind_a_script_of_their_tenant_and_it_goes_on() -> None:
    here = site()
    here.request("a", "script", 500)
    for _ in range(20):
        here.start()
    for person in range(40):
        here.request("a", f"p{person}")
    assert here.until("a p", 40) <= 40 * 4 / 3 + 4
    assert sum("script" in name for name in here.started[20:]) >= 10
    script = [int(name.split()[-1]) for name in here.started if "script" in name]
    assert script == sorted(script), "a requester's own requests keep their order"


def test_bulk_waits_for_everything_else_and_is_built_in_the_end() -> None:
    here = site()
    here.request("a", "replay", 20, "bulk")
    here.request("b", "replay", 20, "bulk")
    here.request("a", "script", 20)
    here.request("c", "ada", 5)
    kinds = []
    while name := here.start():
        kinds.append(name.split()[2])
    assert kinds == ["interactive"] * 25 + ["bulk"] * 40
    assert {name.split()[0] for name in here.started[25:29]} == {"a", "b"}


def test_a_tenant_never_has_more_builds_than_its_limit() -> None:
    here = site(4, max_builds={"a": 2})
    here.request("a", "ada", 4)
    assert [here.start() is not None for _ in range(3)] == [True, True, False]
    here.request("b", "bob")
    assert here.start() == "b bob interactive 0"


REQUESTS = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from("xyz"),
    st.integers(1, 8),
    st.sampled_from(["interactive", "bulk"]),
)


@given(st.lists(REQUESTS, max_size=12), st.integers(1, 6))
def test_everything_is_started_once_in_the_order_that_was_forecast(
    requests: list[tuple[str, str, int, str]], slots: int
) -> None:
    here = site(slots)
    for number, (tenant, requester, count, priority) in enumerate(requests):
        here.request(tenant, f"{requester}{number}", count, priority)
    expected = [request.build_id for request in here.line.in_order({}, slots)]
    total = sum(count for _, _, count, _ in requests)
    while here.start():
        pass
    assert len(set(here.started)) == len(here.started) == total == len(expected)
    assert not here.line.counts()
    assert sorted(expected) == sorted(here.started)
    if slots == 1:
        assert expected == here.started


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


QUEUE = waiting_queue("a", Lane.INTERACTIVE)


def line(clock: Clock) -> WaitingLine:
    settings = Settings(tenants=["a"])
    return WaitingLine(settings, Shares(settings.shares), clock)


def test_replicas_know_the_same_line_in_any_order_of_a_return() -> None:
    clock = Clock()
    here, there = line(clock), line(clock)
    entries = [here.queued("one", "a", "ada", QUEUE), here.queued("two", "a", "bob", QUEUE)]
    entries.append(here.announced({"one": 0, "two": 1}))
    clock.time += 1
    entries.append(here.taken("one", QUEUE))
    clock.time += 1
    entries.append(here.queued("one", "a", "ada", QUEUE))  # back from the retry ladder
    for entry in (*entries, {"later": "version"}, entries[3], entries[0]):
        there.apply(entry)
    assert here.in_order({}, 1) == there.in_order({}, 1)
    assert [(each.build_id, each.announced) for each in there.in_order({}, 1)] == [("two", 1), ("one", None)]


def test_a_request_that_is_taken_before_its_entry_has_come_does_not_stay_in_the_line() -> None:
    clock = Clock()
    here, there = line(clock), line(clock)
    queued = here.queued("one", "a", "ada", QUEUE)
    clock.time += 1
    taken = there.taken("one", QUEUE)
    for entry in (queued, taken):
        here.apply(entry)
        there.apply(entry)
    assert "one" not in here
    assert "one" not in there


def test_a_request_whose_replica_died_silently_leaves_the_line_once_its_queue_is_empty() -> None:
    clock = Clock()
    here = line(clock)
    here.queued("lost", "a", "ada", QUEUE)
    here.mark_empty(QUEUE)
    assert "lost" in here
    clock.time += GHOST_SECONDS + 1
    here.queued("new", "a", "ada", QUEUE)
    here.mark_empty(QUEUE)
    assert "lost" not in here
    assert "new" in here


def test_a_request_that_others_have_overtaken_by_a_minute_leaves_the_line() -> None:
    clock = Clock()
    here = line(clock)
    for name in ("lost", "next"):
        here.queued(name, "a", "ada", QUEUE)
    clock.time += OVERTAKEN_SECONDS + 1
    for name in ("later", "last"):
        here.queued(name, "a", "ada", QUEUE)
    here.taken("next", QUEUE)
    assert "lost" in here
    here.taken("later", QUEUE)
    assert [each.build_id for each in here.in_order({}, 1)] == ["last"]


def test_a_request_that_is_taken_after_the_clock_was_set_back_leaves_the_line_everywhere() -> None:
    clock = Clock()
    here, there = line(clock), line(clock)
    there.apply(here.queued("one", "a", "ada", QUEUE))
    clock.time -= 3600
    there.apply(here.taken("one", QUEUE))
    assert "one" not in here
    assert "one" not in there


def test_a_second_copy_follows_the_first() -> None:
    here = line(Clock())
    queues = {}
    for number in range(5):
        queues[f"r{number}"] = here.queue_for(f"r{number}", "a", "ada", "interactive", running=0)
        here.queued(f"r{number}", "a", "ada", queues[f"r{number}"])
    assert len(set(queues.values())) == 2
    for name, queue in queues.items():
        assert here.queue_for(name, "a", "ada", "interactive", running=3) == queue


def test_the_pace_is_that_of_starts_while_others_waited() -> None:
    clock = Clock()
    here = line(clock)
    for number in range(20):
        here.queued(f"{number}", "a", "ada", QUEUE)
    assert here.seconds_per_start() is None
    for number in range(10):
        here.taken(f"{number}", QUEUE)
        clock.time += 12
    assert here.seconds_per_start() == 12


class TestPlaces:
    def test_a_place_is_announced_at_once_and_again_when_it_has_halved_or_after_a_time(self) -> None:
        waiting = [WaitingRequest(f"{number}", "a", "", QUEUE, 1000.0) for number in range(8)]
        assert due_places(waiting, 1000.1) == []
        assert [ahead for _, ahead in due_places(waiting, 1001.0, free=2)] == list(range(2, 8))
        assert len(due_places(waiting, 1000.1 + STARTING_SECONDS, free=2)) == 8
        assert [ahead for _, ahead in due_places(waiting, 1001.0)] == list(range(8))
        for ahead, request in enumerate(waiting):
            request.announced, request.announced_at = ahead, 1001.0
        assert due_places(waiting, 1002.0) == []
        assert [(each.build_id, ahead) for each, ahead in due_places(waiting[1:], 1002.0)] == [
            ("1", 0),
            ("2", 1),
        ]
        assert len(due_places(waiting[1:], 1040.0)) == AGAIN_PER_TICK

    def test_a_thousand_requests_cost_a_bounded_number_of_messages(self) -> None:
        waiting = [WaitingRequest(f"{number}", "a", "", QUEUE, 1000.0) for number in range(1000)]
        now, further = 1001.0, 0
        for _ in range(400):
            for request, ahead in due_places(waiting, now):
                further += request.announced is not None
                request.announced, request.announced_at = ahead, now
            now += 0.25
            waiting.pop(0)
        assert further <= 400 * AGAIN_PER_TICK
        assert all(request.announced is not None for request in waiting)

    def test_places_are_said_in_words(self) -> None:
        assert place_text(0, None) == "Waiting for a free build slot: this build is the next."
        assert place_text(1, None) == "Waiting for a free build slot: 1 build is before this one."
        assert place_text(2, None) == "Waiting for a free build slot: 2 builds are before this one."
