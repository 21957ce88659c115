"""What a request leads to, as a hub is told: ask, listen, and look at the whole story."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Cancelled, Completed, Failed, Progress, Rejected
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE, hub_bindings
from tests.support.promises import check_message, ends_of, lines_of


@dataclass
class Story:
    """What a request has led to, as a hub is told."""

    events: list[Event]

    @property
    def answer(self) -> Accepted | Rejected:
        answers = [event.data for event in self.events if isinstance(event.data, Accepted | Rejected)]
        assert len(answers) == 1
        return answers[0]

    @property
    def accepted(self) -> Accepted:
        assert isinstance(self.answer, Accepted), self.answer
        return self.answer

    @property
    def end(self) -> Completed | Failed | Cancelled | Rejected:
        """Return the end of the build, which is the only one, or the refusal."""
        if isinstance(self.answer, Rejected):
            return self.answer
        [end] = ends_of(self.events).values()
        assert isinstance(end.data, Completed | Failed | Cancelled)
        return end.data

    @property
    def completed(self) -> Completed:
        assert isinstance(self.end, Completed), (self.end, self.log)
        return self.end

    @property
    def failed(self) -> Failed:
        assert isinstance(self.end, Failed), (self.end, self.log)
        return self.end

    @property
    def rejected(self) -> Rejected:
        assert isinstance(self.end, Rejected), self.end
        return self.end

    @property
    def log(self) -> list[str]:
        """Return the lines of the last attempt; each is there once."""
        logs = lines_of(self.events)
        return logs[max(logs)] if logs else []

    @property
    def progress(self) -> list[Progress]:
        return [event.data for event in self.events if isinstance(event.data, Progress)]


class Asked:
    """A request that is under way."""

    def __init__(self, request_id: str, settings: Settings) -> None:
        self._settings = settings
        self._incoming: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        self.request_id = request_id
        self.events: list[Event] = []
        self._builds: set[str] = set()

    async def hear(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Take a message in, whether somebody waits for it or not."""
        self._incoming.put_nowait(message)

    async def until(self, is_it: Callable[[Event], bool]) -> Event:
        """Take events up to the one that is meant, each checked against the contract."""
        while True:
            event = check_message(await self._incoming.get())
            if isinstance(event.data, Accepted | Rejected):
                if event.data.request_id != self.request_id:
                    continue
                self._builds.add(event.subject)
            elif event.subject not in self._builds:
                continue
            self.events.append(event)
            if is_it(event):
                return event

    async def until_line(self, text: str) -> Event:
        """Take events up to a log line that holds the text."""
        return await self.until(
            lambda event: (
                any(text in line.text for line in getattr(event.data, "lines", None) or ())
                if event.kind == "log"
                else False
            )
        )

    async def story(self) -> Story:
        """Return everything up to the end."""
        await self.until(lambda event: event.is_terminal or isinstance(event.data, Rejected))
        return Story(self.events)

    async def cancel(self) -> None:
        async with publishing(self._settings, wait_seconds=20) as publisher:
            wish = CancelRequest(request_id=self.request_id, requester="ada")
            await RequestPublisher(publisher, "default").cancel(wish)


@asynccontextmanager
async def asked(amqp: AmqpSettings, spec: str, **options: Any) -> AsyncIterator[Asked]:
    """Listen as a hub does, then ask."""
    settings = Settings(amqp=amqp)
    await declare.declare(settings)
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("", exclusive=True)
        for key in hub_bindings("default"):
            await queue.bind(RESULTS_EXCHANGE, key)
        request_id = uuid.uuid4().hex
        request = BuildRequest(provider="git", spec=spec, request_id=request_id, **options)
        running_count = Asked(request_id, settings)
        await queue.consume(running_count.hear, no_ack=True)
        async with publishing(settings, wait_seconds=60) as publisher:
            await RequestPublisher(publisher, "default").request(request)
        yield running_count


async def build(amqp: AmqpSettings, spec: str, **options: Any) -> Story:
    """Ask and wait for the end."""
    async with asked(amqp, spec, **options) as running_count:
        return await running_count.story()
