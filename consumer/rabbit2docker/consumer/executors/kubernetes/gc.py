"""Removes what no record accounts for: crashes between two calls and older versions leave such things behind."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import JSON_PATCH, ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.models import Metadata, Owned, OwnedList, Pod
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.settings import Settings

log = structlog.get_logger()

STUCK_AFTER: Final = timedelta(seconds=60)
"""A pod whose end is told and which is still being deleted so long after its grace is on a node that is gone."""
SECRET_AFTER: Final = timedelta(minutes=10)
"""A Secret is made moments before its pod: without one it belongs to a creation that failed."""
PAGE_OBJECTS: Final = 500
ORPHAN_AFTER: Final = timedelta(hours=1)


class GarbageCollector:
    """Finds and removes leftovers of one installation; never a pod that is the record of an untold build."""

    def __init__(self, api: ApiClient, settings: Settings, builder_map: str) -> None:
        """Keep `builder_map`, the ConfigMap of this version."""
        self._api = api
        self._settings = settings
        self._builder_map = builder_map
        self._core = f"/api/v1/namespaces/{settings.kubernetes.namespace}"

    async def sweep(self, pods: Sequence[Pod], now: datetime) -> None:
        """Do one pass over the pods and what they mount. Raises ExecutorUnavailable."""
        for pod in pods:
            if is_stuck(pod, now):
                log.warning("a pod on a node that is gone is removed", name=pod.metadata.name)
                await self._remove("pods", pod.metadata, grace=0)
            elif is_orphan(pod, now):
                log.warning("a pod that is no record is removed", name=pod.metadata.name)
                await self._let_go(pod)
                await self._remove("pods", pod.metadata, grace=0)
        names = {pod.metadata.name for pod in pods}
        used = {pod.metadata.annotations.get(manifest.BUILDER_MAP) for pod in pods} | {self._builder_map}
        if any(tenant.git_credentials for tenant in self._settings.kubernetes.tenants.values()):
            await self._sweep_kind(
                "secrets",
                manifest.CREDENTIALS,
                lambda found: (
                    not found.metadata.owner_references
                    and found.metadata.annotations.get(manifest.FOR) not in names
                    and _age(found.metadata, now) > SECRET_AFTER
                ),
            )
        await self._sweep_kind(
            "configmaps",
            manifest.BUILDER,
            lambda found: found.metadata.name not in used and _age(found.metadata, now) > ORPHAN_AFTER,
        )

    async def _sweep_kind(self, kind: str, component: str, is_leftover: Callable[[Owned], bool]) -> None:
        query = {"labelSelector": manifest.selector(self._settings, component), "limit": str(PAGE_OBJECTS)}
        while True:
            data = await self._api.call(
                "GET", f"{self._core}/{kind}", urgency=CallPriority.CLEAN, query=query
            )
            page = OwnedList.model_validate_json(data)
            for found in page.items:
                if is_leftover(found):
                    log.info("a leftover is removed", kind=kind, name=found.metadata.name)
                    await self._remove(kind, found.metadata)
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_

    async def _remove(self, kind: str, metadata: Metadata, *, grace: int | None = None) -> None:
        body: dict[str, Any] = {"preconditions": {"uid": metadata.uid}}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        # Gone already is as good; what is refused is tried again in the next pass.
        with suppress(ApiStatusError):
            await self._api.call(
                "DELETE", f"{self._core}/{kind}/{metadata.name}", urgency=CallPriority.CLEAN, body=body
            )

    async def _let_go(self, pod: Pod) -> None:
        with suppress(ApiStatusError):
            await self._api.call(
                "PATCH",
                f"{self._core}/pods/{pod.metadata.name}",
                urgency=CallPriority.CLEAN,
                body=manifest.without_finalizer(pod),
                content_type=JSON_PATCH,
            )


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Tell whether a pod's end is told, yet its node does not let it go."""
    until = pod.metadata.deletion_timestamp
    return (
        until is not None and now > until + STUCK_AFTER and manifest.FINALIZER not in pod.metadata.finalizers
    )


def is_orphan(pod: Pod, now: datetime) -> bool:
    """Tell whether a pod with our labels is no record, and nobody is about to make it one."""
    return manifest.read_spec(pod) is None and _age(pod.metadata, now) > ORPHAN_AFTER


def _age(metadata: Metadata, now: datetime) -> timedelta:
    return now - (metadata.creation_timestamp or now)
