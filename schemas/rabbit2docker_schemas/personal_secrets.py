"""Secrets of Kubernetes with a person's own credentials for one request, as a hub creates them."""

import hashlib
import re
import secrets
from typing import Any, Final

SECRET_TYPE: Final = "rabbit2docker.io/personal-credentials"
TENANT: Final = "rabbit2docker.io/tenant"
"""Annotation with the tenant of the request."""
REQUEST_ID: Final = "rabbit2docker.io/request-id"
"""Annotation with the id of the request."""

NAME_PATTERN: Final = r"^personal-[0-9a-f]{40}$"
"""Form of the names of these Secrets. It is not that of any token, so that none passes for a reference."""
_REQUEST_ID: Final = re.compile(r"person-([0-9a-f]{32})-([0-9a-f]{40})")


def personal_request_id(requester: str) -> str:
    """Return a new request id for a person, which the JSON API of a hub takes from this person, or in their name."""
    nonce = secrets.token_hex(16)
    return f"person-{nonce}-{_sealed(nonce, requester)}"


def is_request_id_of(request_id: str, requester: str) -> bool:
    """Return whether `personal_request_id` has made this id for this person."""
    found = _REQUEST_ID.fullmatch(request_id)
    return found is not None and found[2] == _sealed(found[1], requester)


def _sealed(nonce: str, requester: str) -> str:
    return hashlib.sha256(f"{nonce}/{requester}".encode()).hexdigest()[:40]


def personal_secret_name(tenant: str, request_id: str) -> str:
    """Return the name of the Secret of a request: its field `credentials`."""
    return f"personal-{hashlib.sha256(f'{tenant}/{request_id}'.encode()).hexdigest()[:40]}"


def personal_secret(
    request_id: str, *, tenant: str, host: str, token: str, user: str | None = None
) -> dict[str, Any]:
    """Return the Secret with a login for a git host, which serves the request of this id and no other.

    Create it in `kubernetes.personal_namespace` before the request is published; its name is the field `credentials` of the
    request. Without `user`, the token is an access token, which the API of the host gets, too.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": personal_secret_name(tenant, request_id),
            "annotations": {TENANT: tenant, REQUEST_ID: request_id},
        },
        "immutable": True,
        "type": SECRET_TYPE,
        "stringData": {"host": host, "token": token, **({"user": user} if user else {})},
    }
