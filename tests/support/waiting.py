"""Waits for conditions. The limits are generous: they end a test that hangs, they are no measurement."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
PATIENCE = 180.0


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, seconds: float = PATIENCE) -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], *, seconds: float = PATIENCE) -> T: ...
async def eventually(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
    """Return the condition's value once it is true; raises AssertionError with the last one."""
    give_up = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < give_up, f"still {value!r} after {seconds} seconds"
        await asyncio.sleep(0.05)


def eventually_blocking(condition: Callable[[], T], *, seconds: float = PATIENCE) -> T:
    """Do the same outside of an event loop."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"still {value!r} after {seconds} seconds"
        time.sleep(0.1)
    return value
