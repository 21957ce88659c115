"""The informers of the kubernetes executor: its cache stays correct under failures of lists and watches."""

import asyncio
import functools
import random
from collections.abc import Callable

import pytest

from rabbit2docker.consumer.executors.base import (
    AttemptName,
    AttemptState,
    AttemptStatus,
    Change,
    Changed,
    Removed,
)
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor, informer, pod_records
from rabbit2docker.consumer.executors.kubernetes import executor as executor_module
from rabbit2docker.retry import doubling
from tests.behaviour.test_executors import ONE, first_change, in_state, left, synced
from tests.support.kube.replicas import Replicas
from tests.support.records import a_spec
from tests.support.waiting import eventually

TWO = AttemptName("build-two")
BUILDS, DOCKER_API = "watch of builds", "watch of docker-api"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "PAUSES", (0.02, 0.1))


async def watched(kube: Replicas, count: int = 2) -> None:
    """Return once all watches are open."""
    await eventually(lambda: len(kube.server.streams("watch")) >= count)


def lists(kube: Replicas) -> int:
    return len(kube.server.calls(verb="list", resource="pods"))


def is_ended(name: str) -> Callable[[Change], bool]:
    return lambda change: (
        isinstance(change, Changed)
        and change.attempt.name == name
        and change.attempt.state is AttemptState.ENDED
    )


async def well(executor: KubernetesExecutor) -> None:
    await eventually(lambda: not any(executor.problems().values()))


def cut_all(kube: Replicas) -> None:
    for stream in kube.server.streams("watch"):
        stream.abort()


def end_all(kube: Replicas) -> None:
    for stream in kube.server.streams("watch"):
        stream.end()


def cut_all_in_the_next_line(kube: Replicas) -> None:
    for stream in kube.server.streams("watch"):
        stream.cuts_next = True


def silence_all(kube: Replicas) -> None:
    for stream in kube.server.streams("watch"):
        stream.silence()


def refuse_versions(kube: Replicas) -> None:
    kube.server.faults.answer(410, verb="watch", times=2)
    cut_all(kube)


def outdate_versions(kube: Replicas) -> None:
    kube.server.faults.gone(times=2)
    cut_all(kube)


TOO_OLD: dict[str, Callable[[Replicas], None]] = {
    "as the response": refuse_versions,
    "as the first line of the stream": outdate_versions,
    "in the stream": lambda kube: kube.server.watch_error(),
}
BROKEN: dict[str, Callable[[Replicas], None]] = {
    "cut": cut_all,
    "ended": end_all,
    "cut in the middle of the next line": cut_all_in_the_next_line,
}


@pytest.mark.parametrize("how", TOO_OLD)
async def test_an_expired_watch_lists_again_and_misses_no_change(kube: Replicas, how: str) -> None:
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await watched(kube)
        before = lists(kube)
        TOO_OLD[how](kube)
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await eventually(lambda: lists(kube) >= before + 2)
        await well(executor)


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_watch_resumes_without_a_list(kube: Replicas, how: str) -> None:
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await watched(kube)
        before = lists(kube)
        async with synced(executor) as changes:
            BROKEN[how](kube)
            kube.write(ONE, "a line")
            kube.end(ONE)
            async for change in changes:
                if is_ended(ONE)(change):
                    break
        assert lists(kube) == before


async def test_a_silent_watch_is_reopened(kube: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (executor_module, pod_records):
        monkeypatch.setattr(
            module, "Informer", functools.partial(informer.Informer, read_timeout_seconds=0.5)
        )
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await watched(kube)
        silence_all(kube)
        kube.end(ONE)
        await first_change(executor, is_ended(ONE))


async def test_a_watch_that_is_silent_for_long_is_a_problem_until_it_receives_data(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "MAX_WATCH_AGE_SECONDS", 0.3)
    async with kube.executor() as executor:
        await watched(kube)
        silent = kube.server.streams("watch")
        silence_all(kube)
        await eventually(lambda: "no data received for" in (executor.problems()[BUILDS] or ""))
        kube.server.bookmark()
        for stream in silent:
            stream.resume()
        await eventually(lambda: executor.problems()[BUILDS] is None)


async def test_watches_that_end_immediately_are_reopened_with_backoff(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "PAUSES", doubling(0.2, 30.0))
    fault = kube.server.faults.empty(verb="watch", times=None)
    async with kube.executor() as executor:
        await eventually(lambda: len(kube.server.calls(verb="watch")) >= 2)
        await asyncio.sleep(1.5)
        assert len(kube.server.calls(verb="watch")) <= 12
        assert lists(kube) == 2
        fault.remove()
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await well(executor)


async def test_watches_that_expire_immediately_are_listed_with_backoff(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "PAUSES", doubling(0.2, 30.0))
    fault = kube.server.faults.gone(times=None)
    async with kube.executor() as executor:
        await eventually(lambda: fault.hits >= 2)
        await asyncio.sleep(1.5)
        assert lists(kube) <= 14
        fault.remove()
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)


