"""CloudEvents 1.0 in binary mode on AMQP 0-9-1: attributes in `ce-…` headers, data as the JSON body.

The official AMQP binding covers AMQP 1.0 only. The header names are those of the RabbitMQ binding in the CloudEvents
SDKs, whose parsers can read these messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, assert_never

from pydantic import ValidationError

from rabbit2docker_schemas.events import (
    MODEL_OF,
    REQUEST_KINDS,
    TERMINAL_KINDS,
    Accepted,
    AnyEventData,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Kind,
    Log,
    Progress,
    Rejected,
    RequestEventData,
)
from rabbit2docker_schemas.ids import EventId, build_id_of
from rabbit2docker_schemas.routing import build_event_key, phase_key, request_event_key, waiting_key
from rabbit2docker_schemas.tracing import Trace, read_trace

CONTENT_TYPE: Final = "application/json"
STREAM_FILTER_HEADER: Final = "x-stream-filter-value"
SCHEMA_PREFIX: Final = "urn:rabbit2docker:schema:"
_TYPE_PREFIX: Final = "io.rabbit2docker."


class UnreadableEvent(ValueError):
    """A message that is not an event of this version."""


def event_type(kind: Kind) -> str:
    """Return the `ce-type` of an event kind."""
    about = "request" if kind in REQUEST_KINDS else "build"
    return f"{_TYPE_PREFIX}{about}.{kind}.v1"


def schema_name(ce_type: str) -> str:
    """Return the name of a type's JSON Schema, such as `build.completed.v1`: its file in `json/` without the suffix."""
    return ce_type.removeprefix(_TYPE_PREFIX)


def schema_id(kind: Kind) -> str:
    """Return the `ce-dataschema` of an event kind, which is the `$id` of its JSON Schema."""
    return f"{SCHEMA_PREFIX}{schema_name(event_type(kind))}"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data and its CloudEvents attributes."""

    id: EventId
    tenant: str
    time: datetime
    data: AnyEventData
    source: str = "/builds/rabbit2docker"
    trace: Trace | None = None
    """Trace context of the request that is answered or that has started the build."""
    is_indexed: bool = True
    """False for further progress of a request that waits: one event in the tenant's index is enough to find it."""

    @property
    def kind(self) -> Kind:
        """Kind of the data."""
        return self.data.kind

    @property
    def is_terminal(self) -> bool:
        """True if this event ends a build."""
        return self.kind in TERMINAL_KINDS

    @property
    def subject(self) -> str:
        """build_id of the event; request_id if the request was rejected."""
        match self.data:
            case Rejected() as data:
                return data.request_id
            case Accepted() | Progress() | Log() | Gap() | Completed() | Failed() | Cancelled() as data:
                return data.build_id
            case _:
                assert_never(self.data)

    @property
    def routing_key(self) -> str:
        """Routing key of the event on the results exchange."""
        if isinstance(self.data, RequestEventData):
            return request_event_key(self.tenant, self.data.request_id, self.kind)
        return build_event_key(self.tenant, self.data.build_id, self.kind)

    @property
    def stream_filter(self) -> str:
        """Value by which readers of the tenant's stream select the events of one build.

        Events about a request carry the id of the build that the request alone would start. A reader that knows only
        the request id finds them with it, even if the request joined another build.
        """
        if isinstance(self.data, RequestEventData):
            return build_id_of(self.tenant, self.data.request_id)
        return self.data.build_id

    @property
    def index_key(self) -> str | None:
        """Second routing key of an event that belongs into the tenant's index or phases, where the first does not lead."""
        if not self.is_indexed or not isinstance(self.data, Progress) or not self.data.is_new_phase:
            return None
        key = phase_key if self.data.attempt else waiting_key
        return key(self.tenant, self.data.build_id)

    def headers(self) -> dict[str, str]:
        """Return the AMQP headers."""
        return {
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-type": event_type(self.kind),
            "ce-source": self.source,
            "ce-subject": self.subject,
            "ce-time": self.time.isoformat(),
            "ce-dataschema": schema_id(self.kind),
            "ce-tenant": self.tenant,
            STREAM_FILTER_HEADER: self.stream_filter,
            **(self.trace.headers() if self.trace else {}),
        }

    def body(self) -> bytes:
        """Return the JSON body."""
        return self.data.model_dump_json(exclude_none=True).encode()


_KIND_OF_TYPE: Final = {event_type(kind): kind for kind in Kind}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _time(value: Any) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError("ce-time has no time zone")
    return time


def event_time(headers: Mapping[str, Any]) -> datetime | None:
    """Return the time of the event that a message carries; None if it carries none."""
    try:
        return _time(headers["ce-time"])
    except (KeyError, ValueError):
        return None


def read_event(headers: Mapping[str, Any], body: bytes) -> Event:
    """Parse a message of the results exchange.

    Raises UnreadableEvent for anything else, kinds that a later version added included; subscribers skip those.
    """
    kind = _KIND_OF_TYPE.get(_text(headers.get("ce-type")))
    if kind is None:
        raise UnreadableEvent(f"unknown ce-type {headers.get('ce-type')!r}")
    try:
        return Event(
            id=EventId(_text(headers["ce-id"])),
            tenant=_text(headers["ce-tenant"]),
            time=_time(headers["ce-time"]),
            data=MODEL_OF[kind].model_validate_json(body),
            source=_text(headers.get("ce-source", "")),
            trace=read_trace(headers),
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise UnreadableEvent(f"{kind} event cannot be read: {error}") from error
