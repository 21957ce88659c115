"""Replicas on one cluster: who lives is agreed on, and a lost one's builds change hands in time and once."""

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
    monkeypatch.setattr(informer, "BACKOFF_SECONDS", (0.02, 0.1))


class Replica:
    """An executor with its own way to the API server, and what it believes of the others."""

    def __init__(self, kube: Replicas, proxy: Proxy, *, lease_seconds: float) -> None:
        self.proxy = proxy
        self.executor: KubernetesExecutor = kube.executor(proxy, lease_seconds=lease_seconds)
        self.ownership = Ownership(self.executor)
        self.heard: list[tuple[float, Members]] = []
        self.ownership.subscribe(self._on_change)
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.executor.replica

    @property
    def members(self) -> frozenset[str]:
        return self.heard[-1][1].live if self.heard else frozenset()

    def owned(self) -> set[str]:
        return {build for build in BUILDS if self.ownership.is_mine(build)}

    async def open(self) -> None:
        await self.executor.__aenter__()
        self._task = asyncio.create_task(self.ownership.run())

    async def close(self) -> None:
        """End in good order."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self.executor.__aexit__(None, None, None)

    def cut_off(self) -> None:
        """Let nothing pass any more, as if the network were gone, or the replica."""
        self.proxy.refuse(True)
        self.proxy.cut()

    def reach_again(self) -> None:
        self.proxy.refuse(False)

    def _on_change(self) -> None:
        self.heard.append((time.monotonic(), self.ownership._members))


@asynccontextmanager
async def replicas(
    kube: Replicas, count: int, *, lease_seconds: float = LEASE
) -> AsyncIterator[list[Replica]]:
    """Open replicas one after the other, until all know all."""
    async with AsyncExitStack() as stack:
        found: list[Replica] = []
        for _ in range(count):
            proxy = await stack.enter_async_context(Proxy(kube.server.port))
            replica = Replica(kube, proxy, lease_seconds=lease_seconds)
            stack.push_async_callback(replica.close)
            await replica.open()
            found.append(replica)
        await agreed(found)
        yield found


async def agreed(live: Iterable[Replica]) -> None:
    """Return when all these believe that just these live."""
    live = list(live)
    names = {replica.name for replica in live}
    await eventually(lambda: all(replica.members == names for replica in live))


def split_once(live: Iterable[Replica]) -> None:
    """Check that each build has one owner."""
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
async def test_each_build_has_one_owner_among_those_who_live(kube: Replicas, count: int) -> None:
    async with replicas(kube, count) as live:
        split_once(live)
        assert all(replica.owned() for replica in live)
        assert all(replica.executor.problems()["lease"] is None for replica in live)
    assert lease_names(kube) == set()


async def test_a_replica_that_dies_silently_is_followed_within_its_lease(kube: Replicas) -> None:
    async with replicas(kube, 3) as (one, two, three):
        died = time.monotonic()
        one.cut_off()
        await agreed([two, three])
        split_once([two, three])
        for replica in (two, three):
            heard_at = next(at for at, members in replica.heard if at > died and one.name not in members.live)
            # It had renewed its Lease up to a third of that time before.
            assert heard_at - died > LEASE / 2
            assert one.name not in replica.members


async def test_a_replica_that_ends_in_good_order_is_followed_at_once(kube: Replicas) -> None:
    # So long that nobody could be taken for dead within this test.
    async with replicas(kube, 3, lease_seconds=300) as (one, two, three):
        await one.close()
        await agreed([two, three])
        split_once([two, three])
        assert lease_names(kube) == {two.name, three.name}


async def test_a_replica_that_is_cut_off_knows_it_before_the_others_act(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        for _ in range(2):
            one.cut_off()
            await eventually(lambda: two.owned() == set(BUILDS))
            # Whoever takes over may be late, whoever has to let go may not.
            assert one.owned() == set()
            assert "Lease cannot be renewed" in (one.executor.problems()["lease"] or "")
            one.reach_again()
            await agreed([one, two])
            split_once([one, two])
            await eventually(lambda: not any(one.executor.problems().values()))


async def test_a_replica_whose_packets_vanish_knows_it_too(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        one.proxy.black_hole()
        await eventually(lambda: two.owned() == set(BUILDS))
        assert one.owned() == set()
        one.proxy.cut()
        one.proxy.flow()
        await agreed([one, two])
        split_once([one, two])


async def test_at_no_moment_has_a_build_two_owners_for_longer_than_a_lease(kube: Replicas) -> None:
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
        one.cut_off()
        await agreed([two, three])
        two.cut_off()
        await agreed([three])
        one.reach_again()
        await agreed([one, three])
        two.reach_again()
        await agreed(live)
        stop.set()
        await looking
        split_once(live)
        assert longest < LEASE


async def test_a_rolling_restart_leaves_no_build_without_an_owner_and_no_lease_behind(kube: Replicas) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(kube.server.port)) for _ in range(5)]
        waiting = [Replica(kube, proxy, lease_seconds=300) for proxy in proxies]
        live: list[Replica] = []
        for replica in waiting:
            stack.push_async_callback(replica.close)
            await replica.open()
            live.append(replica)
            await agreed(live)
            if len(live) > 2:
                await live.pop(0).close()
                await agreed(live)
            split_once(live)
    assert lease_names(kube) == set()


async def test_an_api_server_that_is_away_takes_all_builds_from_all_until_it_is_back(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        before = [replica.owned() for replica in live]
        await kube.server.stop()
        await eventually(lambda: not any(replica.owned() for replica in live))
        await kube.server.start()
        await agreed(live)
        assert [replica.owned() for replica in live] == before


async def test_a_silent_watch_makes_nobody_dead(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        before = [len(replica.heard) for replica in live]
        silent = kube.server.streams("watch", resource="leases")
        for stream in silent:
            stream.silence()
        # Until each has noticed and watches anew.
        await eventually(lambda: len(set(kube.server.streams("watch", resource="leases")) - set(silent)) == 2)
        await asyncio.sleep(LEASE / 2)
        for replica, count in zip(live, before, strict=True):
            assert all(members.live == names for _, members in replica.heard[count:])


async def test_a_watch_that_breaks_again_and_again_makes_nobody_dead(kube: Replicas) -> None:
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        before = [len(replica.heard) for replica in live]
        give_up = time.monotonic() + 2 * LEASE
        while time.monotonic() < give_up:
            for stream in kube.server.streams("watch", resource="leases"):
                stream.abort()
            kube.cluster.store.compact()
            await asyncio.sleep(0.2)
        for replica, count in zip(live, before, strict=True):
            assert all(members.live == names for _, members in replica.heard[count:])


REFUSALS: dict[str, Callable[[Replicas], object]] = {
    "lost": lambda kube: kube.server.faults.drop_after(resource="leases", verb="create"),
    "refused": lambda kube: kube.server.faults.answer(503, resource="leases", verb="create"),
    "a lost renewal": lambda kube: kube.server.faults.drop_after(resource="leases", verb="patch", times=2),
    "a refused renewal": lambda kube: kube.server.faults.answer(500, resource="leases", verb="patch"),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_a_call_that_fails_on_its_way_costs_no_replica_its_life(kube: Replicas, what: str) -> None:
    REFUSALS[what](kube)
    async with replicas(kube, 2) as live:
        names = {replica.name for replica in live}
        await asyncio.sleep(LEASE)
        assert all(replica.members == names for replica in live)
        split_once(live)


async def test_a_lease_that_somebody_deleted_is_made_again(kube: Replicas) -> None:
    async with replicas(kube, 2) as (one, two):
        kube.cluster.store.delete(LEASES, kube.cluster.namespace, one.name)
        await eventually(lambda: one.name not in two.members)
        await agreed([one, two])


async def test_a_lease_that_exists_already_is_renewed_and_not_only_believed_in(kube: Replicas) -> None:
    """Its creation was done and not answered: what counts is what the others see."""
    kube.server.faults.drop_after(resource="leases", verb="create")
    async with replicas(kube, 1) as (one,):
        lease = kube.cluster.store.get(LEASES, kube.cluster.namespace, one.name).data()
        assert "acquireTime" in lease["spec"]
        assert kube.server.calls(verb="patch", resource="leases")


@pytest.mark.parametrize(("verb", "word"), [("list", "list and watch on leases"), ("create", "injected")])
async def test_a_permission_that_lacks_for_leases_makes_the_replica_unready(
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
        await agreed([replica])
        assert replica.owned() == set(BUILDS)
        assert replica.executor.problems()["lease"] is None


async def test_leases_of_others_mean_nothing(kube: Replicas) -> None:
    put_lease(kube, "of-another-installation", datetime.now(UTC), settings=Settings(instance="another"))
    put_lease(kube, "long-dead", datetime.now(UTC) - timedelta(hours=1))
    kube.cluster.store.create(LEASES, kube.cluster.namespace, {"metadata": {"name": "foreign"}, "spec": {}})
    async with replicas(kube, 1) as (one,):
        assert one.owned() == set(BUILDS)


async def test_leases_of_the_long_dead_are_swept_and_those_of_the_living_kept(kube: Replicas) -> None:
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


async def test_a_lease_without_sense_hurts_nobody(kube: Replicas) -> None:
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
        # Nobody renews them, so they are soon nobody's.
        await agreed([replica])
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)
        assert replica.members == {replica.name}
