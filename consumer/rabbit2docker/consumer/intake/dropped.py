"""Requests that RabbitMQ dropped from their queue: the answer for their senders. Without I/O."""

from typing import Final

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

_ANSWERS: Final = {
    "expired": (
        RejectReason.EXPIRED,
        "The request waited longer than the operator of RabbitMQ allows. Send it again.",
    ),
    "delivery_limit": (
        RejectReason.DELIVERY_LIMIT,
        "The request was taken many times, and each time the service failed before it could answer. Inform the operator, "
        "or try again later.",
    ),
    "maxlen": (
        RejectReason.UNAVAILABLE,
        "RabbitMQ dropped the request because too many were waiting. Send it again later.",
    ),
}


def rejection_of_dropped(reason: str) -> RequestRejected:
    """Return the rejection for RabbitMQ's `reason`, as its header `x-death` names it."""
    default = (RejectReason.UNAVAILABLE, f"RabbitMQ dropped the request ({reason}). Send it again later.")
    code, message = _ANSWERS.get(reason, default)
    return RequestRejected(code, message, retryable=True)
