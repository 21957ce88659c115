"""ConfigMap and Secrets that build pods mount: the builder's program, and git credentials of tenants."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.executors.fetch_access import FetchAccess, fetch_files
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import (
    MERGE_PATCH,
    ApiClient,
    ApiStatusError,
    as_unavailable,
)
from rabbit2docker.consumer.executors.kubernetes.containers import GIT_DIR
from rabbit2docker.consumer.executors.kubernetes.models import Event, Manifest, Pod
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings


class BuildConfigObjects:
    """Creates the objects that a build pod mounts, before the pod. All methods raise ExecutorUnavailable."""

    def __init__(
        self, api: ApiClient, settings: Settings, builder_text: str, credentials: GitCredentials
    ) -> None:
        """Name the ConfigMap by a hash of the builder's program, so that versions of it coexist."""
        self._api = api
        self._settings = settings
        self._credentials = credentials
        self._builder_text = builder_text
        digest = hashlib.sha256(builder_text.encode()).hexdigest()
        self.builder_map = f"rabbit2docker-builder-{digest[:12]}"
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"
        self._builder_exists = False
        self._builder_lock = asyncio.Lock()

    async def ensure_builder(self) -> None:
        """Create the ConfigMap with the builder's program, once per process."""
        async with self._builder_lock:
            if not self._builder_exists:
                body = manifest.builder_config_map(self._settings, self.builder_map, self._builder_text)
                await self._create("configmaps", body)
                self._builder_exists = True

    async def restore_builder(self, events: Sequence[Event]) -> None:
        """Create the ConfigMap again if a pod's last event says that it is missing: all later pods need it, too."""
        message = (events[-1].message or "") if events else ""
        if self.builder_map in message and "not found" in message:
            self._builder_exists = False
            await self.ensure_builder()

    async def ensure_credentials(self, spec: AttemptSpec) -> FetchAccess | None:
        """Create the Secret with the tenant's git credentials and return its content; None if the tenant has none."""
        access = await fetch_files(self._credentials, spec, GIT_DIR)
        if access is not None:
            await self._create("secrets", manifest.credentials_secret(self._settings, spec, access.files))
        return access

    async def set_owner(self, credentials: str, pod: Pod) -> None:
        """Make the pod the owner of the Secret, so that both are deleted together; garbage collection covers a failure."""
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}
        with suppress(ApiStatusError, ExecutorUnavailable):
            await self._api.call(
                "PATCH",
                f"{self._core}/secrets/{credentials}",
                priority=CallPriority.RECORD,
                body={"metadata": {"ownerReferences": [owner]}},
                content_type=MERGE_PATCH,
            )

    async def _create(self, plural: str, body: Manifest) -> None:
        try:
            await self._api.call("POST", f"{self._core}/{plural}", priority=CallPriority.CREATE, body=body)
        except ApiStatusError as error:
            if error.status != 409:
                raise as_unavailable(error) from error
