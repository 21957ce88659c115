"""Secrets with a person's own credentials, which a hub creates for single requests in a namespace for nothing else."""

import base64
import binascii
import json
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from pydantic import TypeAdapter, ValidationError

from rabbit2docker.consumer.credentials import TOKEN_USER, Login, RequestKey
from rabbit2docker.consumer.executors.kubernetes.client import (
    PAGE_OBJECTS,
    ApiClient,
    ApiStatusError,
    as_unavailable,
)
from rabbit2docker.consumer.executors.kubernetes.models import OwnedList
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import CredentialsRefused
from rabbit2docker.settings.tenants import GitHost
from rabbit2docker_schemas.personal_secrets import REQUEST_ID, SECRET_TYPE, TENANT

log = structlog.get_logger()

KEPT_FOR: Final = timedelta(hours=24)
"""Age at which a Secret is deleted whose request has not ended, or came to nothing."""

_HOST: Final[TypeAdapter[str]] = TypeAdapter(GitHost)


class PersonalSecrets:
    """Reads and deletes them; their hubs can create them and nothing else."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        """Use the executor's client."""
        self._api = api
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"

    async def read(self, key: RequestKey) -> tuple[str, Login]:
        """Return the host and the login for it. Raises CredentialsRefused and ExecutorUnavailable."""
        found = await self._get(key)
        if found is None:
            raise _refused(
                key, "there is no such Secret for this request: it was deleted, or is another request's"
            )
        try:
            host, user, token = (_text(found, name) for name in ("host", "user", "token"))
            login = Login(user or TOKEN_USER, token, is_token=not user)
            return _HOST.validate_python(host), login
        except (ValueError, TypeError, binascii.Error, ValidationError) as error:
            raise _refused(key, "its host, user or token is missing, or holds unusual characters") from error

    async def discard(self, key: RequestKey) -> None:
        """Delete the Secret of a request. Raises ExecutorUnavailable."""
        if (found := await self._get(key)) is not None:
            await self._delete(key.reference, found["metadata"]["uid"])

    async def sweep(self, now: datetime) -> None:
        """Delete Secrets that were left behind. Raises ExecutorUnavailable and ApiStatusError."""
        listing = self._api.pages(
            self._secrets,
            OwnedList.model_validate_json,
            priority=CallPriority.CLEAN,
            size=PAGE_OBJECTS,
            query={"fieldSelector": f"type={SECRET_TYPE}"},
        )
        async with aclosing(listing) as pages:
            async for metadata in (found.metadata async for page in pages for found in page.items):
                if metadata.creation_timestamp and now - metadata.creation_timestamp > KEPT_FOR:
                    log.info("unused object deleted", resource="secrets", name=metadata.name)
                    await self._delete(metadata.name, metadata.uid)

    async def _get(self, key: RequestKey) -> dict[str, Any] | None:
        """Return the Secret; None if there is none, or it belongs to another tenant or request."""
        try:
            data = await self._api.call(
                "GET", f"{self._secrets}/{key.reference}", priority=CallPriority.CREATE
            )
        except ApiStatusError as error:
            if error.status == 404:
                return None
            raise as_unavailable(error) from error
        found: dict[str, Any] = json.loads(data)
        annotations = found["metadata"].get("annotations") or {}
        is_own = (annotations.get(TENANT), annotations.get(REQUEST_ID)) == (key.tenant, key.request_id)
        return found if is_own and found.get("type") == SECRET_TYPE else None

    async def _delete(self, name: str, uid: str) -> None:
        body = {"preconditions": {"uid": uid}}
        try:
            await self._api.call("DELETE", f"{self._secrets}/{name}", priority=CallPriority.CLEAN, body=body)
        except ApiStatusError as error:
            if error.status not in (404, 409):
                raise as_unavailable(error) from error


def _text(secret: dict[str, Any], name: str) -> str:
    """Return a value that may stand on a line of git's; empty if there is none. Raises ValueError."""
    text = base64.b64decode((secret.get("data") or {}).get(name, ""), validate=True).decode().strip()
    if not text.isprintable() or (not text and name != "user"):
        raise ValueError(f"{name} cannot be used")
    return text


def _refused(key: RequestKey, reason: str) -> CredentialsRefused:
    return CredentialsRefused(
        f"The requester's own credentials {key.reference} cannot be used: {reason}. The hub must create them anew for a new "
        "request."
    )
