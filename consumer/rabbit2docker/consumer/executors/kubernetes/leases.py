"""Which replicas live: each renews a Lease of its own, and is taken for dead when that stays as it is for too long.

Others' clocks are not trusted: what counts is how long ago, by our own clock, a Lease last changed (as in client-go's
leader election), and only time in which the watch told anything, as our own renewals come by there. A replica that
cannot renew knows by itself that the others must take it for dead.
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
from rabbit2docker.consumer.executors.kubernetes.models import Lease
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings

log = structlog.get_logger()

COMPONENT: Final = "replica"
STALE_SECONDS: Final = 60.0
"""A Lease that says it is this old when it is first seen is a dead replica's, whatever the clocks."""
GARBAGE_SECONDS: Final = 600.0
RENEW_EVERY: Final = 0.25
"""Part of a Lease's time after which it is renewed: others notice a death with the first renewal of their own after it."""


class Leases:
    """Renews our Lease and watches all of them."""

    def __init__(self, api: ApiClient, settings: Settings, me: str) -> None:
        """Take part as `me`."""
        self._api = api
        self._settings = settings
        self._seconds = settings.kubernetes.lease_seconds
        self._me = me
        namespace = settings.kubernetes.namespace
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._seen: dict[str, float] = {}
        self._heard = time.monotonic()
        self._renewed: float | None = None
        self._trouble = ""
        self._changed = asyncio.Event()
        self.mirror = Informer(
            api,
            LEASES,
            self._path,
            manifest.selector(settings, COMPONENT),
            on_change=self._on_change,
            on_gone=self._on_gone,
            role="leases",
            # Our own renewals come by here every few seconds.
            silence_seconds=self._seconds,
        )

    def problem(self) -> str | None:
        """Tell why this replica cannot prove that it lives, or does not see who else does; None when all is well."""
        if not self._is_renewed():
            return f"this replica's Lease cannot be renewed, so the others take its builds. {self._trouble}".strip()
        return self.mirror.problem

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            began = time.monotonic()
            try:
                if await self._renew():
                    self._renewed, self._trouble = began, ""
                    self._changed.set()
            except (ExecutorUnavailable, ApiStatusError) as error:
                self._trouble = str(error)
                log.warning("cannot renew the Lease of this replica", error=str(error))
            await asyncio.sleep(max(0.1, self._seconds * RENEW_EVERY - (time.monotonic() - began)))

    async def follow(self) -> AsyncIterator[Members]:
        """Tell the members at once and whenever they change."""
        told: Members | None = None
        while True:
            self._changed.clear()
            if self.mirror.synced.is_set():
                members = Members(self._me, self._live())
                if members != told:
                    told = members
                    metrics.REPLICAS.set(len(members.live))
                    yield members
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_next()):
                    await self._changed.wait()

    async def leave(self) -> None:
        """Give the Lease back, so that the others need not wait for its end."""
        with suppress(ExecutorUnavailable, ApiStatusError):
            await self._api.call("DELETE", f"{self._path}/{self._me}", urgency=CallPriority.RECORD, seconds=3)

    async def sweep(self) -> None:
        """Remove the Leases of replicas that are long dead."""
        for lease in list(self.mirror.objects.values()):
            name = lease.metadata.name
            if name != self._me and time.monotonic() - self._seen.get(name, 0.0) > GARBAGE_SECONDS:
                with suppress(ApiStatusError):
                    await self._api.call("DELETE", f"{self._path}/{name}", urgency=CallPriority.CLEAN)

    async def _renew(self) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._me,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": now,
        }
        # One that exists before we know was made by a call that was not answered; one that is gone was removed by hand.
        if self._renewed is None:
            return await self._make({**spec, "acquireTime": now}) or await self._touch(spec)
        return await self._touch(spec) or await self._make({**spec, "acquireTime": now})

    async def _touch(self, spec: dict[str, Any]) -> bool:
        """Renew our Lease; False where there is none."""
        path = f"{self._path}/{self._me}"
        return await self._write("PATCH", path, {"spec": spec}, unless=404, content_type=MERGE_PATCH)

    async def _make(self, spec: dict[str, Any]) -> bool:
        """Make our Lease; False where it exists."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._me, "labels": manifest.labels(self._settings, COMPONENT)},
            "spec": spec,
        }
        return await self._write("POST", self._path, body, unless=409)

    async def _write(
        self, method: str, path: str, body: Any, *, unless: int, content_type: str = JSON
    ) -> bool:
        # A renewal that takes longer than the Lease lasts is none.
        seconds = self._seconds / 2
        try:
            await self._api.call(
                method,
                path,
                urgency=CallPriority.CREATE,
                body=body,
                content_type=content_type,
                seconds=seconds,
            )
        except ApiStatusError as error:
            if error.status != unless:
                raise
            return False
        return True

    def _on_change(self, lease: Lease) -> None:
        self._hear()
        name = lease.metadata.name
        is_first = name not in self._seen
        self._seen[name] = self._heard
        if is_first and (renewed := _time_of(lease)) is not None:
            age = (datetime.now(UTC) - renewed).total_seconds()
            if age > STALE_SECONDS:
                self._seen[name] -= age
        self._changed.set()

    def _on_gone(self, lease: Lease) -> None:
        self._hear()
        self._seen.pop(lease.metadata.name, None)
        self._changed.set()

    def _hear(self) -> None:
        now = time.monotonic()
        deaf = now - self._heard
        self._heard = now
        if deaf > self._seconds / 2:
            # Not even our own renewals came by: others' may have been missed just so.
            for name in self._seen:
                self._seen[name] += deaf

    def _is_renewed(self) -> bool:
        return self._renewed is not None and time.monotonic() - self._renewed < self._seconds

    def _live(self) -> frozenset[str]:
        # While we hear nothing ourselves, nobody's silence means anything.
        since = self._heard - self._seconds
        others = {name for name, seen in self._seen.items() if seen > since and name != self._me}
        return frozenset(others | {self._me}) if self._is_renewed() else frozenset(others - {self._me})

    def _until_next(self) -> float | None:
        """Return the seconds until our own time is up: it runs without a word from anybody."""
        if self._renewed is None:
            return None
        left = self._renewed + self._seconds - time.monotonic()
        return left + 0.01 if left > 0 else None


def _time_of(lease: Lease) -> datetime | None:
    try:
        return datetime.fromisoformat((lease.spec.renew_time or "").replace("Z", "+00:00"))
    except ValueError:
        return None
