"""A subscriber that takes times and counts."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime

import aio_pika
from aio_pika.abc import AbstractQueue

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.cloudevents import read_event
from rabbit2docker_schemas.events import Log


class Listener:
    """Lines that one subscriber has received."""

    def __init__(self) -> None:
        self.ages: list[float] = []
        """Seconds from the writing of each line to its arrival here."""
        self.lines: dict[str, set[int]] = defaultdict(set)
        """Numbers of the lines that came, by build."""
        self.repeats = 0
        """Lines that came again."""
        self.ends: set[str] = set()
        """Builds whose end came."""
        self._news = asyncio.Event()

    @property
    def count(self) -> int:
        """Number of different lines received."""
        return sum(map(len, self.lines.values()))

    async def until(self, condition: Callable[[], bool], *, seconds: float = 300) -> None:
        """Wait; raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def take_from(self, queue: AbstractQueue) -> None:
        """Listen until cancelled."""
        async with queue.iterator() as messages:
            async for message in messages:
                now = datetime.now(UTC)
                await message.ack()
                event = read_event(message.headers, message.body)
                if isinstance(event.data, Log):
                    self._note(event.data, now)
                if event.is_terminal:
                    self.ends.add(str(event.data.build_id))  # type: ignore[union-attr]
                self._news.set()

    def _note(self, log: Log, now: datetime) -> None:
        numbers = self.lines[log.build_id]
        for number, line in enumerate(log.lines, log.n):
            # What the builder says besides is not counted.
            if line.text.startswith("line "):
                self.repeats += number in numbers
                numbers.add(number)
                self.ages.append((now - line.ts).total_seconds())


@asynccontextmanager
async def listening(amqp: AmqpSettings, *, also: int = 0) -> AsyncIterator[Listener]:
    """Subscribe to all builds of a tenant; `also` is the number of further subscribers, each on its own connection."""
    async with AsyncExitStack() as stack:
        listeners = [Listener() for _ in range(also + 1)]
        for listener in listeners:
            connection = await stack.enter_async_context(await aio_pika.connect(amqp.url.get_secret_value()))
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=500)
            queue = await channel.declare_queue(exclusive=True)
            await queue.bind("builds.results", "build.default.#")
            task = asyncio.create_task(listener.take_from(queue), name="listener")
            stack.push_async_callback(_end, task)
        yield listeners[0]


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
