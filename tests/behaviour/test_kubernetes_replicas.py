"""Replicas of the kubernetes executor: Leases, agreement on the live replicas, and takeover of their builds."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.consumer.executors.base import Members
from rabbit2docker.consumer.executors.kubernetes import (
    KubernetesExecutor,
    informer,
    leases,
    manifest,
)
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.settings import Settings
from tests.support.kube.objects import LEASES
from tests.support.kube.replicas import Replicas
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

LEASE = 2.0
BUILDS = [f"build-{number}" for number in range(60)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "PAUSES", (0.02, 0.1))


class Replica:
    """An executor with its own connection to the API server, and the members it has seen."""

    def __init__(self, kube: Replicas, proxy: Proxy, *, lease_seconds: float) -> None:
        self.proxy = proxy
        self.executor: KubernetesExecutor = kube.executor(proxy, lease_seconds=lease_seconds)
        self.ownership = Ownership(self.executor)
        self.received: list[tuple[float, Members]] = []
        self.ownership.subscribe(self._on_change)
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.executor.replica

    @property
    def members(self) -> frozenset[str]:
        return self.received[-1][1].live if self.received else frozenset()

    def owned(self) -> set[str]:
        return {build for build in BUILDS if self.ownership.is_mine(build)}

    async def open(self) -> None:
        await self.executor.__aenter__()
        self._task = asyncio.create_task(self.ownership.run())

    async def close(self) -> None:
        """Stop normally."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self.executor.__aexit__(None, None, None)

    def disconnect(self) -> None:
        """Drop all connections, as if the network or the replica were gone."""
        self.proxy.refuse(True)
        self.proxy.cut()

    def reconnect(self) -> None:
        self.proxy.refuse(False)

    def _on_change(self) -> None:
        self.received.append((time.monotonic(), self.ownership._members))


@asynccontextmanager
async def replicas(
    kube: Replicas, count: int, *, lease_seconds: float = LEASE
) -> AsyncIterator[list[Replica]]:
    """Open replicas one after the other, and wait until they know each other."""
    async with AsyncExitStack() as stack:
        found: list[Replica] = []
        for _ in range(count):
            proxy = await stack.enter_async_context(Proxy(kube.server.port))
            replica = Replica(kube, proxy, lease_seconds=lease_seconds)
            stack.push_async_callback(replica.close)
            await replica.open()
            found.append(replica)
        await all_know(found)
        yield found


async def all_know(live: Iterable[Replica]) -> None:
    """Return once each of these replicas knows that exactly these are live."""
    live = list(live)
    names = {replica.name for replica in live}
    await eventually(lambda: all(replica.members == names for replica in live))


def check_owners(live: Iterable[Replica]) -> None:
    """Assert that each build has one owner."""
    owned = [replica.owned() for replica in live]
    assert sorted(build for part in owned for build in part) == sorted(BUILDS)


def lease_names(kube: Replicas) -> set[str]:
    return {stored.name for stored in kube.cluster.store._objects[LEASES].values()}