async def test_a_bookmark_keeps_a_quiet_watch_from_expiring(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await watched(kube)
        kube.cluster.store.compact()
        kube.server.bookmark()
        kube.server.bookmark()
        await eventually(lambda: all(not stream.wakes.is_set() for stream in kube.server.streams("watch")))
        await asyncio.sleep(0.1)
        before = lists(kube)
        broken = kube.server.streams("watch")
        cut_all(kube)
        await eventually(
            lambda: (
                len(kube.server.streams("watch")) == 2 and not set(broken) & set(kube.server.streams("watch"))
            )
        )
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        assert lists(kube) == before


async def test_an_invalid_object_keeps_its_last_state_and_hides_no_other(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor:
        for name in (ONE, TWO):
            await executor.create(a_spec(name), AttemptStatus())
            await in_state(executor, name, AttemptState.RUNNING)
        await watched(kube)
        async with synced(executor) as changes:
            kube.cluster.edit(
                ONE, lambda data: data["metadata"].update(labels=data["metadata"]["labels"] | {"x": 1})
            )
            kube.end(TWO)
            found = [await anext(changes)]
            while not is_ended(TWO)(found[-1]):
                found.append(await anext(changes))
            assert not any(isinstance(change, Removed) for change in found)
            kube.cluster.edit(ONE, lambda data: data["metadata"]["labels"].pop("x"))
            kube.end(ONE)
            while not is_ended(ONE)(found[-1]):
                found.append(await anext(changes))
            assert not any(isinstance(change, Removed) for change in found)
        await well(executor)


async def test_invalid_data_in_a_watch_is_survived(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await watched(kube)
        for invalid in (b"invalid\n", b"\xff\xfe\n", b"{}\n", b'{"type":"NEWS","object":{}}\n', b"\n"):
            for watcher in kube.cluster.store.watchers():
                watcher.put(invalid)
            await watched(kube)
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await well(executor)


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_missing_permission_is_a_problem_that_names_it(kube: Replicas, verb: str) -> None:
    why = 'pods is forbidden: User "system:serviceaccount:builds:default" cannot list resource "pods"'
    fault = kube.server.faults.answer(403, message=why, verb=verb, times=None)
    async with kube.executor() as executor:
        await eventually(
            lambda: "Role must allow list and watch on pods" in (executor.problems()[BUILDS] or "")
        )
        assert why in (executor.problems()[DOCKER_API] or why)
        fault.remove()
        await well(executor)
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)


async def test_an_api_server_that_is_away_at_the_start_is_retried(kube: Replicas) -> None:
    await kube.server.stop()
    async with kube.executor() as executor:
        reading = asyncio.create_task(in_state(executor, ONE, AttemptState.RUNNING))
        await eventually(lambda: "does not answer" in (executor.problems()[BUILDS] or ""))
        await kube.server.start()
        await well(executor)
        await executor.create(a_spec(ONE), AttemptStatus())
        await reading


async def test_no_change_is_missed_while_the_api_server_is_away(kube: Replicas) -> None:
    async with kube.executor() as executor:
        for name in (ONE, TWO):
            await executor.create(a_spec(name), AttemptStatus())
            await in_state(executor, name, AttemptState.RUNNING)
        async with synced(executor) as changes:
            await kube.server.stop()
            kube.end(ONE)
            kube.cluster.vanish(TWO)
            await eventually(lambda: "does not answer" in (executor.problems()[BUILDS] or ""))
            await kube.server.start()
            found = [await anext(changes)]
            while not (Removed(TWO) in found and any(is_ended(ONE)(change) for change in found)):
                found.append(await anext(changes))
        await well(executor)


async def test_pods_that_vanished_unnoticed_are_removed_by_the_next_list(kube: Replicas) -> None:
    async with kube.executor() as executor:
        for name in (ONE, TWO):
            await executor.create(a_spec(name), AttemptStatus())
            await in_state(executor, name, AttemptState.RUNNING)
        async with synced(executor) as changes:
            silence_all(kube)
            kube.cluster.vanish(ONE)
            kube.cluster.store.compact()
            cut_all(kube)
            assert await anext(changes) == Removed(ONE)
        attempt = await executor.get(TWO)
        assert attempt is not None
        assert attempt.is_live


async def test_another_pod_of_the_same_name_is_another_record(kube: Replicas) -> None:
    async with kube.executor() as executor, kube.executor() as other:
        await executor.create(a_spec(ONE, image="registry.example.org/old:0"), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
        await in_state(other, ONE, AttemptState.RUNNING)
        async with synced(other) as changes:
            silence_all(kube)
            kube.cluster.vanish(ONE)
            assert await executor.get(ONE) is None
            await executor.create(a_spec(ONE, image="registry.example.org/new:0"), AttemptStatus())
            kube.cluster.store.compact()
            cut_all(kube)
            found = [await anext(changes)]
            while not isinstance(found[-1], Changed):
                found.append(await anext(changes))
            assert Removed(ONE) in found
            assert found[-1].attempt.spec.image == "registry.example.org/new:0"
            assert found.index(Removed(ONE)) < len(found) - 1


async def test_a_list_of_several_pages_is_read_completely_and_restarted_if_it_expires(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "PAGE_OBJECTS", 3)
    names = {f"build-{number}" for number in range(10)}
    async with kube.executor() as executor:
        for name in names:
            await executor.create(a_spec(name), AttemptStatus())
    fault = kube.server.faults.answer(410, verb="list", times=1)
    fault.wanted = lambda seen: "continue" in seen.query
    async with kube.executor() as executor:
        found = set()
        async with left(executor.changes()) as changes:
            async for change in changes:
                if not isinstance(change, Changed):
                    break
                found.add(change.attempt.name)
    assert found == names
    assert fault.hits == 1


async def test_retry_after_is_respected(kube: Replicas) -> None:
    kube.server.faults.answer(429, retry_after=1, verb="list", times=1)
    async with kube.executor() as executor:
        await well(executor)
        first, *others = kube.server.calls(verb="list", resource="pods")
        refused = next(seen for seen in others if seen.query == first.query)
        assert refused.at - first.at >= 1


@pytest.mark.parametrize("seed", range(4))
async def test_the_cache_is_complete_after_random_faults(kube: Replicas, seed: int) -> None:
    """Faults of every kind hit lists and watches at random while pods are created, changed and deleted."""
    rng, faults, cluster = random.Random(seed), kube.server.faults, kube.cluster
    names = [AttemptName(f"build-{number}") for number in range(6)]
    kinds: list[Callable[[], object]] = [
        lambda: faults.answer(rng.choice([429, 500, 503, 504]), verb=rng.choice(["watch", "list"])),
        lambda: faults.answer(410, verb="watch"),
        lambda: faults.gone(),
        lambda: faults.empty(verb="watch"),
        lambda: faults.drop_before(verb=rng.choice(["watch", "list"])),
        lambda: faults.drop_after(verb="list"),
        lambda: faults.cut(rng.randint(0, 9000), verb="watch", clean=rng.random() < 0.5),
        lambda: kube.server.watch_error(rng.choice([410, 500])),
        lambda: cluster.store.compact(),
        lambda: cut_all(kube),
    ]
    async with kube.executor() as creator, kube.executor() as executor:
        states: dict[AttemptName, AttemptState] = {}
        reading = asyncio.create_task(_follow(executor, states))
        for _ in range(60):
            rng.choice(kinds)()
            name = rng.choice(names)
            if not cluster.exists(name):
                # Otherwise the cached record of a pod that vanished prevents the creation of another.
                await creator.get(name)
                await creator.create(a_spec(name), AttemptStatus())
            elif rng.random() < 0.5:
                cluster.vanish(name)
            elif cluster.pod(name)["status"]["phase"] == "Running":
                kube.end(name)
            await asyncio.sleep(rng.random() * 0.03)
        faults.clear()
        cut_all(kube)

        def wanted() -> dict[AttemptName, AttemptState]:
            phases = {name: cluster.pod(name)["status"]["phase"] for name in names if cluster.exists(name)}
            return {
                name: AttemptState.RUNNING if phase == "Running" else AttemptState.ENDED
                for name, phase in phases.items()
            }

        await eventually(lambda: states == wanted())
        await well(executor)
        reading.cancel()


async def _follow(executor: KubernetesExecutor, states: dict[AttemptName, AttemptState]) -> None:
    async for change in executor.changes():
        if isinstance(change, Changed):
            states[change.attempt.name] = change.attempt.state
        elif isinstance(change, Removed):
            states.pop(change.name, None)
