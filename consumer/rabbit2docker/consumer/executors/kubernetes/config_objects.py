"""What has to be there before a build pod: the builder's program, and what its tenant may use."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import (
    MERGE_PATCH,
    ApiClient,
    ApiStatusError,
    as_unavailable,
)
from rabbit2docker.consumer.executors.kubernetes.models import Event, Pod
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings


class BuildConfigObjects:
    """Makes ConfigMap and Secrets. All methods raise ExecutorUnavailable."""

    def __init__(self, api: ApiClient, settings: Settings, builder_text: str) -> None:
        """Take the builder's program; its ConfigMap is named by its content, so that versions live side by side."""
        self._api = api
        self._settings = settings
        self._text = builder_text
        self.builder_map = f"rabbit2docker-builder-{hashlib.sha256(builder_text.encode()).hexdigest()[:12]}"
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"
        self._is_made = False
        self._making = asyncio.Lock()

    async def provide_builder(self) -> None:
        """Make the ConfigMap with the builder's program, once."""
        async with self._making:
            if not self._is_made:
                await self._make(
                    "configmaps", manifest.builder_config_map(self._settings, self.builder_map, self._text)
                )
                self._is_made = True

    async def mend(self, events: Sequence[Event]) -> None:
        """Make the ConfigMap again when the last event of a pod says that it is gone: all later pods need it, too."""
        said = (events[-1].message or "") if events else ""
        if self.builder_map in said and "not found" in said:
            self._is_made = False
            await self.provide_builder()

    async def provide_credentials(self, spec: AttemptSpec) -> str | None:
        """Make the Secret of an attempt whose tenant has credentials; before the pod, which would wait for it."""
        credentials = manifest.git_credentials(spec, self._settings)
        if credentials is None:
            return None
        await self._make("secrets", manifest.credentials_secret(self._settings, spec, credentials))
        return manifest.credentials_name(spec)

    async def hand_over(self, credentials: str, pod: Pod) -> None:
        """Let the Secret go with its pod; where that fails the cleaner removes it."""
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}
        with suppress(ApiStatusError, ExecutorUnavailable):
            await self._api.call(
                "PATCH",
                f"{self._core}/secrets/{credentials}",
                urgency=CallPriority.RECORD,
                body={"metadata": {"ownerReferences": [owner]}},
                content_type=MERGE_PATCH,
            )

    async def _make(self, kind: str, body: manifest.Manifest) -> None:
        try:
            await self._api.call("POST", f"{self._core}/{kind}", urgency=CallPriority.CREATE, body=body)
        except ApiStatusError as error:
            if error.status != 409:
                raise as_unavailable(error) from error
