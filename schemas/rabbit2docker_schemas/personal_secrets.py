"""Secrets of Kubernetes with a person's own credentials for one request, as a hub creates them."""

import hashlib
from typing import Any, Final

SECRET_TYPE: Final = "rabbit2docker.io/personal-credentials"
TENANT: Final = "rabbit2docker.io/tenant"
"""Annotation with the tenant of the request."""
REQUEST_ID: Final = "rabbit2docker.io/request-id"
"""Annotation with the id of the request."""


def personal_secret(
    request_id: str, *, tenant: str, host: str, token: str, user: str | None = None
) -> dict[str, Any]:
    """Return the Secret with a login for a git host, which serves the request of this id and no other.

    Create it in `kubernetes.personal_namespace` before the request is published; its name is the field `credentials` of the
    request. Without `user`, the token is an access token, which the API of the host gets, too.
    """
    digest = hashlib.sha256(f"{tenant}/{request_id}".encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"personal-{digest[:40]}",
            "annotations": {TENANT: tenant, REQUEST_ID: request_id},
        },
        "immutable": True,
        "type": SECRET_TYPE,
        "stringData": {"host": host, "token": token, **({"user": user} if user else {})},
    }
