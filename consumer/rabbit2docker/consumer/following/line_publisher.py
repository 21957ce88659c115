"""Publishes the lines of one attempt, and the progress that they show."""

import asyncio
from collections import deque
from itertools import pairwise

from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import AttemptSpec, BuilderLine, MissingLines
from rabbit2docker.consumer.following.progress import ProgressReader, ProgressUpdate, as_log_events
from rabbit2docker.tasks import root_cause
from rabbit2docker_schemas.events import Gap


class LinePublisher:
    """The position in a log up to which RabbitMQ has confirmed it, and the way on. Methods raise BrokerUnavailable."""

    def __init__(
        self, spec: AttemptSpec, events: EventPublisher, *, after: int, tail_lines: int, max_bytes: int
    ) -> None:
        """Start after the line numbered `after`; an event has about `max_bytes` of text at most."""
        self._spec = spec
        self._events = events
        self._max_bytes = max_bytes
        self._reader = ProgressReader(spec.build_id, spec.attempt)
        self.confirmed = after
        """Number of the last line that is confirmed, with the progress that comes before it."""
        self.tail: deque[str] = deque(maxlen=tail_lines)
        """The last lines."""

    async def publish_gap(self, missing: MissingLines) -> None:
        """Publish that lines are lost."""
        gap = Gap(
            build_id=self._spec.build_id,
            attempt=self._spec.attempt,
            first=missing.first,
            last=missing.last,
            message="These lines were lost where the build ran.",
        )
        await self._events.publish_gap(self._spec.tenant, gap, generation=self._spec.generation)
        self.confirmed = missing.last

    async def publish(self, lines: list[BuilderLine]) -> int:
        """Publish lines and the progress they show, in order; return the characters of the lines."""
        updates = self._reader.read(lines)
        cuts = [*(update.line - lines[0].n for update in updates), len(lines)]
        await self._publish_log(lines[: cuts[0]])
        for update, (start, end) in zip(updates, pairwise(cuts), strict=True):
            await self._publish_together(update, lines[start:end])
        self.tail.extend(line.text for line in lines)
        return sum(len(line.text) for line in lines)

    async def _publish_together(self, update: ProgressUpdate, lines: list[BuilderLine]) -> None:
        """Send progress and the lines after it without a wait between them.

        No two events of one kind are under way at once: sent again after a failure, they would change places.
        """
        confirmed = self.confirmed
        try:
            async with asyncio.TaskGroup() as sending:
                sending.create_task(self._publish_progress(update))
                sending.create_task(self._publish_log(lines))
        except (BaseExceptionGroup, asyncio.CancelledError) as error:
            self.confirmed = confirmed  # the next follower publishes both
            raise root_cause(error) from None

    async def _publish_progress(self, update: ProgressUpdate) -> None:
        spec = self._spec
        await self._events.publish_progress(
            spec.tenant,
            update.data,
            about=f"line{update.line}",
            generation=spec.generation,
            trace=spec.trace,
        )

    async def _publish_log(self, lines: list[BuilderLine]) -> None:
        spec = self._spec
        for event in as_log_events(spec.build_id, spec.attempt, lines, max_bytes=self._max_bytes):
            await self._events.publish_log(spec.tenant, event, generation=spec.generation)
            self.confirmed = event.n + len(event.lines) - 1
