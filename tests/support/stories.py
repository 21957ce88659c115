"""A request's events, received as a hub receives them: submit, follow, and collect the whole story."""

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
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE, hub_bindings
from tests.support.promises import check_message, ends_of, lines_of


@dataclass
class Story:
    """All events of a request and its build."""

    events: list[Event]

    @property
    def answer(self) -> Accepted | Rejected:
        answers = {
            event.id: event.data for event in self.events if isinstance(event.data, Accepted | Rejected)
        }
        # A replica that follows the build may publish it once more, with the same id.
        [answer] = answers.values()
        return answer

    @property
    def accepted(self) -> Accepted:
        assert isinstance(self.answer, Accepted), self.answer
        return self.answer

    @property
    def end(self) -> Completed | Failed | Cancelled | Rejected:
        """Return the build's one terminal event, or the rejection."""
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
        """Return the lines of the last attempt, each once."""
        logs = lines_of(self.events)
        return logs[max(logs)] if logs else []

    @property
    def progress(self) -> list[Progress]:
        return [event.data for event in self.events if isinstance(event.data, Progress)]


class Asked:
    """A submitted request."""

    def __init__(self, request_id: str, settings: Settings) -> None:
        self._settings = settings
        self._incoming: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        self.request_id = request_id
        self.events: list[Event] = []
        # It may wait, and say so, before it is accepted.
        self._builds: set[str] = {build_id_of("default", request_id)}

    async def on_message(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Queue a message until `until` reads it."""
        self._incoming.put_nowait(message)

    async def until(self, matches: Callable[[Event], bool]) -> Event:
        """Read up to the event that matches, and check each against the contract."""
        while True:
            event = check_message(await self._incoming.get())
            if isinstance(event.data, Accepted | Rejected):
                if event.data.request_id != self.request_id:
                    continue
                self._builds.add(event.subject)
            elif event.subject not in self._builds:
                continue
            self.events.append(event)
            if matches(event):
                return event

    async def until_line(self, text: str) -> Event:
        """Read up to a log line that contains the text."""
        return await self.until(
            lambda event: (
                any(text in line.text for line in getattr(event.data, "lines", None) or ())
                if event.kind == "log"
                else False
            )
        )

    async def story(self) -> Story:
        """Read to the end and return all events."""
        await self.until(lambda event: event.is_terminal or isinstance(event.data, Rejected))
        return Story(self.events)

    async def cancel(self) -> None:
        async with publishing(self._settings, wait_seconds=180) as publisher:
            request = CancelRequest(request_id=self.request_id, requester="ada")
            await RequestPublisher(publisher, "default").cancel(request)


@asynccontextmanager
async def asked(
    amqp: AmqpSettings, spec: str, *, provider: str = "git", is_checked: bool = True, **options: Any
) -> AsyncIterator[Asked]:
    """Bind a queue as a hub does, then submit a request; without `is_checked`, as programs do that do not use our library."""
    settings = Settings(amqp=amqp)
    await declare.declare(settings)
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("", exclusive=True)
        for key in hub_bindings("default"):
            await queue.bind(RESULTS_EXCHANGE, key)
        request_id = uuid.uuid4().hex
        make = BuildRequest if is_checked else BuildRequest.model_construct
        request = make(provider=provider, spec=spec, request_id=request_id, **options)
        pending = Asked(request_id, settings)
        await queue.consume(pending.on_message, no_ack=True)
        async with publishing(settings, wait_seconds=180) as publisher:
            await RequestPublisher(publisher, "default").request(request)
        yield pending


async def build(amqp: AmqpSettings, spec: str, **options: Any) -> Story:
    """Submit a request and return its events up to the end."""
    async with asked(amqp, spec, **options) as pending:
        return await pending.story()
