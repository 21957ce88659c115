"""Events for hubs that refuse them: offered once at once, then the oldest one from time to time, in their order."""

from collections.abc import Callable

import pytest

from rabbit2docker.amqp import hub_backlog
from rabbit2docker.amqp.hub_backlog import Answer, HeldEvent, HubBacklog, HubBacklogs
from rabbit2docker.amqp.outgoing import make_message
from tests.support.waiting import eventually


def held(number: int, size: int = 10) -> HeldEvent:
    return HeldEvent(number, f"build.one.b{number}.log", lambda: make_message(b"", {}), size, may_repeat=True)


def refused_numbers(backlog: HubBacklog) -> list[int]:
    found = []
    while event := backlog.oldest_refused:
        found.append(event.number)
        backlog.remove(event)
    return found


def test_refused_events_keep_the_order_in_which_they_were_published() -> None:
    backlog = HubBacklog(1000)
    for number in (2, 0, 3, 1):
        backlog.add(held(number), is_refused=True)
    assert refused_numbers(backlog) == [0, 1, 2, 3]
    assert not backlog.is_needed


def test_the_oldest_events_are_left_out_beyond_the_limit() -> None:
    backlog = HubBacklog(35)
    for number in range(6):
        backlog.add(held(number), is_refused=number < 3)
    assert (len(backlog), backlog.missed) == (3, 3)
    assert backlog.oldest_refused is None
    assert [event.number for event in backlog.take_fresh(10)] == [3, 4, 5]
    backlog.add(held(7, size=1000), is_refused=True)
    assert backlog.oldest_refused is not None, "a single event is kept, however large it is"


def test_it_is_needed_for_an_event_that_is_on_its_way() -> None:
    backlog = HubBacklog(100)
    with backlog.expecting():
        assert backlog.is_needed
    assert not backlog.is_needed


class Hub:
    """Takes or refuses offers, and records them."""

    def __init__(self, answer: Callable[[HeldEvent, bool], Answer]) -> None:
        self.answer = answer
        self.offers: list[int] = []

    async def offer(self, event: HeldEvent, was_refused: bool) -> Answer:
        self.offers.append(event.number)
        return self.answer(event, was_refused)


@pytest.fixture(autouse=True)
def quick_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_backlog, "OFFER_PAUSES", (0.0, 0.001))


async def until_taken(backlogs: HubBacklogs) -> None:
    await eventually(lambda: "one" not in backlogs)


async def test_all_refused_events_are_offered_in_order_once_there_is_room() -> None:
    refusals = 10

    def answer(event: HeldEvent, was_refused: bool) -> Answer:
        nonlocal refusals
        refusals -= 1
        return Answer.REFUSED if refusals >= 0 else Answer.TAKEN

    hub = Hub(answer)
    backlogs = HubBacklogs(hub.offer, limit=1000)
    backlog = backlogs.open("one")
    for number in range(4):
        backlog.add(held(number), is_refused=False)
    await until_taken(backlogs)
    assert hub.offers == [0, 1, 2, 3, *[0] * 6, 0, 1, 2, 3]


async def test_new_events_are_offered_while_older_ones_are_refused() -> None:
    hub = Hub(lambda event, _: Answer.REFUSED if event.number == 0 else Answer.TAKEN)
    backlogs = HubBacklogs(hub.offer, limit=1000)
    backlog = backlogs.open("one")
    backlog.add(held(0), is_refused=True)
    backlog.add(held(1), is_refused=False)
    await eventually(lambda: {0, 1} <= set(hub.offers))
    assert len(backlog) == 1
    await backlogs.close()
    assert "one" not in backlogs


async def test_an_event_that_cannot_be_offered_again_is_missed() -> None:
    hub = Hub(lambda _, was_refused: Answer.MISSED if was_refused else Answer.REFUSED)
    backlogs = HubBacklogs(hub.offer, limit=1000)
    backlog = backlogs.open("one")
    backlog.add(held(0), is_refused=False)
    await until_taken(backlogs)
    assert (hub.offers, backlog.missed) == ([0, 0], 1)
