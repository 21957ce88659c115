"""The AsyncAPI 3.0.0 document: servers, channels, operations and messages around the schemas."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rabbit2docker_schemas import examples, ids
from rabbit2docker_schemas.cloudevents import CONTENT_TYPE, SCHEMA_PREFIX, event_type, schema_name
from rabbit2docker_schemas.events import MODEL_OF, REQUEST_KINDS, Kind
from rabbit2docker_schemas.parsing import MAX_BYTES
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE, BuildRequest, CancelRequest, Message
from rabbit2docker_schemas.routing import (
    BULK_QUEUE,
    CANCEL_QUEUE,
    DEAD_QUEUE,
    REQUEST_LOG_STREAM,
    REQUESTS_EXCHANGE,
    REQUESTS_QUEUE,
    RESULTS_EXCHANGE,
    TENANT_PATTERN,
    Priority,
    build_event_key,
    cancel_key,
    entry_exchange,
    hub_queue,
    request_event_key,
    request_key,
    tenant_index,
    tenant_phases,
    tenant_stream,
)
from rabbit2docker_schemas.tracing import PARENT_HEADER, STATE_HEADER

BINDING: Final = "0.3.0"
_TEXT: Final = {"type": "string"}
_DESCRIPTION: Final = (
    "Image builds requested and reported through RabbitMQ. Publish a request, subscribe to the results exchange, and "
    "read one `accepted` or `rejected` event for the request, then `progress`, `log` and `gap` events, and exactly "
    "one of `completed`, `failed`, `cancelled` for the build. Ids are deterministic: an event that is delivered twice "
    "has the same `ce-id`; drop the second one. Ignore fields, values and kinds that you do not know."
)
_PARAMETERS: Final[Mapping[str, dict[str, Any]]] = {
    "tenant": {"description": f"Owner of requests and results; `{TENANT_PATTERN}`."},
    "priority": {
        "description": "`interactive` while a person waits, `bulk` for everything else.",
        "enum": [str(priority) for priority in Priority],
    },
    "request_id": {"description": f"Id of the request; `{ids.REQUEST_ID_PATTERN}`."},
    "build_id": {"description": "Id of the build, from the `accepted` event."},
    "kind": {"description": "Kind of the event; the last word of `ce-type` before its version."},
    "hub": {"description": "Name of the hub."},
}


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}


def _message_name(ce_type: str) -> str:
    """Return the message name of a type, such as `build.completed.v1`; it is also the name of the schema."""
    return schema_name(ce_type)


_TRACE: Final = {
    PARENT_HEADER: _TEXT | {"description": "W3C trace context of the request, absent without one."},
    STATE_HEADER: _TEXT | {"description": "The same, of the request's vendor."},
}


def _event_headers(kind: Kind) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "ce-specversion": {"const": "1.0"},
        "ce-id": _TEXT | {"description": "The same each time the event is published."},
        "ce-type": {"const": event_type(kind)},
        "ce-source": _TEXT | {"description": "The installation: `/builds/<instance>`."},
        "ce-subject": _TEXT | {"description": "The build_id; of a rejected request its request_id."},
        "ce-time": _TEXT | {"format": "date-time"},
        "ce-dataschema": {"const": f"{SCHEMA_PREFIX}{schema_name(event_type(kind))}"},
        "ce-tenant": _TEXT | {"pattern": TENANT_PATTERN},
    }
    stream_filter = _TEXT | {
        "description": "Filter value for readers of the tenant's stream: the build_id that the request alone would start."
    }
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties | {"x-stream-filter-value": stream_filter} | _TRACE,
    }


def _input_headers(ce_type: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "CloudEvents attributes are optional.",
        "properties": {
            "ce-id": _TEXT | {"description": "Serves as request_id if the body has none."},
            "ce-type": {"const": ce_type},
            **_TRACE,
        },
    }


def _input(ce_type: str, model: type[Message], example: Message) -> dict[str, Any]:
    return {
        "name": ce_type,
        "title": model.__name__,
        "summary": (model.__doc__ or "").splitlines()[0],
        "description": f"At most {MAX_BYTES} bytes of JSON; unknown fields are ignored.",
        "contentType": CONTENT_TYPE,
        "headers": _input_headers(ce_type),
        "payload": _ref("components", "schemas", model.__name__),
        "bindings": {"amqp": {"messageType": ce_type, "bindingVersion": BINDING}},
        "examples": [
            {"name": "example", "payload": example.model_dump(mode="json", exclude_defaults=True)},
        ],
    }


def _event(kind: Kind) -> dict[str, Any]:
    model = MODEL_OF[kind]
    example = examples.EVENTS[kind]
    subject = "request_id" if kind is Kind.REJECTED else "build_id"
    return {
        "name": event_type(kind),
        "title": model.__name__,
        "summary": (model.__doc__ or "").splitlines()[0],
        "contentType": CONTENT_TYPE,
        "headers": _event_headers(kind),
        "payload": _ref("components", "schemas", model.__name__),
        "correlationId": {
            "description": "The AMQP property correlation_id has the same value.",
            "location": f"$message.payload#/{subject}",
        },
        "bindings": {"amqp": {"messageType": event_type(kind), "bindingVersion": BINDING}},
        "examples": [
            {
                "name": "example",
                "headers": example.headers(),
                "payload": example.data.model_dump(mode="json", exclude_none=True),
            }
        ],
    }


def _messages() -> dict[str, dict[str, Any]]:
    return {
        _message_name(REQUEST_TYPE): _input(REQUEST_TYPE, BuildRequest, examples.REQUEST),
        _message_name(CANCEL_TYPE): _input(CANCEL_TYPE, CancelRequest, examples.CANCEL),
        **{_message_name(event_type(kind)): _event(kind) for kind in Kind},
    }


def _channel(address: str, about: str, types: Iterable[str], amqp: dict[str, Any]) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": about,
        "messages": {name: _ref("components", "messages", name) for name in map(_message_name, types)},
        "bindings": {"amqp": {**amqp, "bindingVersion": BINDING}},
    }
    if parameters := {name: about for name, about in _PARAMETERS.items() if f"{{{name}}}" in address}:
        channel["parameters"] = parameters
    return channel


def _keyed(exchange: str, address: str, about: str, types: Iterable[str]) -> dict[str, Any]:
    topic = {"name": exchange, "type": "topic", "durable": True, "autoDelete": False, "vhost": "/"}
    return _channel(address, about, types, {"is": "routingKey", "exchange": topic})


def _queued(name: str, about: str, types: Iterable[str]) -> dict[str, Any]:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return _channel(name, about, types, {"is": "queue", "queue": queue})


def _channels() -> dict[str, Any]:
    of_requests = [event_type(kind) for kind in Kind if kind in REQUEST_KINDS]
    of_builds = [event_type(kind) for kind in Kind if kind not in REQUEST_KINDS]
    return {
        "requests": _keyed(
            REQUESTS_EXCHANGE,
            request_key("{tenant}", "{priority}"),
            "Requests to the service. The tenant is taken from this routing key only. One of several tenants publishes "
            f"to {entry_exchange('{tenant}')} instead, with the same keys.",
            [REQUEST_TYPE],
        ),
        "cancels": _keyed(
            REQUESTS_EXCHANGE,
            cancel_key("{tenant}"),
            "Cancel messages to the service, published as requests are.",
            [CANCEL_TYPE],
        ),
        "request_events": _keyed(
            RESULTS_EXCHANGE,
            request_event_key("{tenant}", "{request_id}", "{kind}"),
            "The answer to a request: accepted or rejected.",
            of_requests,
        ),
        "build_events": _keyed(
            RESULTS_EXCHANGE,
            build_event_key("{tenant}", "{build_id}", "{kind}"),
            "Progress and log of a build, and its single terminal event.",
            of_builds,
        ),
        "interactive_queue": _queued(REQUESTS_QUEUE, "Requests for which a person waits.", [REQUEST_TYPE]),
        "bulk_queue": _queued(BULK_QUEUE, "Requests that use the remaining capacity.", [REQUEST_TYPE]),
        "cancel_queue": _queued(CANCEL_QUEUE, "Cancel messages.", [CANCEL_TYPE]),
        "dead_letters": _queued(
            DEAD_QUEUE,
            "Messages that could not be carried out, unchanged, with the header `r2d-reason`.",
            [REQUEST_TYPE, CANCEL_TYPE],
        ),
        "request_log": _queued(
            REQUEST_LOG_STREAM, "A stream of all requests, from which replay takes them.", [REQUEST_TYPE]
        ),
        "hub_events": _queued(
            hub_queue("{hub}"),
            "A hub's durable queue, which keeps the events of a tenant while the hub is away.",
            [*of_requests, *of_builds],
        ),
        "tenant_history": _queued(
            tenant_stream("{tenant}"),
            "A stream with the event history of a tenant.",
            [*of_requests, *of_builds],
        ),
        "tenant_index": _queued(
            tenant_index("{tenant}"),
            "A small stream with what begins and ends a tenant's builds, and the progress of requests that wait.",
            [
                *of_requests,
                *(type_ for type_ in of_builds if type_ not in map(event_type, (Kind.LOG, Kind.GAP))),
            ],
        ),
        "tenant_phases": _queued(
            tenant_phases("{tenant}"),
            "A small stream with the phases and waits of a tenant's builds.",
            [event_type(Kind.PROGRESS)],
        ),
    }


def _operation(action: str, channel: str, about: str, amqp: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": _ref("channels", channel),
        "summary": about,
        "bindings": {"amqp": {**amqp, "bindingVersion": BINDING}},
    }


def _operations() -> dict[str, Any]:
    consumed = {"ack": True}
    published = {"deliveryMode": 2, "timestamp": True, "mandatory": False}
    return {
        "receive_requests": _operation("receive", "requests", "Answers every request.", consumed),
        "receive_cancels": _operation(
            "receive", "cancels", "Ends the build or withdraws the request.", consumed
        ),
        "answer_requests": _operation(
            "send", "request_events", "Reports accepted or rejected, once.", published
        ),
        "report_builds": _operation(
            "send", "build_events", "Reports progress, log lines and exactly one end.", published
        ),
        "dead_letter_messages": _operation(
            "send", "dead_letters", "Keeps failed messages for the operator.", {"deliveryMode": 2}
        ),
    }


def document(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document; `schemas` are the JSON Schemas of the models, by name."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "rabbit2docker",
            "version": "1.0.0",
            "description": _DESCRIPTION,
            "license": {"name": "BSD-3-Clause", "url": "https://opensource.org/license/bsd-3-clause"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "rabbitmq": {
                "host": "rabbitmq.example.org:5671",
                "protocol": "amqps",
                "protocolVersion": "0-9-1",
                "description": "RabbitMQ 3.12 or newer.",
                "security": [{"type": "userPassword", "description": "One user per tenant."}],
            }
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {"schemas": dict(schemas), "messages": _messages()},
    }
