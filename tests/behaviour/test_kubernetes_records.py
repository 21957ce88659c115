"""Records of the kubernetes executor: creation, status updates, cancellation and deletion under failures."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptState,
    AttemptStatus,
    Changed,
    Removed,
    StoredOutcome,
)
from rabbit2docker.consumer.executors.kubernetes import (
    KubernetesExecutor,
    client,
    manifest,
    pod_status,
)
from rabbit2docker.consumer.executors.kubernetes.client import ApiClient
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable, NameTaken, RecordMissing
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.reasons import FailureReason
from tests.behaviour.test_executors import ONE, in_state, read_all, synced, texts, with_request
from tests.support.kube import Stops
from tests.support.kube.objects import PODS
from tests.support.kube.replicas import Replicas
from tests.support.records import a_spec
from tests.support.waiting import eventually

OUTCOME = StoredOutcome(kind="completed", data={"image": "registry.example.org/build-one:0"})


def decided(status: AttemptStatus) -> AttemptStatus:
    return status.model_copy(update={"outcome": OUTCOME})


def reported(status: AttemptStatus) -> AttemptStatus:
    return status.model_copy(update={"reported": True, "reported_at": utc_now()})


def cancelled_by(replica: str, message: str) -> Callable[[AttemptStatus], AttemptStatus]:
    return lambda status: status.model_copy(update={"cancelled_by": replica, "cancel_message": message})


async def running(executor: KubernetesExecutor, name: AttemptName = ONE) -> Attempt:
    await executor.create(a_spec(name), AttemptStatus())
    return await in_state(executor, name, AttemptState.RUNNING)


async def ended(kube: Replicas, executor: KubernetesExecutor, name: AttemptName = ONE) -> Attempt:
    await running(executor, name)
    kube.end(name)
    return await in_state(executor, name, AttemptState.ENDED)


def foreign_pod(kube: Replicas, labels: dict[str, str], *, name: str = ONE) -> None:
    metadata = {"name": name, "labels": labels}
    spec = {"containers": [{"name": "web", "image": "nginx"}]}
    kube.cluster.store.create(PODS, kube.cluster.namespace, {"metadata": metadata, "spec": spec})


@asynccontextmanager
async def answers_held(monkeypatch: pytest.MonkeyPatch, verb: str) -> AsyncIterator[Callable[[], int]]:
    """Delay the responses to calls until the block ends; yields how many are waiting. The calls take effect at once."""
    arrived, released = 0, asyncio.Event()
    send = ApiClient._send

    async def late(self: ApiClient, method: str, *arguments: Any) -> Any:
        nonlocal arrived
        answer = await send(self, method, *arguments)
        if method == verb:
            arrived += 1
            await released.wait()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(ApiClient, "_send", late)
        yield lambda: arrived
        released.set()


# -- status updates


async def test_status_updates_of_several_replicas_at_once_are_all_kept(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await running(one)
        await in_state(two, ONE, AttemptState.RUNNING)
        writers = [
            executor.update_status(ONE, with_request(f"{replica}-{number}"))
            for number in range(15)
            for replica, executor in (("one", one), ("two", two))
        ]
        await asyncio.gather(*writers)
        for executor in (one, two):
            attempt = await executor.get(ONE)
            assert attempt is not None
            assert len(attempt.status.requests) == 30


async def test_an_outcome_is_decided_once_even_by_two_replicas_at_the_same_moment(kube: Replicas) -> None:
    def decide(kind: str) -> Callable[[AttemptStatus], AttemptStatus]:
        outcome = StoredOutcome(kind=kind, data={})
        return lambda status: status if status.outcome else status.model_copy(update={"outcome": outcome})

    async with kube.executor() as one, kube.executor() as two:
        for number in range(10):
            name = AttemptName(f"build-{number}")
            await running(one, name)
            await in_state(two, name, AttemptState.RUNNING)
            first, second = await asyncio.gather(
                one.update_status(name, decide("completed")), two.update_status(name, decide("failed"))
            )
            assert first.status.outcome == second.status.outcome


async def test_a_status_update_whose_response_was_lost_can_be_repeated(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.server.faults.drop_after(verb="patch")
        with pytest.raises(ExecutorUnavailable):
            await executor.update_status(ONE, with_request("request"))
        attempt = await executor.update_status(ONE, with_request("request"))
        assert attempt.status.requests == {"request": "digest"}
        attempt = await executor.update_status(ONE, with_request("other"))
        assert set(attempt.status.requests) == {"request", "other"}


@pytest.mark.parametrize("status", [409, 422])
async def test_a_status_update_that_is_rejected_without_a_conflict_is_not_repeated_forever(
    kube: Replicas, status: int
) -> None:
    async with kube.executor() as executor:
        await running(executor)
        fault = kube.server.faults.answer(status, message="a webhook says no", verb="patch", times=None)
        with pytest.raises(ExecutorUnavailable, match="a webhook says no"):
            await executor.update_status(ONE, with_request("request"))
        fault.remove()
        await executor.update_status(ONE, with_request("request"))


async def test_a_status_with_any_text_can_be_updated_again(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await running(one)
        await in_state(two, ONE, AttemptState.RUNNING)
        for number, text in enumerate(
            ["<a href='x'>&amp;</a>", "\u2028\u2029\x7f", "~1~0/", "\U0001f433 é", '"\\']
        ):
            for replica, executor in (("one", one), ("two", two)):
                updated = await executor.update_status(ONE, cancelled_by(f"{number} {replica} {text}", text))
                assert updated.status.cancel_message == text


async def test_an_invalid_status_annotation_does_not_stop_the_build(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.edit(
            ONE, lambda data: data["metadata"]["annotations"].update({manifest.STATUS: "{nonsense"})
        )
        kube.cluster.edit(ONE, lambda data: data["metadata"]["annotations"].pop(manifest.STATUS_VERSION))
        await executor.update_status(ONE, with_request("request"))
        attempt = await executor.update_status(ONE, decided)
        assert (set(attempt.status.requests), attempt.status.outcome) == ({"request"}, OUTCOME)


async def test_a_status_update_never_reaches_another_pod_of_the_same_name(kube: Replicas) -> None:
    async with kube.executor() as executor, kube.executor() as other:
        await running(executor)
        fault = kube.server.faults.hang(verb="patch")
        updating = asyncio.create_task(executor.update_status(ONE, with_request("request")))
        await eventually(lambda: fault.hits)
        kube.cluster.vanish(ONE)
        assert await other.get(ONE) is None
        await other.create(a_spec(ONE), AttemptStatus())
        fault.release()
        with pytest.raises(RecordMissing):
            await updating
        attempt = await other.get(ONE)
        assert attempt is not None
        assert attempt.status == AttemptStatus()


# -- creation


async def test_a_pod_whose_creation_lost_its_response_is_adopted(kube: Replicas) -> None:
    async with kube.executor() as executor:
        kube.server.faults.drop_after(verb="create", resource="pods")
        with pytest.raises(ExecutorUnavailable):
            await executor.create(a_spec(ONE), AttemptStatus())
        attempt, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert not is_new
        assert attempt.spec == a_spec(ONE)
    async with kube.executor() as executor:
        # A restarted service creates before its first list is complete.
        silence = kube.server.faults.hang(verb="list", times=None)
        attempt, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert not is_new
        silence.remove()
    assert kube.starts(ONE) == 1


async def test_replicas_that_create_an_attempt_at_once_make_one_pod(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        for number in range(10):
            spec = a_spec(f"build-{number}")
            made = await asyncio.gather(one.create(spec, AttemptStatus()), two.create(spec, AttemptStatus()))
            assert sorted(is_new for _, is_new in made) == [False, True]


async def test_a_cancelled_caller_leaves_a_complete_record(kube: Replicas) -> None:
    async with kube.executor() as executor:
        fault = kube.server.faults.hang(verb="create", resource="pods")
        creating = asyncio.create_task(executor.create(a_spec(ONE), AttemptStatus()))
        await eventually(lambda: fault.hits)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        fault.release()
        await in_state(executor, ONE, AttemptState.RUNNING)


@pytest.mark.parametrize("labels", [{}, {"app": "web"}, manifest.labels(Settings(), manifest.BUILD)])
async def test_a_pod_that_is_not_a_build_is_left_alone(kube: Replicas, labels: dict[str, str]) -> None:
    foreign_pod(kube, labels)
    async with kube.executor() as executor:
        with pytest.raises(NameTaken):
            await executor.create(a_spec(ONE), AttemptStatus())
        assert await executor.get(ONE) is None
        await executor.cancel(ONE)
        await executor.delete(ONE)
    assert "deletionTimestamp" not in kube.cluster.pod(ONE)["metadata"]


async def test_a_full_quota_is_a_temporary_error_that_says_so(kube: Replicas) -> None:
    kube.cluster.pod_limit = 1
    async with kube.executor() as executor:
        await running(executor)
        with pytest.raises(ExecutorUnavailable, match=r"Waiting for free quota in the cluster: .*builds"):
            await executor.create(a_spec("build-two"), AttemptStatus())
        kube.end(ONE)
        _, is_new = await executor.create(a_spec("build-two"), AttemptStatus())
        assert is_new


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, 'violates PodSecurity "restricted:latest": seccompProfile'),
        (422, "Pod is invalid: spec"),
        (400, "bad"),
    ],
)
async def test_a_rejected_pod_is_a_temporary_error_with_the_servers_message(
    kube: Replicas, status: int, message: str
) -> None:
    kube.server.faults.answer(status, message=message, verb="create", resource="pods")
    async with kube.executor() as executor:
        with pytest.raises(ExecutorUnavailable, match=message.split(":")[0].replace('"', ".")):
            await executor.create(a_spec(ONE), AttemptStatus())
        _, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new


@pytest.mark.parametrize("status", [429, 503])
async def test_the_servers_retry_after_is_passed_on(kube: Replicas, status: int) -> None:
    kube.server.faults.answer(status, retry_after=7, verb="create", resource="pods")
    async with kube.executor() as executor:
        with pytest.raises(ExecutorUnavailable) as refused:
            await executor.create(a_spec(ONE), AttemptStatus())
        assert refused.value.retry_after == 7


async def test_a_creation_that_times_out_is_found_later(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor, AttemptName("build-first"))
        monkeypatch.setattr(ApiClient, "call", functools.partialmethod(ApiClient.call, timeout_seconds=0.3))
        fault = kube.server.faults.hang(verb="create", resource="pods")
        with pytest.raises(ExecutorUnavailable, match="does not answer"):
            await executor.create(a_spec(ONE), AttemptStatus())
        fault.release()
        monkeypatch.undo()
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    assert kube.starts(ONE) == 1


@pytest.mark.parametrize("text", ["", "nonsense: [", "apiVersion: v1\nkind: Config\n", "- 1", "clusters: 5"])
async def test_an_invalid_kubeconfig_is_a_configuration_error(kube: Replicas, text: str) -> None:
    path = kube.settings.kubernetes.kubeconfig
    assert path is not None
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="KUBECONFIG"):
        await kube.executor().__aenter__()


async def test_expired_credentials_are_reloaded(
    kube: Replicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RELOAD_INTERVAL_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("first")
    kube.server.token = "first"
    path = kube.server.kubeconfig(tmp_path / "with-token", token_file=token)
    async with kube.executor(kubeconfig=path) as executor:
        await running(executor)
        kube.write(ONE, "here")
        token.write_text("second")
        kube.server.token = "second"
        await executor.update_status(ONE, with_request("request"))
        for stream in kube.server.streams("watch"):
            stream.abort()
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        token.write_text("third")
        kube.server.token = "third"
        assert texts(await read_all(executor)) == ["here"]


async def test_rejected_credentials_are_not_reloaded_all_the_time(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0
    load = ApiClient._load_configuration

    async def counted(self: ApiClient) -> None:
        nonlocal loads
        loads += 1
        await load(self)

    monkeypatch.setattr(ApiClient, "_load_configuration", counted)
    async with kube.executor() as executor:
        kube.server.token = "another"
        for _ in range(20):
            with pytest.raises(ExecutorUnavailable, match="Unauthorized"):
                await executor.create(a_spec(ONE), AttemptStatus())
        kube.server.token = None
        await running(executor)
        assert loads <= 3


# -- a record outlives its pod


async def test_a_deleted_pod_stays_a_record_until_its_end_is_reported_and_then_answers_duplicates(
    kube: Replicas,
) -> None:
    async with kube.executor(keep_ended_seconds=1.0) as executor:
        await running(executor)
        async with synced(executor) as changes:
            kube.cluster.delete(ONE)
            await in_state_of(changes, AttemptState.ENDED)
            assert kube.cluster.exists(ONE)
            await executor.update_status(ONE, decided)
            assert kube.cluster.exists(ONE)
            attempt = await executor.update_status(ONE, reported)
            assert attempt.status.reported
            await eventually(lambda: not kube.cluster.exists(ONE))
            found = await executor.get(ONE)
            assert found is not None
            assert found.status.outcome == OUTCOME
            with pytest.raises(RecordMissing):
                await executor.update_status(ONE, with_request("late"))
            while not isinstance(change := await anext(changes), Removed):
                assert isinstance(change, Changed)
        assert await executor.get(ONE) is None


async def in_state_of(changes: AsyncIterator[Any], state: AttemptState) -> Attempt:
    """Read changes until the attempt is in that state."""
    async for change in changes:
        assert isinstance(change, Changed)
        if change.attempt.state is state:
            return change.attempt
    raise AssertionError("the changes ended")


async def test_a_reported_record_is_kept_even_if_the_watch_is_faster_than_the_response(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.delete(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.update_status(ONE, decided)
        async with synced(executor) as changes:
            async with answers_held(monkeypatch, "PATCH") as arrived:
                updating = asyncio.create_task(executor.update_status(ONE, reported))
                await eventually(lambda: arrived())
                await in_the_watch(kube, executor)
            attempt = await updating
            assert attempt.status.reported
            found = await executor.get(ONE)
            assert found is not None
            assert found.status.reported
            await executor.delete(ONE)
            seen = [await anext(changes)]
            while seen[-1] != Removed(ONE) or executor._records.by_name.get(ONE):
                seen.append(await anext(changes))
        assert seen.count(Removed(ONE)) == 1


async def in_the_watch(kube: Replicas, executor: KubernetesExecutor) -> None:
    """Return once the executor's watch has reported everything that happened so far."""
    name = AttemptName("build-marker")
    async with kube.executor() as other:
        await other.create(a_spec(name), AttemptStatus())
    await eventually(lambda: name in executor._records.by_name)


