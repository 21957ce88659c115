"""The promises to subscribers, checked on all events that a broker has seen."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

import aio_pika
from jsonschema import Draft202012Validator, FormatChecker

from rabbit2docker.amqp.stream import reading
from rabbit2docker.client.resequencer import Deduplicator
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas import documents
from rabbit2docker_schemas.cloudevents import Event, read_event, schema_name
from rabbit2docker_schemas.events import Accepted, Gap, Log
from rabbit2docker_schemas.routing import tenant_stream


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

    Waits for the stream, which a broker that has just started may not have yet.
    """
    while True:
        with suppress(aio_pika.exceptions.ChannelNotFoundEntity):
            return await _captured(amqp, tenant)
        await asyncio.sleep(0.5)


async def _captured(amqp: AmqpSettings, tenant: str) -> list[Event]:
    events: list[Event] = []
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        async with reading(channel, tenant_stream(tenant), offset="first") as incoming:
            patience, began = 2.0, datetime.now(UTC)
            while True:
                try:
                    message = await asyncio.wait_for(incoming.get(), patience)
                except TimeoutError:
                    break
                assert message is not None
                patience = 0.5
                events.append(check_message(message))
                await message.ack()
                if events[-1].time > began:
                    break  # a running build publishes without end
    return events


def lines_of(events: Iterable[Event]) -> dict[tuple[str, int], list[str]]:
    """Return the log of each attempt after deduplication; fails if a line is missing."""
    merged = Deduplicator()
    logs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for event in events:
        for new in merged.take(event):
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
