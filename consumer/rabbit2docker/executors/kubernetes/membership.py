"""Which replicas live: each renews a Lease of its own, and is taken for dead when that stays as it is for too long.

Others' clocks are not trusted: what counts is how long ago, by our own clock, a Lease last changed (as in client-go's
leader election). A replica that cannot renew knows by itself that the others must take it for dead.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog

from rabbit2docker import metrics
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.executors.base import Members
from rabbit2docker.executors.kubernetes import manifest
from rabbit2docker.executors.kubernetes.client import MERGE_PATCH, ApiClient, Refused
from rabbit2docker.executors.kubernetes.models import Lease
from rabbit2docker.executors.kubernetes.pace import Urgency
from rabbit2docker.executors.kubernetes.watching import LEASES, Mirror
from rabbit2docker.settings import Settings

log = structlog.get_logger()

COMPONENT: Final = "replica"
STALE_SECONDS: Final = 60.0
"""A Lease that says it is this old when it is first seen is a dead replica's, whatever the clocks."""
GARBAGE_SECONDS: Final = 600.0


class Membership:
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
        self._renewed: float | None = None
        self._changed = asyncio.Event()
        self.mirror = Mirror(
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
        """Tell why this replica cannot prove that it lives; None when it can."""
        if self._is_renewed():
            return None
        return "this replica's Lease cannot be renewed, so the others take its builds"

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self._renew()
            except (ExecutorUnavailable, Refused) as error:
                log.warning("cannot renew the Lease of this replica", error=str(error))
            else:
                self._renewed = began
                self._changed.set()
            await asyncio.sleep(max(0.1, self._seconds / 3 - (time.monotonic() - began)))

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
        with suppress(ExecutorUnavailable, Refused):
            await self._api.call("DELETE", f"{self._path}/{self._me}", urgency=Urgency.RECORD, seconds=3)

    async def sweep(self) -> None:
        """Remove the Leases of replicas that are long dead."""
        for lease in list(self.mirror.objects.values()):
            name = lease.metadata.name
            if name != self._me and time.monotonic() - self._seen.get(name, 0.0) > GARBAGE_SECONDS:
                with suppress(Refused):
                    await self._api.call("DELETE", f"{self._path}/{name}", urgency=Urgency.CLEAN)

    async def _renew(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._me,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": now,
        }
        # A renewal that takes longer than the Lease lasts is none.
        seconds = self._seconds / 2
        if self._renewed is not None:
            try:
                await self._api.call(
                    "PATCH",
                    f"{self._path}/{self._me}",
                    urgency=Urgency.CREATE,
                    body={"spec": spec},
                    content_type=MERGE_PATCH,
                    seconds=seconds,
                )
            except Refused as error:
                if error.status != 404:
                    raise
            else:
                return
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._me, "labels": manifest.labels(self._settings, COMPONENT)},
            "spec": {**spec, "acquireTime": now},
        }
        try:
            await self._api.call("POST", self._path, urgency=Urgency.CREATE, body=body, seconds=seconds)
        except Refused as error:
            if error.status != 409:
                raise

    def _on_change(self, lease: Lease) -> None:
        name = lease.metadata.name
        is_first = name not in self._seen
        self._seen[name] = time.monotonic()
        if is_first and (renewed := _time_of(lease)) is not None:
            age = (datetime.now(UTC) - renewed).total_seconds()
            if age > STALE_SECONDS:
                self._seen[name] -= age
        self._changed.set()

    def _on_gone(self, lease: Lease) -> None:
        self._seen.pop(lease.metadata.name, None)
        self._changed.set()

    def _is_renewed(self) -> bool:
        return self._renewed is not None and time.monotonic() - self._renewed < self._seconds

    def _live(self) -> frozenset[str]:
        since = time.monotonic() - self._seconds
        # While we hear nothing ourselves, nobody's silence means anything.
        others = {name for name, seen in self._seen.items() if seen > since and name != self._me}
        return frozenset(others | {self._me}) if self._is_renewed() else frozenset(others - {self._me})

    def _until_next(self) -> float | None:
        """Return the seconds until somebody's time is up."""
        now = time.monotonic()
        ends = [seen + self._seconds for name, seen in self._seen.items() if name != self._me]
        if self._renewed is not None:
            ends.append(self._renewed + self._seconds)
        coming = [end - now for end in ends if end > now]
        return min(coming) + 0.01 if coming else None


def _time_of(lease: Lease) -> datetime | None:
    try:
        return datetime.fromisoformat((lease.spec.renew_time or "").replace("Z", "+00:00"))
    except ValueError:
        return None
