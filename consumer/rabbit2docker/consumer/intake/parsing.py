"""Deliveries parsed: each one is a build request, a cancel message, or invalid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from rabbit2docker.amqp.ports import RequestMessage
from rabbit2docker.clock import utc_now
from rabbit2docker_schemas.ids import BuildId, RequestId, build_id_of, routable_request_id
from rabbit2docker_schemas.parsing import InvalidMessage, read_cancel, read_request
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import FORGED, Priority, RequestKey, parse_request_key
from rabbit2docker_schemas.tracing import Trace, read_trace

CANCEL_ACTION = "cancel"


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A build request with its envelope."""

    tenant: str
    request_id: RequestId
    request: BuildRequest
    queued_at: datetime
    trace: Trace | None = None
    is_bulk: bool = False

    @property
    def build_id(self) -> BuildId:
        """Return the id of the build that this request would start."""
        return build_id_of(self.tenant, self.request_id)


@dataclass(frozen=True, slots=True)
class IncomingCancel:
    """A cancel message with the tenant that it comes from."""

    tenant: str
    cancel: CancelRequest


@dataclass(frozen=True, slots=True)
class InvalidRequest:
    """A request that cannot be read; its sender is answered with a `rejected` event."""

    tenant: str
    request_id: RequestId
    reason: RejectReason
    message: str


@dataclass(frozen=True, slots=True)
class UndeliverableMessage:
    """A message without an event to answer it with: a bad or forged routing key, or an unreadable cancel message."""

    reason: str
    message: str


ParsedDelivery = IncomingRequest | IncomingCancel | InvalidRequest | UndeliverableMessage


def parse_delivery(
    received: RequestMessage, *, max_bytes: int, now: Callable[[], datetime] = utc_now
) -> ParsedDelivery:
    """Parse a delivery of at most `max_bytes`; a request without a timestamp counts as queued `now`."""
    if received.forged:
        # An answer would go to the tenant that did not send it.
        return UndeliverableMessage(FORGED, received.forged)
    parsed = _parse(received, max_bytes, now)
    if received.undecodable:
        return _refused_as_undecodable(parsed, received.undecodable)
    return parsed


def _refused_as_undecodable(parsed: ParsedDelivery, problem: str) -> ParsedDelivery:
    message = (
        f"Properties of the message cannot be decoded ({problem}). Correct the publisher, then send it again."
    )
    match parsed:
        case IncomingRequest(tenant, request_id):
            return InvalidRequest(tenant, request_id, RejectReason.INVALID_REQUEST, message)
        case IncomingCancel():
            return UndeliverableMessage(RejectReason.INVALID_REQUEST, message)
        case InvalidRequest() | UndeliverableMessage():
            return replace(parsed, message=f"{parsed.message} {message}")


def _parse(received: RequestMessage, max_bytes: int, now: Callable[[], datetime]) -> ParsedDelivery:
    key = parse_request_key(received.routing_key)
    if key is None:
        return UndeliverableMessage("unroutable", "The routing key is neither a request's nor a cancel's.")
    if key.action == CANCEL_ACTION:
        return _parse_cancel(received, key, max_bytes)
    return _parse_request(received, key, max_bytes, now)


def sender_of(received: RequestMessage) -> tuple[str, RequestId] | None:
    """Return tenant and request id from the envelope alone, without the body; None unless a tenant's request."""
    key = parse_request_key(received.routing_key)
    if key is None or received.forged or key.action == CANCEL_ACTION:
        return None
    return key.tenant, _request_id(received, None)


def _parse_request(
    received: RequestMessage, key: RequestKey, max_bytes: int, now: Callable[[], datetime]
) -> IncomingRequest | InvalidRequest:
    try:
        request = read_request(
            received.body,
            content_type=received.content_type,
            ce_type=_header(received, "ce-type"),
            max_bytes=max_bytes,
        )
    except InvalidMessage as error:
        request_id = _request_id(received, error.request_id)
        return InvalidRequest(key.tenant, request_id, error.reason, error.message)
    return IncomingRequest(
        tenant=key.tenant,
        request_id=_request_id(received, request.request_id),
        request=request,
        queued_at=received.timestamp or now(),
        trace=read_trace(received.headers),
        is_bulk=key.action == Priority.BULK,
    )


def _parse_cancel(
    received: RequestMessage, key: RequestKey, max_bytes: int
) -> IncomingCancel | UndeliverableMessage:
    try:
        cancel = read_cancel(
            received.body,
            content_type=received.content_type,
            ce_type=_header(received, "ce-type"),
            max_bytes=max_bytes,
        )
    except InvalidMessage as error:
        return UndeliverableMessage(error.reason, error.message)
    return IncomingCancel(key.tenant, cancel)


def _request_id(received: RequestMessage, in_body: str | None) -> RequestId:
    """Return the request id: the body's, else `ce-id`, else the message_id."""
    return routable_request_id(in_body or _header(received, "ce-id") or received.message_id)


def _header(received: RequestMessage, name: str) -> str | None:
    value = received.headers.get(name)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value) if value else None
