"""Backoff and retries: which pauses follow which failures."""

import asyncio
from functools import partial
from typing import Any

import pytest

from rabbit2docker.errors import BrokerUnavailable, TransientError
from rabbit2docker.retry import Backoff, doubling, retry, retry_forever
from rabbit2docker.tasks import restart_forever

pytestmark = pytest.mark.looptime


class Flaky:
    """A step that fails a number of times, then returns its result."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def __call__(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def test_doubling_pauses_end_with_the_longest_one() -> None:
    assert doubling(0.2, 1.0) == (0.2, 0.4, 0.8, 1.0)


def test_the_last_pause_repeats_until_a_success_resets_it() -> None:
    backoff = Backoff((1.0, 5.0), jitter=0.0)
    assert [backoff.next() for _ in range(3)] == [1.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 1.0


def test_a_pause_varies_by_its_jitter_and_no_more() -> None:
    pauses = [Backoff((10.0,)).next() for _ in range(200)]
    assert 5.0 <= min(pauses) < max(pauses) <= 15.0


def test_a_pause_is_never_shorter_than_the_server_asks_for() -> None:
    assert Backoff((0.1,)).next(at_least=7.0) == 7.0


async def test_a_step_is_repeated_until_it_succeeds() -> None:
    reported: list[str] = []
    step = Flaky(BrokerUnavailable("away"), BrokerUnavailable("still away"))
    result = await retry_forever(
        step, on=TransientError, pauses=(1.0,), report=lambda error, _: reported.append(str(error))
    )
    assert (result, reported) == ("done", ["away", "still away"])


async def test_an_error_that_does_not_pass_by_itself_is_raised_at_once() -> None:
    with pytest.raises(ValueError, match="broken"):
        await retry_forever(Flaky(ValueError("broken")), on=TransientError, pauses=(1.0,))


async def test_the_last_error_is_raised_when_the_pauses_are_used_up() -> None:
    errors = [BrokerUnavailable(str(number)) for number in range(4)]
    with pytest.raises(BrokerUnavailable, match="2"):
        await retry(Flaky(*errors), on=TransientError, pauses=(1.0, 1.0))


async def test_a_step_that_succeeds_on_the_last_try_returns_its_result() -> None:
    step = Flaky(BrokerUnavailable("0"), BrokerUnavailable("1"))
    assert await retry(step, on=TransientError, pauses=(1.0, 1.0)) == "done"


async def test_cancelling_a_retry_ends_it() -> None:
    async def fail() -> None:
        raise BrokerUnavailable("away")

    task = asyncio.create_task(retry_forever(fail, on=TransientError, pauses=(1.0,)))
    await asyncio.sleep(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("repeat", [retry_forever, partial(restart_forever, report=lambda error: None)])
async def test_a_cancellation_that_a_library_turns_into_an_error_ends_the_retries(repeat: Any) -> None:
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("refused") from None

    arguments = {"on": OSError} if repeat is retry_forever else {}
    task = asyncio.create_task(repeat(step, pauses=(3600.0,), **arguments))
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=60)
    assert done
    assert task.cancelled()
