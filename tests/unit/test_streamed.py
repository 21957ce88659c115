"""No answer from the store lags what a stream has said, and none waits for anything else."""

import asyncio
from datetime import UTC, datetime

import pytest

from rabbit2docker.hub.store.models import Build, BuildState, LogExtent
from rabbit2docker.hub.web.streamed import LOOK_SECONDS, WAIT_SECONDS, Streamed
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.client_events import BUILD, accepted, completed, lines, progress, rejected

pytestmark = pytest.mark.looptime

BUILDING, COMPLETED, QUEUED, REJECTED = (
    BuildState.BUILDING,
    BuildState.COMPLETED,
    BuildState.QUEUED,
    BuildState.REJECTED,
)


def stored(state: BuildState, lines: int = 0) -> Build:
    logs = [LogExtent(attempt=1, lines=lines, kept=lines)] if lines else []
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Build(
        id=BUILD, state=state, provider="gh", spec="o/r/HEAD", request_id="r", requested_at=moment, logs=logs
    )


class Store:
    """A store that gets to a state after some seconds."""

    def __init__(self, before: Build, after: Build, seconds: float) -> None:
        self._before, self._after, self._seconds = before, after, seconds

    async def build(self) -> Build:
        is_late = asyncio.get_running_loop().time() >= self._seconds
        return self._after if is_late else self._before


async def answer(
    said: list[Event], before: Build, after: Build, *, seconds: float = 3.0, lines: bool = False
) -> tuple[Build, float]:
    """Return the answer, and how long it took."""
    streamed, store = Streamed(), Store(before, after, seconds)
    for event in said:
        streamed.note(event)
    found = await streamed.caught_up(await store.build(), store.build, lines=lines)
    return found, asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        (completed(), stored(BUILDING), stored(COMPLETED)),
        (rejected(), stored(QUEUED), stored(REJECTED)),
        (accepted(), stored(QUEUED), stored(BUILDING)),
    ],
)
async def test_an_answer_waits_for_the_end_and_the_acceptance_that_a_stream_has_said(
    said: Event, before: Build, after: Build
) -> None:
    found, seconds = await answer([said, progress("late viewer")], before, after)
    assert found == after
    assert seconds < 3.0 + 2 * LOOK_SECONDS


async def test_a_log_waits_for_the_lines_that_a_stream_has_said() -> None:
    said, before, after = [lines(0, 400)], stored(BUILDING, 114), stored(BUILDING, 400)
    assert (await answer(said, before, after, lines=True))[0] == after


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ([], BUILDING),
        ([accepted(), progress("one"), lines(0, 9)], BUILDING),
        ([rejected(reason=RejectReason.REQUEST_ID_REUSED)], BUILDING),
        ([completed()], COMPLETED),
    ],
)
async def test_an_answer_waits_for_nothing_else(said: list[Event], state: BuildState) -> None:
    assert (await answer(said, stored(state), stored(state))) == (stored(state), 0.0)


async def test_a_store_that_does_not_catch_up_is_not_waited_for_indefinitely() -> None:
    found, seconds = await answer([completed()], stored(BUILDING), stored(COMPLETED), seconds=1000.0)
    assert found.state is BUILDING
    assert seconds < WAIT_SECONDS + 2 * LOOK_SECONDS
