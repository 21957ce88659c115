"""The explanation of each reason of dead letters: its cause, and what an operator can do. No I/O.

Command line, pages, API and reference all read this one table.
"""

from dataclasses import dataclass
from typing import Final

from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.routing import FORGED

UNROUTABLE: Final = "unroutable"
"""Reason of a message whose routing key leads to no queue."""
UNROUTABLE_MESSAGE: Final = "No queue takes messages with this routing key."


@dataclass(frozen=True, slots=True)
class Explanation:
    """The cause of a dead letter, and the next step."""

    cause: str
    action: str


_FIX_PUBLISHER: Final = "Fix the program that sent it, then discard the letter: it would be refused again."

EXPLANATIONS: Final[dict[str, Explanation]] = {
    RejectReason.INVALID_JSON: Explanation("Its body is not JSON.", _FIX_PUBLISHER),
    RejectReason.INVALID_REQUEST: Explanation(
        "Its body is JSON but no request: a field is missing or has a wrong value.", _FIX_PUBLISHER
    ),
    RejectReason.TOO_LARGE: Explanation("Its body is larger than a request may be.", _FIX_PUBLISHER),
    RejectReason.UNSUPPORTED_TYPE: Explanation(
        "Its content type or CloudEvents type is one that this version does not read.",
        "Upgrade the service if the sender is newer, then publish the letter again. Else fix the sender and discard it.",
    ),
    UNROUTABLE: Explanation(
        "Its routing key is neither that of a request nor that of a cancel message.", _FIX_PUBLISHER
    ),
    FORGED: Explanation(
        "Another than the tenant in its routing key may have sent it. It is never published again.",
        "Find out which user sent it, then discard the letter. An honest sender must publish to the exchange of its "
        "tenant, with its own user.",
    ),
    RejectReason.NOT_ALLOWED: Explanation(
        "The operator's settings forbid this repository.",
        "Discard the letter, or allow the repository (`providers.allowed_specs`, `providers.banned_specs`) and publish "
        "it again.",
    ),
    RejectReason.REFUSED_URL: Explanation(
        "The repository's address is one that requests may not use, such as a private network's.",
        "Discard the letter, or allow the address (`providers.allow_private_addresses`) and publish it again.",
    ),
    RejectReason.CREDENTIALS_REFUSED: Explanation(
        "The repository's host does not accept the tenant's credentials: expired or withdrawn.",
        "Renew the credentials in `tenants.<name>.git`, check them with `rabbit2docker check repository`, then publish "
        "the letter again.",
    ),
    RejectReason.HOST_KEY_REFUSED: Explanation(
        "The SSH host of the repository has another key than the recorded one.",
        "Find out whether the host has a new key. If so, record it in the tenant's `known_hosts_file`, then publish the "
        "letter again.",
    ),
    RejectReason.REGISTRY_DENIED: Explanation(
        "The registry refuses the configured credentials, or demands some and none are configured.",
        "Correct the registry's credentials, check them with `rabbit2docker check registry`, then publish the letter "
        "again.",
    ),
    RejectReason.UNAVAILABLE: Explanation(
        "The registry, the repository's host, the engine or the cluster stayed away for longer than requests wait.",
        "Check that it is back, then publish the letter again.",
    ),
    RejectReason.EXPIRED: Explanation(
        "RabbitMQ dropped it: it waited longer than its `expiration` or the operator's limit for waiting messages.",
        "Check that consumers run and have free slots, then publish the letter again, or discard it if it came too late.",
    ),
    RejectReason.DELIVERY_LIMIT: Explanation(
        "RabbitMQ dropped it: the service took it about 20 times and failed each time before it could settle it.",
        "Look for crashes in the log of the service, mend their cause, then publish the letter again.",
    ),
    "maxlen": Explanation(
        "RabbitMQ dropped it: its queue was full.",
        "Let the queue drain or raise its limit, then publish the letters again, at a limited rate.",
    ),
    RejectReason.INTERNAL: Explanation(
        "A defect of the service, which its log describes at the time of the letter.",
        "Report the defect. Publish the letter again after an upgrade.",
    ),
}
_UNKNOWN: Final = Explanation(
    "This version knows no such reason: a newer or an older service has set it.",
    "Read the message and the log of the service. Publish the letter again once the cause is gone.",
)


def explain(reason: str) -> Explanation:
    """Return the explanation of a reason, whatever it is."""
    return EXPLANATIONS.get(reason, _UNKNOWN)