def put_lease(kube: Replicas, name: str, renewed: datetime, *, settings: Settings | None = None) -> None:
    data = {
        "metadata": {"name": name, "labels": manifest.labels(settings or Settings(), leases.COMPONENT)},
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": 10,
            "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }
    kube.cluster.store.create(LEASES, kube.cluster.namespace, data)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_each_build_has_one_owner_among_the_live_replicas(kube: Replicas, count: int) -> None:
    async with replicas(kube, count) as live:
        check_owners(live)
        assert all(replica.owned() for replica in live)
        assert all(replica.executor.problems()["lease"] is None for replica in live)
    assert lease_names(kube) == set()


async def test_the_builds_of_a_silent_replica_are_taken_over_within_its_lease(kube: Replicas) -> None:
    async with replicas(kube, 3) as (one, two, three):
        died = time.monotonic()
        one.disconnect()
        await all_know([two, three])
        check_owners([two, three])
        for replica in (two, three):
            noticed_at = next(
                at for at, members in replica.received if at > died and one.name not in members.live
            )
            # It had last renewed its Lease up to a third of its duration before.
            assert noticed_at - died > LEASE / 2
            assert one.name not in replica.members


async def test_the_builds_of_a_replica_that_stops_are_taken_over_at_once(kube: Replicas) -> None:
    # With a Lease that does not expire during the test.
    async with replicas(kube, 3, lease_seconds=300) as (one, two, three):
        await one.close()
        await all_know([two, three])
        check_owners([two, three])
        assert lease_names(kube) == {two.name, three.name}


async def test_a_disconnected_replica_releases_its_builds_before_others_take_over(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        for _ in range(2):
            one.disconnect()
            await eventually(lambda: two.owned() == set(BUILDS))
            # Taking over may be late, releasing may not.
            assert one.owned() == set()
            assert "Lease cannot be renewed" in (one.executor.problems()["lease"] or "")
            one.reconnect()
            await all_know([one, two])
            check_owners([one, two])
            await eventually(lambda: not any(one.executor.problems().values()))


async def test_a_replica_whose_packets_vanish_releases_its_builds(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        one.proxy.black_hole()
        await eventually(lambda: two.owned() == set(BUILDS))
        assert one.owned() == set()
        one.proxy.cut()
        one.proxy.flow()
        await all_know([one, two])
        check_owners([one, two])


async def test_no_build_has_two_owners_for_longer_than_a_lease(kube: Replicas) -> None:
    async with replicas(kube, 3) as live:
        since: dict[str, float] = {}
        longest = 0.0
        stop = asyncio.Event()

        async def look() -> None:
            nonlocal longest
            while not stop.is_set():
                now = time.monotonic()
                owned = [replica.owned() for replica in live]
                for build in BUILDS:
                    if sum(build in part for part in owned) > 1:
                        longest = max(longest, now - since.setdefault(build, now))
                    else:
                        since.pop(build, None)
                await asyncio.sleep(0.02)

        looking = asyncio.create_task(look())
        one, two, three = live
        one.disconnect()
        await all_know([two, three])
        two.disconnect()
        await all_know([three])
        one.reconnect()
        await all_know([one, three])
        two.reconnect()
        await all_know(live)
        stop.set()
        await looking
        check_owners(live)
        assert longest < LEASE


async def test_a_rolling_restart_leaves_no_build_without_an_owner_and_no_lease(kube: Replicas) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(kube.server.port)) for _ in range(5)]
        waiting = [Replica(kube, proxy, lease_seconds=300) for proxy in proxies]
        live: list[Replica] = []
        for replica in waiting:
            stack.push_async_callback(replica.close)
            await replica.open()
            live.append(replica)
            await all_know(live)
            if len(live) > 2:
                await live.pop(0).close()
                await all_know(live)
            check_owners(live)
    assert lease_names(kube) == set()


async def test_no_replica_owns_builds_while_the_api_server_is_away(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        before = [replica.owned() for replica in live]
        await kube.server.stop()
        await eventually(lambda: not any(replica.owned() for replica in live))
        await kube.server.start()
        await all_know(live)
        assert [replica.owned() for replica in live] == before


async def test_a_silent_watch_makes_no_replica_dead(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        before = [len(replica.received) for replica in live]
        silent = kube.server.streams("watch", resource="leases")
        for stream in silent:
            stream.silence()
        # Until each replica has noticed and reopened its watch.
        await eventually(lambda: len(set(kube.server.streams("watch", resource="leases")) - set(silent)) == 2)
        await asyncio.sleep(LEASE / 2)
        for replica, count in zip(live, before, strict=True):
            assert all(members.live == names for _, members in replica.received[count:])


async def test_a_watch_that_breaks_repeatedly_makes_no_replica_dead(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        before = [len(replica.received) for replica in live]
        give_up = time.monotonic() + 2 * LEASE
        while time.monotonic() < give_up:
            for stream in kube.server.streams("watch", resource="leases"):
                stream.abort()
            kube.cluster.store.compact()
            await asyncio.sleep(0.2)
        for replica, count in zip(live, before, strict=True):
            assert all(members.live == names for _, members in replica.received[count:])


REFUSALS: dict[str, Callable[[Replicas], object]] = {
    "lost": lambda kube: kube.server.faults.drop_after(resource="leases", verb="create"),
    "refused": lambda kube: kube.server.faults.answer(503, resource="leases", verb="create"),
    "a lost renewal": lambda kube: kube.server.faults.drop_after(resource="leases", verb="patch", times=2),
    "a refused renewal": lambda kube: kube.server.faults.answer(500, resource="leases", verb="patch"),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_a_failed_call_makes_no_replica_dead(kube: Replicas, what: str) -> None:
    REFUSALS[what](kube)
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        await asyncio.sleep(LEASE)
        assert all(replica.members == names for replica in live)
        check_owners(live)


async def test_a_deleted_lease_is_created_again(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        created = len(kube.server.calls(verb="create", resource="leases"))
        kube.cluster.store.delete(LEASES, kube.cluster.namespace, one.name)
        await eventually(lambda: len(kube.server.calls(verb="create", resource="leases")) > created)
        await all_know([one, two])


async def test_a_lease_whose_creation_lost_its_response_is_renewed(kube: Replicas) -> None:
    """The creation takes effect although its response is lost."""
    kube.server.faults.drop_after(resource="leases", verb="create")
    async with replicas(kube, 1) as (one,):
        lease = kube.cluster.store.get(LEASES, kube.cluster.namespace, one.name).data()
        assert "acquireTime" in lease["spec"]
        assert kube.server.calls(verb="patch", resource="leases")


@pytest.mark.parametrize(("verb", "word"), [("list", "list and watch on leases"), ("create", "injected")])
async def test_a_missing_permission_on_leases_makes_the_replica_unready(
    kube: Replicas, verb: str, word: str
) -> None:
    fault = kube.server.faults.answer(403, verb=verb, resource="leases", times=None)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(kube.server.port))
        replica = Replica(kube, proxy, lease_seconds=LEASE)
        stack.push_async_callback(replica.close)
        await replica.open()
        await eventually(lambda: word in (replica.executor.problems().get("lease") or ""))
        assert replica.owned() == set()
        fault.remove()
        await all_know([replica])
        assert replica.owned() == set(BUILDS)
        assert replica.executor.problems()["lease"] is None


async def test_leases_of_other_installations_and_dead_replicas_are_ignored(kube: Replicas) -> None:
    put_lease(kube, "of-another-installation", datetime.now(UTC), settings=Settings(instance="another"))
    put_lease(kube, "long-dead", datetime.now(UTC) - timedelta(hours=1))
    kube.cluster.store.create(LEASES, kube.cluster.namespace, {"metadata": {"name": "foreign"}, "spec": {}})
    async with replicas(kube, 1) as (one,):
        assert one.owned() == set(BUILDS)


async def test_leases_of_long_dead_replicas_are_swept(kube: Replicas) -> None:
    put_lease(kube, "long-dead", datetime.now(UTC) - timedelta(hours=1))
    put_lease(kube, "just-died", datetime.now(UTC) - timedelta(seconds=90))
    put_lease(
        kube,
        "of-another-installation",
        datetime.now(UTC) - timedelta(hours=1),
        settings=Settings(instance="a"),
    )
    async with replicas(kube, 2) as (one, two):
        await eventually(lambda: not any(one.executor.problems().values()))
        await one.executor.sweep()
        assert lease_names(kube) == {one.name, two.name, "just-died", "of-another-installation"}


async def test_an_invalid_lease_is_ignored(kube: Replicas) -> None:
    for number, spec in enumerate(
        [{}, {"renewTime": "yesterday"}, {"renewTime": None}, {"holderIdentity": ""}]
    ):
        labels = manifest.labels(Settings(), leases.COMPONENT)
        data = {"metadata": {"name": f"strange-{number}", "labels": labels}, "spec": spec}
        kube.cluster.store.create(LEASES, kube.cluster.namespace, data)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(kube.server.port))
        replica = Replica(kube, proxy, lease_seconds=1.0)
        stack.push_async_callback(replica.close)
        await replica.open()
        # No replica renews them, so they expire soon.
        await all_know([replica])
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)
        assert replica.members == {replica.name}


async def test_the_engine_is_away_while_no_node_has_a_ready_docker_api(kube: Replicas) -> None:
    async with kube.executor() as executor:
        assert await executor.engine_problem() is None
        for node in kube.cluster.nodes:
            kube.cluster.set_docker_api(node, ready=False)

        async def problem() -> str | None:
            return await executor.engine_problem()

        assert await eventually(problem) == "No node of the cluster has a ready docker-api."
        kube.cluster.set_docker_api(next(iter(kube.cluster.nodes)), ready=True)

        async def is_back() -> bool:
            return await executor.engine_problem() is None

        assert await eventually(is_back)
