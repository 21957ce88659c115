"""A delivery read and checked: who wishes what, under which id, since when."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from rabbit2docker.amqp.ports import RequestMessage
from rabbit2docker_schemas.ids import BuildId, RequestId, build_id_of, routable_request_id
from rabbit2docker_schemas.requests import BuildRequest


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A build request with everything that its envelope says."""

    tenant: str
    request_id: RequestId
    request: BuildRequest
    queued_at: datetime

    @property
    def build_id(self) -> BuildId:
        """Return the id of the build that this request would start."""
        return build_id_of(self.tenant, self.request_id)


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value) if value else None


def header(received: RequestMessage, name: str) -> str | None:
    """Return a header as text."""
    return _text(received.headers.get(name))


def request_id_of(received: RequestMessage, in_body: str | None) -> RequestId:
    """Return the request id: the body's, else `ce-id`, else the message_id, else one made of the content.

    The last makes an unnamed message that is delivered again the same request. Two unnamed messages with the
    same body in the same second are taken for one, too.
    """
    if raw := in_body or header(received, "ce-id") or received.message_id:
        return routable_request_id(raw)
    seconds = received.timestamp.isoformat() if received.timestamp else ""
    return RequestId("anon-" + hashlib.sha256(seconds.encode() + received.body).hexdigest()[:32])
