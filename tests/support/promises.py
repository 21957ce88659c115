"""The promises to subscribers, checked on all events that a broker has seen."""

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError
from jsonschema import Draft202012Validator, FormatChecker

from rabbit2docker.amqp.stream import Messages, reading
from rabbit2docker.client.resequencer import Deduplicator
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas import documents
from rabbit2docker_schemas.cloudevents import Event, read_event, schema_name
from rabbit2docker_schemas.events import Accepted, Gap, Log, Rejected
from rabbit2docker_schemas.routing import tenant_stream

_MARKER = "test-marker-"
_AFTERWARDS_SECONDS = 0.5
"""Leaves time for an event that must not follow, such as a second end."""


@cache
def _validators() -> dict[str, Draft202012Validator]:
    return {
        name: Draft202012Validator(schema, format_checker=FormatChecker())
        for name, schema in documents.json_schemas().items()
    }


def check_message(message: aio_pika.abc.AbstractIncomingMessage) -> Event:
    """Validate a message against the committed contract and return its event."""
    headers = dict(message.headers)
    event = read_event(headers, message.body)
    validator = _validators()[schema_name(str(headers["ce-type"]))]
    validator.validate(json.loads(message.body))
    assert message.routing_key == event.routing_key
    assert message.content_type == "application/json"
    assert message.correlation_id == event.subject
    assert message.delivery_mode == 2
    assert message.message_id
    assert message.message_id != event.id
    return event


async def captured(amqp: AmqpSettings, tenant: str = "default") -> list[Event]:
    """Return every event of a tenant's stream in order, each message validated; repetitions included.

    Reads up to a marker message that it publishes itself; readers skip it as any unknown message.
    """
    return await _read_stream(amqp, tenant, _up_to_now)


async def until_ended(
    amqp: AmqpSettings, count: int = 1, *, tenant: str = "default", seconds: float = 180
) -> list[Event]:
    """Wait until `count` builds have ended, then return what `captured` returns."""
    return await _captured_after(
        amqp, lambda event: event.subject if event.is_terminal else None, count, tenant, seconds
    )


async def until_answered(
    amqp: AmqpSettings, count: int = 1, *, tenant: str = "default", seconds: float = 180
) -> list[Event]:
    """Wait until `count` requests have been answered, then return what `captured` returns."""
    return await _captured_after(
        amqp,
        lambda event: object() if isinstance(event.data, Accepted | Rejected) else None,
        count,
        tenant,
        seconds,
    )


async def _captured_after(
    amqp: AmqpSettings, key: Callable[[Event], object], count: int, tenant: str, seconds: float
) -> list[Event]:
    async def follow(channel: AbstractChannel, stream: str) -> list[Event]:
        found: set[object] = set()
        async with reading(channel, stream, offset="first") as incoming:
            while len(found) < count:
                message = await _next(incoming)
                if not _is_marker(message) and (value := key(check_message(message))):
                    found.add(value)
        return []

    async with asyncio.timeout(seconds):
        await _read_stream(amqp, tenant, follow)
        await asyncio.sleep(_AFTERWARDS_SECONDS)
        return await captured(amqp, tenant)


async def _read_stream(
    amqp: AmqpSettings, tenant: str, read: Callable[[AbstractChannel, str], Awaitable[list[Event]]]
) -> list[Event]:
    """Read the stream; start again if the connection is lost, or if a restarted broker has no stream yet."""
    while True:
        with suppress(AMQPError, ConnectionError, EOFError, TimeoutError):
            async with await aio_pika.connect(amqp.url.get_secret_value()) as connection:
                return await read(await connection.channel(), tenant_stream(tenant))
        await asyncio.sleep(0.5)


async def _up_to_now(channel: AbstractChannel, stream: str) -> list[Event]:
    marker = aio_pika.Message(b"", message_id=f"{_MARKER}{uuid.uuid4()}")
    # Confirmed, and returned where there is no such stream.
    await channel.default_exchange.publish(marker, stream, mandatory=True, timeout=30)
    events = []
    async with reading(channel, stream, offset="first") as incoming:
        while (message := await _next(incoming)).message_id != marker.message_id:
            if not _is_marker(message):
                events.append(check_message(message))
    return events


async def _next(incoming: Messages) -> AbstractIncomingMessage:
    message = await incoming.get()
    if message is None:
        raise ConnectionError("the channel has closed")
    await message.ack()
    return message


def _is_marker(message: AbstractIncomingMessage) -> bool:
    return bool(message.message_id and message.message_id.startswith(_MARKER))


def lines_of(events: Iterable[Event]) -> dict[tuple[str, int], list[str]]:
    """Return the log of each attempt after deduplication; fails if a line is missing."""
    merged = Deduplicator()
    logs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for event in events:
        for new in merged.push(event):
            assert not isinstance(new.data, Gap), f"lines are missing: {new.data}"
            if isinstance(new.data, Log):
                log = logs[new.data.build_id, new.data.attempt]
                assert new.data.n == len(log)
                log += [line.text for line in new.data.lines]
    return logs


def ends_of(events: Iterable[Event]) -> dict[str, Event]:
    """Return the end of each build; fails if a build has two different ends."""
    ends: dict[str, Event] = {}
    for event in events:
        if event.is_terminal:
            first = ends.setdefault(event.subject, event)
            assert event.id == first.id
            assert event.data == first.data, "two ends that differ"
    return ends


def check_promises(events: list[Event], requests: Iterable[str]) -> dict[str, Any]:
    """Check that each request was accepted and its build ended once, and return the ends by request id."""
    builds = {
        event.data.request_id: event.data.build_id for event in events if isinstance(event.data, Accepted)
    }
    ends = ends_of(events)
    found: dict[str, Any] = {}
    for request_id in requests:
        assert request_id in builds, f"{request_id} was never accepted"
        assert builds[request_id] in ends, f"the build of {request_id} never ended"
        found[request_id] = ends[builds[request_id]].data
    lines_of(events)
    assert all(event.time <= datetime.now(UTC) for event in events)
    return found
