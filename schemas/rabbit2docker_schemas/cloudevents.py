"""CloudEvents 1.0 on AMQP 0-9-1, binary mode: attributes in `ce-…` headers, the data as JSON body.

The official AMQP binding is for AMQP 1.0; the header names here are those of the CloudEvents SDKs' RabbitMQ
binding, so that their parsers read our messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from rabbit2docker_schemas.events import MODEL_OF, REQUEST_KINDS, TERMINAL_KINDS, AnyEventData, Kind
from rabbit2docker_schemas.ids import EventId, build_id_of
from rabbit2docker_schemas.routing import build_event_key, request_event_key

CONTENT_TYPE: Final = "application/json"
STREAM_FILTER_HEADER: Final = "x-stream-filter-value"
SCHEMA_PREFIX: Final = "urn:rabbit2docker:schema:"
_TYPE_PREFIX: Final = "io.rabbit2docker."


class UnreadableEvent(ValueError):
    """A message that is no event of this version."""


def event_type(kind: Kind) -> str:
    """Return the `ce-type` of a kind."""
    about = "request" if kind in REQUEST_KINDS else "build"
    return f"{_TYPE_PREFIX}{about}.{kind}.v1"


def schema_name(ce_type: str) -> str:
    """Return the name of a type's JSON Schema, `build.completed.v1`: its file in `json/`, without the suffix."""
    return ce_type.removeprefix(_TYPE_PREFIX)


def schema_id(kind: Kind) -> str:
    """Return the `ce-dataschema` of a kind, which is the `$id` of its JSON Schema."""
    return f"{SCHEMA_PREFIX}{schema_name(event_type(kind))}"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data and what CloudEvents says about it."""

    id: EventId
    tenant: str
    time: datetime
    data: AnyEventData
    source: str = "/builds/rabbit2docker"

    @property
    def kind(self) -> Kind:
        """Return the kind of the data."""
        return self.data.kind

    @property
    def is_terminal(self) -> bool:
        """Tell whether this event ends a build."""
        return self.kind in TERMINAL_KINDS

    @property
    def subject(self) -> str:
        """Return the build_id; of a rejected request its request_id."""
        return getattr(self.data, "build_id", None) or self.data.request_id  # type: ignore[union-attr]

    @property
    def routing_key(self) -> str:
        """Return the key under which the event is published on the results exchange."""
        if self.kind in REQUEST_KINDS:
            return request_event_key(self.tenant, self.data.request_id, self.kind)  # type: ignore[union-attr]
        return build_event_key(self.tenant, self.subject, self.kind)

    @property
    def stream_filter(self) -> str:
        """Return the value by which readers of the tenant's stream skip what is about other builds.

        Events about a request carry the build id that the request itself would start, so that somebody who
        only knows the request id finds them, also when the request joined another build.
        """
        request_id = getattr(self.data, "request_id", None)
        return build_id_of(self.tenant, request_id) if request_id else self.subject

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
        raise ValueError("ce-time has no zone")
    return time


def read_event(headers: Mapping[str, Any], body: bytes) -> Event:
    """Read a message of the results exchange; raises UnreadableEvent for anything that is no event of ours.

    A kind that a later version has added is unreadable too: subscribers pass over what they cannot read.
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
        )
    except (KeyError, ValueError, ValidationError) as error:
        raise UnreadableEvent(f"{kind} event that cannot be read: {error}") from error
