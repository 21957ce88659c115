"""Garbage collection of objects without a record, left behind by crashes between two calls and by older versions."""

from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import (
    JSON_PATCH,
    PAGE_OBJECTS,
    ApiClient,
    ApiStatusError,
)
from rabbit2docker.consumer.executors.kubernetes.models import Metadata, Owned, OwnedList, Pod
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.consumer.executors.record_format import NewerRecord
from rabbit2docker.settings import Settings

log = structlog.get_logger()

STUCK_AFTER: Final = timedelta(seconds=60)
"""A reported pod that is still being deleted this long after its grace period is on a node that is gone."""
SECRET_AFTER: Final = timedelta(minutes=10)
"""A Secret is created moments before its pod: one that is older and has no pod belongs to a failed creation."""
ORPHAN_AFTER: Final = timedelta(hours=1)


class GarbageCollector:
    """Deletes orphaned objects of one installation, but never the pod of a build whose end is not reported."""

    def __init__(self, api: ApiClient, settings: Settings, builder_map: str) -> None:
        """Spare `builder_map`, the ConfigMap of this version, in every sweep."""
        self._api = api
        self._settings = settings
        self._builder_map = builder_map
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"

    async def sweep(self, pods: Sequence[Pod], now: datetime) -> None:
        """Delete stuck and orphaned ones among `pods`, then unused Secrets and ConfigMaps.

        `pods` must be all pods of the installation. Raises ExecutorUnavailable, ApiStatusError.
        """
        for pod in pods:
            await self._sweep_pod(pod, now)
        await self._sweep_secrets({pod.metadata.name for pod in pods}, now)
        mounted = {pod.metadata.annotations.get(manifest.BUILDER_MAP) for pod in pods}
        await self._sweep_builder_maps(mounted | {self._builder_map}, now)

    async def _sweep_pod(self, pod: Pod, now: datetime) -> None:
        if is_stuck(pod, now):
            log.warning("stuck pod deleted", name=pod.metadata.name, reason="its node is gone")
            await self._delete("pods", pod.metadata, grace_seconds=0)
        elif is_orphan(pod, now):
            log.warning("orphaned pod deleted", name=pod.metadata.name, reason="it holds no record")
            await self._remove_finalizer(pod)
            await self._delete("pods", pod.metadata, grace_seconds=0)

    async def _sweep_secrets(self, pod_names: set[str], now: datetime) -> None:
        # Without credentials for git the service has no permission on Secrets.
        has_own = any(tenant.git for tenant in self._settings.tenants.values())
        if not (has_own or self._settings.kubernetes.personal_namespace):
            return
        await self._sweep_objects(
            "secrets",
            manifest.CREDENTIALS,
            lambda found: (
                not found.metadata.owner_references
                and found.metadata.annotations.get(manifest.FOR) not in pod_names
                and _age(found.metadata, now) > SECRET_AFTER
            ),
        )

    async def _sweep_builder_maps(self, used: set[str | None], now: datetime) -> None:
        await self._sweep_objects(
            "configmaps",
            manifest.BUILDER,
            lambda found: found.metadata.name not in used and _age(found.metadata, now) > ORPHAN_AFTER,
        )

    async def _sweep_objects(self, plural: str, component: str, is_garbage: Callable[[Owned], bool]) -> None:
        listing = self._api.pages(
            f"{self._core}/{plural}",
            OwnedList.model_validate_json,
            priority=CallPriority.CLEAN,
            size=PAGE_OBJECTS,
            query={"labelSelector": manifest.selector(self._settings, component)},
        )
        async with aclosing(listing) as pages:
            async for page in pages:
                for found in filter(is_garbage, page.items):
                    log.info("unused object deleted", resource=plural, name=found.metadata.name)
                    await self._delete(plural, found.metadata)

    async def _delete(self, plural: str, metadata: Metadata, *, grace_seconds: int | None = None) -> None:
        body: dict[str, Any] = {"preconditions": {"uid": metadata.uid}}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        # An object that is gone needs nothing; a rejected call is repeated by the next sweep.
        with suppress(ApiStatusError):
            await self._api.call(
                "DELETE", f"{self._core}/{plural}/{metadata.name}", priority=CallPriority.CLEAN, body=body
            )

    async def _remove_finalizer(self, pod: Pod) -> None:
        with suppress(ApiStatusError):
            await self._api.call(
                "PATCH",
                f"{self._core}/pods/{pod.metadata.name}",
                priority=CallPriority.CLEAN,
                body=manifest.without_finalizer(pod),
                content_type=JSON_PATCH,
            )


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Return whether the pod's end is reported but its node does not finish the deletion."""
    until = pod.metadata.deletion_timestamp
    return (
        until is not None and now > until + STUCK_AFTER and manifest.FINALIZER not in pod.metadata.finalizers
    )


def is_orphan(pod: Pod, now: datetime) -> bool:
    """Return whether a pod with our labels holds no record and is too old to be still in creation."""
    try:
        holds_none = manifest.read_spec(pod) is None
    except NewerRecord:
        return False
    return holds_none and _age(pod.metadata, now) > ORPHAN_AFTER


def _age(metadata: Metadata, now: datetime) -> timedelta:
    return now - (metadata.creation_timestamp or now)
