"""Membership of replicas: each renews a Lease of its own and counts as dead once that is not renewed in time.

Clocks of other replicas are not trusted. As in client-go's leader election, the age of a Lease is measured by our own
clock from when the watch reported its last change, and only while the watch works, which our own renewals show.
A replica that cannot renew its Lease knows by itself that the others consider it dead.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.consumer.executors.base import Members
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import JSON, MERGE_PATCH, ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.informer import LEASES, Informer
from rabbit2docker.consumer.executors.kubernetes.models import Lease, Manifest
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings

log = structlog.get_logger()

COMPONENT: Final = "replica"
STALE_SECONDS: Final = 60.0
"""A Lease that is already this old when first seen, by its own time stamp, belongs to a dead replica."""
GARBAGE_SECONDS: Final = 600.0
RENEW_FRACTION: Final = 0.25
"""Part of a Lease's duration between two renewals. Deaths are noticed when one of our own renewals arrives."""


class Leases:
    """Renews the Lease of this replica and watches those of all replicas."""

    def __init__(self, api: ApiClient, settings: Settings, replica: str) -> None:
        """Prepare the Lease named `replica`; `run` creates it."""
        self._api = api
        self._settings = settings
        self._duration = settings.kubernetes.lease_seconds
        self._replica = replica
        namespace = settings.kubernetes.namespace
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._changed_at: dict[str, float] = {}
        self._received_at = time.monotonic()
        self._renewed_at: float | None = None
        self._renewal_error = ""
        self._changed = asyncio.Event()
        self.informer = Informer(
            api,
            LEASES,
            self._path,
            manifest.selector(settings, COMPONENT),
            on_change=self._on_change,
            on_removed=self._on_removed,
            name="leases",
            # The watch reports our own renewals every few seconds.
            read_timeout_seconds=self._duration,
        )

    def problem(self) -> str | None:
        """Return the error of renewing our Lease or watching the others; None if both work."""
        if not self._is_renewed():
            message = "this replica's Lease cannot be renewed, so other replicas take over its builds."
            return f"{message} {self._renewal_error}".strip()
        return self.informer.problem

    async def run(self) -> None:
        """Renew our Lease until cancelled."""
        while True:
            started_at = time.monotonic()
            try:
                if await self._renew():
                    self._renewed_at, self._renewal_error = started_at, ""
                    self._changed.set()
            except (ExecutorUnavailable, ApiStatusError) as error:
                self._renewal_error = str(error)
                log.warning("lease renewal failed", error=str(error))
            elapsed = time.monotonic() - started_at
            await asyncio.sleep(max(0.1, self._duration * RENEW_FRACTION - elapsed))

    async def members(self) -> AsyncIterator[Members]:
        """Yield the live replicas once the first list is complete, then whenever they change."""
        last: Members | None = None
        while True:
            self._changed.clear()
            if self.informer.synced.is_set():
                members = Members(self._replica, self._live())
                if members != last:
                    last = members
                    metrics.REPLICAS.set(len(members.live))
                    yield members
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_left()):
                    await self._changed.wait()

    async def release(self) -> None:
        """Delete our Lease, so that the others do not have to wait until it expires."""
        with suppress(ExecutorUnavailable, ApiStatusError):
            await self._api.call(
                "DELETE", f"{self._path}/{self._replica}", priority=CallPriority.RECORD, timeout_seconds=3
            )

    async def sweep(self) -> None:
        """Delete the Leases of replicas that have been dead for long. Raises ExecutorUnavailable."""
        for lease in list(self.informer.objects.values()):
            name = lease.metadata.name
            age = time.monotonic() - self._changed_at.get(name, 0.0)
            if name != self._replica and age > GARBAGE_SECONDS:
                with suppress(ApiStatusError):
                    await self._api.call("DELETE", f"{self._path}/{name}", priority=CallPriority.CLEAN)

    async def _renew(self) -> bool:
        """Renew our Lease or create it; False if neither was possible."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._replica,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": now,
        }
        # The Lease may exist before the first renewal, if the response to its creation was lost, and may be missing
        # later, if an operator deleted it.
        if self._renewed_at is None:
            return await self._create({**spec, "acquireTime": now}) or await self._patch(spec)
        return await self._patch(spec) or await self._create({**spec, "acquireTime": now})

    async def _patch(self, spec: Manifest) -> bool:
        """Renew our Lease; False if it does not exist."""
        path = f"{self._path}/{self._replica}"
        return await self._write("PATCH", path, {"spec": spec}, false_on=404, content_type=MERGE_PATCH)

    async def _create(self, spec: Manifest) -> bool:
        """Create our Lease; False if it exists."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._replica, "labels": manifest.labels(self._settings, COMPONENT)},
            "spec": spec,
        }
        return await self._write("POST", self._path, body, false_on=409)

    async def _write(
        self, method: str, path: str, body: Any, *, false_on: int, content_type: str = JSON
    ) -> bool:
        try:
            await self._api.call(
                method,
                path,
                priority=CallPriority.CREATE,
                body=body,
                content_type=content_type,
                # A renewal that takes longer would come too late.
                timeout_seconds=self._duration / 2,
            )
        except ApiStatusError as error:
            if error.status != false_on:
                raise
            return False
        return True

    def _on_change(self, lease: Lease) -> None:
        self._mark_received()
        name = lease.metadata.name
        is_first = name not in self._changed_at
        self._changed_at[name] = self._received_at
        if is_first and (renewed_at := _renew_time(lease)) is not None:
            age = (datetime.now(UTC) - renewed_at).total_seconds()
            if age > STALE_SECONDS:
                self._changed_at[name] -= age
        self._changed.set()

    def _on_removed(self, lease: Lease) -> None:
        self._mark_received()
        self._changed_at.pop(lease.metadata.name, None)
        self._changed.set()

    def _mark_received(self) -> None:
        now = time.monotonic()
        gap = now - self._received_at
        self._received_at = now
        if gap > self._duration / 2:
            # Even our own renewals did not arrive, so renewals of others may have been missed as well.
            for name in self._changed_at:
                self._changed_at[name] += gap

    def _is_renewed(self) -> bool:
        return self._renewed_at is not None and time.monotonic() - self._renewed_at < self._duration

    def _live(self) -> frozenset[str]:
        # Relative to the last data: while the watch delivers nothing, no replica ages.
        since = self._received_at - self._duration
        others = {name for name, at in self._changed_at.items() if at > since and name != self._replica}
        return frozenset(others | {self._replica}) if self._is_renewed() else frozenset(others)

    def _seconds_left(self) -> float | None:
        """Return the seconds until our own Lease expires, which no event reports; None if it is not held."""
        if self._renewed_at is None:
            return None
        left = self._renewed_at + self._duration - time.monotonic()
        return left + 0.01 if left > 0 else None


def _renew_time(lease: Lease) -> datetime | None:
    try:
        return datetime.fromisoformat((lease.spec.renew_time or "").replace("Z", "+00:00"))
    except ValueError:
        return None