async def test_a_pod_removed_before_its_creation_is_answered_leaves_no_record(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor, AttemptName("build-first"))
        async with answers_held(monkeypatch, "POST") as arrived:
            creating = asyncio.create_task(executor.create(a_spec(ONE), AttemptStatus()))
            await eventually(lambda: arrived())
            await in_state(executor, ONE, AttemptState.RUNNING)
            kube.cluster.vanish(ONE)
            await eventually(lambda: ONE not in executor._records.by_name)
        await asyncio.gather(creating, return_exceptions=True)
        assert ONE not in executor._records.by_name
        _, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new


async def test_a_report_whose_response_was_lost_with_the_pod_can_be_repeated(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.delete(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        kube.server.faults.drop_after(verb="patch")
        with pytest.raises(ExecutorUnavailable):
            await executor.update_status(ONE, reported)
        attempt = await executor.update_status(ONE, reported)
        assert attempt.status.reported
        assert not kube.cluster.exists(ONE)
        assert await executor.get(ONE) == attempt


# -- cancellation


async def test_an_unscheduled_build_can_be_cancelled(kube: Replicas) -> None:
    kube.cluster.automatic = False
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        kube.cluster.unschedulable(ONE)
        await executor.cancel(ONE)
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.started_at is None
        assert kube.cluster.exists(ONE)
        await executor.update_status(ONE, reported)
        await eventually(lambda: not kube.cluster.exists(ONE))


async def test_a_build_whose_container_waits_can_be_cancelled(kube: Replicas) -> None:
    kube.cluster.automatic = False
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        kube.cluster.schedule(ONE)
        kube.cluster.waiting(ONE, "ErrImagePull", "no such image")
        await executor.cancel(ONE)
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.started_at is None
        assert await read_all(executor) == []


async def test_a_pod_is_deleted_once_however_often_its_build_is_cancelled(kube: Replicas) -> None:
    kube.cluster.stops = Stops.HANGS
    async with kube.executor() as one, kube.executor() as two:
        await running(one)
        for executor in (one, two, one):
            await executor.cancel(ONE)
        assert len(kube.server.calls(verb="delete", name=ONE)) == 1
        kube.end(ONE, "cancelled")
        await in_state(one, ONE, AttemptState.ENDED)
        await two.cancel(ONE)
        assert len(kube.server.calls(verb="delete", name=ONE)) == 1


async def test_a_builder_that_ignores_sigterm_is_killed(kube: Replicas) -> None:
    kube.cluster.stops = Stops.STUBBORN
    async with kube.executor(termination_seconds=1) as executor:
        await running(executor)
        await executor.cancel(ONE)
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.result is None
        assert attempt.external_end is not None
        assert attempt.external_end.reason is FailureReason.POD_DELETED


async def test_a_cancelled_build_on_a_lost_node_ends(kube: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_status, "LOST_SECONDS", 0.2)
    async with kube.executor(termination_seconds=1) as executor:
        await running(executor)
        kube.cluster.lose_node("node-1")
        await executor.cancel(ONE)
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.external_end is not None
        assert attempt.external_end.reason is FailureReason.NODE_LOST
        await executor.update_status(ONE, reported)
        await executor.delete(ONE)
        assert not kube.cluster.exists(ONE)


async def test_a_cancellation_whose_response_was_lost_takes_effect(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.server.faults.drop_after(verb="delete")
        with suppress(ExecutorUnavailable):
            await executor.cancel(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.cancel(ONE)


async def test_a_cancellation_never_deletes_another_pod_of_the_same_name(kube: Replicas) -> None:
    async with kube.executor() as executor, kube.executor() as other:
        await running(executor)
        fault = kube.server.faults.hang(verb="delete")
        cancelling = asyncio.create_task(executor.cancel(ONE))
        await eventually(lambda: fault.hits)
        kube.cluster.vanish(ONE)
        assert await other.get(ONE) is None
        await other.create(a_spec(ONE), AttemptStatus())
        fault.release()
        await cancelling
        attempt = await other.get(ONE)
        assert attempt is not None
        assert attempt.is_live
        assert "deletionTimestamp" not in kube.cluster.pod(ONE)["metadata"]


# -- deletion


async def test_a_deleted_record_is_gone_with_its_finalizer_even_if_it_was_never_reported(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor:
        await ended(kube, executor)
        await executor.delete(ONE)
        assert not kube.cluster.exists(ONE)
        await executor.delete(ONE)


@pytest.mark.parametrize("verb", ["patch", "delete"])
async def test_a_failed_deletion_of_a_record_can_be_repeated(kube: Replicas, verb: str) -> None:
    async with kube.executor() as executor:
        for how in (kube.server.faults.drop_before, kube.server.faults.drop_after):
            await ended(kube, executor)
            how(verb=verb)
            # The HTTP library itself repeats deletions whose connection broke.
            with suppress(ExecutorUnavailable):
                await executor.delete(ONE)
            await executor.delete(ONE)
            assert not kube.cluster.exists(ONE)
            assert await executor.get(ONE) is None


async def test_a_name_stays_unavailable_while_a_foreign_finalizer_keeps_its_deleted_pod(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor:
        await ended(kube, executor)
        kube.cluster.edit(ONE, lambda data: data["metadata"]["finalizers"].append("example.org/audit"))
        await executor.delete(ONE)
        assert kube.cluster.exists(ONE)
        with pytest.raises(ExecutorUnavailable, match="still being removed"):
            await executor.create(a_spec(ONE), AttemptStatus())
        kube.cluster.vanish(ONE)
        _, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new


async def test_a_deletion_of_a_record_by_another_replica_is_noticed(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await ended(kube, one)
        await in_state(two, ONE, AttemptState.ENDED)
        async with synced(two) as changes:
            await one.delete(ONE)
            assert await anext(changes) == Removed(ONE)


# -- cost


async def test_a_build_costs_at_most_six_calls_for_any_number_of_replicas(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor, kube.executor(), kube.executor():
        await ended(kube, executor, AttemptName("build-first"))
        await eventually(lambda: len(kube.server.streams("watch")) == 6)
        before = len(kube.server.requests)
        await executor.create(a_spec(ONE), AttemptStatus(requests={"request": "digest"}))
        reading = asyncio.create_task(read_all(executor))
        kube.write(ONE, "first")
        await eventually(lambda: kube.server.streams("log", name=ONE))
        kube.write(ONE, "second")
        kube.end(ONE)
        assert texts(await reading) == ["first", "second"]
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.update_status(ONE, decided)
        await executor.update_status(ONE, reported)
        await executor.delete(ONE)
        assert not kube.cluster.exists(ONE)
        calls = [f"{seen.verb} {seen.resource}" for seen in kube.server.requests[before:]]
        assert len(calls) <= 6, calls


async def test_the_builders_program_is_created_once_for_all_builds(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await asyncio.gather(
            *(executor.create(a_spec(f"build-{number}"), AttemptStatus()) for number in range(10))
        )
        assert len(kube.server.calls(resource="configmaps")) == 1
    async with kube.executor() as executor:
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    volumes = kube.cluster.pod(ONE)["spec"]["volumes"]
    names = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    assert len(names) == 1
