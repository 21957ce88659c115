"""Records of the kubernetes executor: what is written is written once and kept, whatever becomes of calls and pods."""

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


def cancelled_by(who: str, message: str) -> Callable[[AttemptStatus], AttemptStatus]:
    return lambda status: status.model_copy(update={"cancelled_by": who, "cancel_message": message})


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
    """Have what is asked done at once, and its answers come in when the test leaves; yields how many there are."""
    arrived, released = 0, asyncio.Event()
    once = ApiClient._once

    async def late(self: ApiClient, method: str, *arguments: Any) -> Any:
        nonlocal arrived
        answer = await once(self, method, *arguments)
        if method == verb:
            arrived += 1
            await released.wait()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(ApiClient, "_once", late)
        yield lambda: arrived
        released.set()


# -- writes


async def test_marks_that_replicas_write_at_once_are_all_kept(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await running(one)
        await in_state(two, ONE, AttemptState.RUNNING)
        writers = [
            executor.update_status(ONE, with_request(f"{who}-{number}"))
            for number in range(15)
            for who, executor in (("one", one), ("two", two))
        ]
        await asyncio.gather(*writers)
        for executor in (one, two):
            attempt = await executor.get(ONE)
            assert attempt is not None
            assert len(attempt.status.requests) == 30


async def test_an_outcome_is_decided_once_even_by_two_at_the_same_moment(kube: Replicas) -> None:
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


async def test_a_mark_whose_answer_was_lost_is_there_and_may_be_written_again(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.server.faults.drop_after(verb="patch")
        with pytest.raises(ExecutorUnavailable):
            await executor.update_status(ONE, with_request("wish"))
        attempt = await executor.update_status(ONE, with_request("wish"))
        assert attempt.status.requests == {"wish": "digest"}
        attempt = await executor.update_status(ONE, with_request("other"))
        assert set(attempt.status.requests) == {"wish", "other"}


@pytest.mark.parametrize("status", [409, 422])
async def test_a_write_that_is_refused_without_a_reason_is_not_tried_for_ever(
    kube: Replicas, status: int
) -> None:
    async with kube.executor() as executor:
        await running(executor)
        fault = kube.server.faults.answer(status, message="a webhook says no", verb="patch", times=None)
        with pytest.raises(ExecutorUnavailable, match="a webhook says no"):
            await executor.update_status(ONE, with_request("wish"))
        fault.remove()
        await executor.update_status(ONE, with_request("wish"))


async def test_any_text_can_be_marked_again_and_again(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await running(one)
        await in_state(two, ONE, AttemptState.RUNNING)
        for number, text in enumerate(
            ["<a href='x'>&amp;</a>", "\u2028\u2029\x7f", "~1~0/", "\U0001f433 é", '"\\']
        ):
            for who, executor in (("one", one), ("two", two)):
                marked = await executor.update_status(ONE, cancelled_by(f"{number} {who} {text}", text))
                assert marked.status.cancel_message == text


async def test_marks_that_somebody_spoilt_do_not_stop_the_build(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.edit(
            ONE, lambda data: data["metadata"]["annotations"].update({manifest.STATUS: "{nonsense"})
        )
        kube.cluster.edit(ONE, lambda data: data["metadata"]["annotations"].pop(manifest.STATUS_VERSION))
        await executor.update_status(ONE, with_request("wish"))
        attempt = await executor.update_status(ONE, decided)
        assert (set(attempt.status.requests), attempt.status.outcome) == ({"wish"}, OUTCOME)


async def test_a_mark_never_lands_on_another_pod_of_the_same_name(kube: Replicas) -> None:
    async with kube.executor() as executor, kube.executor() as other:
        await running(executor)
        fault = kube.server.faults.hang(verb="patch")
        marking = asyncio.create_task(executor.update_status(ONE, with_request("wish")))
        await eventually(lambda: fault.hits)
        kube.cluster.vanish(ONE)
        assert await other.get(ONE) is None
        await other.create(a_spec(ONE), AttemptStatus())
        fault.release()
        with pytest.raises(RecordMissing):
            await marking
        attempt = await other.get(ONE)
        assert attempt is not None
        assert attempt.status == AttemptStatus()


# -- creation


async def test_a_pod_whose_answer_was_lost_is_adopted(kube: Replicas) -> None:
    async with kube.executor() as executor:
        kube.server.faults.drop_after(verb="create", resource="pods")
        with pytest.raises(ExecutorUnavailable):
            await executor.create(a_spec(ONE), AttemptStatus())
        attempt, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert not is_new
        assert attempt.spec == a_spec(ONE)
    async with kube.executor() as executor:
        # A service that starts anew asks before it has heard of anything.
        silence = kube.server.faults.hang(verb="list", times=None)
        attempt, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert not is_new
        silence.remove()
    assert kube.starts(ONE) == 1


async def test_replicas_that_create_at_once_make_one_pod(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        for number in range(10):
            spec = a_spec(f"build-{number}")
            made = await asyncio.gather(one.create(spec, AttemptStatus()), two.create(spec, AttemptStatus()))
            assert sorted(is_new for _, is_new in made) == [False, True]


async def test_a_caller_that_is_cancelled_leaves_a_whole_record_behind(kube: Replicas) -> None:
    async with kube.executor() as executor:
        fault = kube.server.faults.hang(verb="create", resource="pods")
        creating = asyncio.create_task(executor.create(a_spec(ONE), AttemptStatus()))
        await eventually(lambda: fault.hits)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        fault.release()
        await in_state(executor, ONE, AttemptState.RUNNING)


@pytest.mark.parametrize("labels", [{}, {"app": "web"}, manifest.labels(Settings(), manifest.BUILD)])
async def test_a_pod_that_is_no_build_keeps_its_name(kube: Replicas, labels: dict[str, str]) -> None:
    foreign_pod(kube, labels)
    async with kube.executor() as executor:
        with pytest.raises(NameTaken):
            await executor.create(a_spec(ONE), AttemptStatus())
        assert await executor.get(ONE) is None
        await executor.cancel(ONE)
        await executor.delete(ONE)
    assert "deletionTimestamp" not in kube.cluster.pod(ONE)["metadata"]


async def test_a_full_quota_is_waited_for_in_words_that_say_so(kube: Replicas) -> None:
    kube.cluster.pod_limit = 1
    async with kube.executor() as executor:
        await running(executor)
        with pytest.raises(ExecutorUnavailable, match=r"Waiting for room in the cluster's quota: .*builds"):
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
async def test_a_pod_that_is_not_taken_is_waited_for_with_the_servers_words(
    kube: Replicas, status: int, message: str
) -> None:
    kube.server.faults.answer(status, message=message, verb="create", resource="pods")
    async with kube.executor() as executor:
        with pytest.raises(ExecutorUnavailable, match=message.split(":")[0].replace('"', ".")):
            await executor.create(a_spec(ONE), AttemptStatus())
        _, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new


@pytest.mark.parametrize("status", [429, 503])
async def test_how_long_the_server_wants_to_be_left_alone_is_handed_on(kube: Replicas, status: int) -> None:
    kube.server.faults.answer(status, retry_after=7, verb="create", resource="pods")
    async with kube.executor() as executor:
        with pytest.raises(ExecutorUnavailable) as refused:
            await executor.create(a_spec(ONE), AttemptStatus())
        assert refused.value.retry_after == 7


async def test_a_call_that_is_not_answered_ends_and_what_it_did_is_found_later(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor, AttemptName("build-first"))
        monkeypatch.setattr(ApiClient, "call", functools.partialmethod(ApiClient.call, seconds=0.3))
        fault = kube.server.faults.hang(verb="create", resource="pods")
        with pytest.raises(ExecutorUnavailable, match="does not answer"):
            await executor.create(a_spec(ONE), AttemptStatus())
        fault.release()
        monkeypatch.undo()
        await executor.create(a_spec(ONE), AttemptStatus())
        await in_state(executor, ONE, AttemptState.RUNNING)
    assert kube.starts(ONE) == 1


@pytest.mark.parametrize("text", ["", "nonsense: [", "apiVersion: v1\nkind: Config\n", "- 1", "clusters: 5"])
async def test_a_kubeconfig_that_makes_no_sense_is_a_wrong_setting(kube: Replicas, text: str) -> None:
    path = kube.settings.kubernetes.kubeconfig
    assert path is not None
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="KUBECONFIG"):
        await kube.executor().__aenter__()


async def test_credentials_that_expire_are_read_again(
    kube: Replicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOGIN_AGAIN_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("first")
    kube.server.token = "first"
    path = kube.server.kubeconfig(tmp_path / "with-token", token_file=token)
    async with kube.executor(kubeconfig=path) as executor:
        await running(executor)
        kube.write(ONE, "here")
        token.write_text("second")
        kube.server.token = "second"
        await executor.update_status(ONE, with_request("wish"))
        for stream in kube.server.streams("watch"):
            stream.abort()
        kube.end(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        token.write_text("third")
        kube.server.token = "third"
        assert texts(await read_all(executor)) == ["here"]


async def test_credentials_that_are_refused_for_good_are_waited_for_and_not_read_without_end(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = 0
    log_in = ApiClient._log_in

    async def counted(self: ApiClient) -> None:
        nonlocal logins
        logins += 1
        await log_in(self)

    monkeypatch.setattr(ApiClient, "_log_in", counted)
    async with kube.executor() as executor:
        kube.server.token = "another"
        for _ in range(20):
            with pytest.raises(ExecutorUnavailable, match="Unauthorized"):
                await executor.create(a_spec(ONE), AttemptStatus())
        kube.server.token = None
        await running(executor)
        assert logins <= 3


# -- a record outlives its pod


async def test_a_pod_deleted_by_hand_stays_a_record_until_its_end_is_told_and_then_answers_duplicates(
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
    """Read on until the attempt is in that state."""
    async for change in changes:
        assert isinstance(change, Changed)
        if change.attempt.state is state:
            return change.attempt
    raise AssertionError("the changes ended")


async def test_a_told_record_is_kept_even_if_the_watch_is_faster_than_the_answer(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.cluster.delete(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.update_status(ONE, decided)
        async with synced(executor) as changes:
            async with answers_held(monkeypatch, "PATCH") as arrived:
                marking = asyncio.create_task(executor.update_status(ONE, reported))
                await eventually(lambda: arrived())
                await in_the_watch(kube, executor)
            attempt = await marking
            assert attempt.status.reported
            found = await executor.get(ONE)
            assert found is not None
            assert found.status.reported
            await executor.delete(ONE)
            told = [await anext(changes)]
            while told[-1] != Removed(ONE) or executor._records.get(ONE):
                told.append(await anext(changes))
        assert told.count(Removed(ONE)) == 1


async def in_the_watch(kube: Replicas, executor: KubernetesExecutor) -> None:
    """Return when the executor's watch has told all that happened so far."""
    name = AttemptName("build-marker")
    async with kube.executor() as other:
        await other.create(a_spec(name), AttemptStatus())
    await eventually(lambda: name in executor._records)


async def test_a_pod_whose_creation_is_answered_after_its_end_leaves_no_ghost(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kube.executor() as executor:
        await running(executor, AttemptName("build-first"))
        async with answers_held(monkeypatch, "POST") as arrived:
            creating = asyncio.create_task(executor.create(a_spec(ONE), AttemptStatus()))
            await eventually(lambda: arrived())
            await in_state(executor, ONE, AttemptState.RUNNING)
            kube.cluster.vanish(ONE)
            await eventually(lambda: ONE not in executor._records)
        await asyncio.gather(creating, return_exceptions=True)
        assert ONE not in executor._records
        _, is_new = await executor.create(a_spec(ONE), AttemptStatus())
        assert is_new


async def test_a_report_whose_answer_was_lost_with_the_pod_is_as_good(kube: Replicas) -> None:
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


# -- ending


async def test_a_build_that_no_node_took_can_be_cancelled(kube: Replicas) -> None:
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


async def test_a_build_that_runs_is_asked_to_end_once_however_often_it_is_cancelled(kube: Replicas) -> None:
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


async def test_a_builder_that_does_not_obey_is_killed(kube: Replicas) -> None:
    kube.cluster.stops = Stops.STUBBORN
    async with kube.executor(termination_seconds=1) as executor:
        await running(executor)
        await executor.cancel(ONE)
        attempt = await in_state(executor, ONE, AttemptState.ENDED)
        assert attempt.result is None
        assert attempt.external_end is not None
        assert attempt.external_end.reason is FailureReason.POD_DELETED


async def test_a_build_on_a_node_that_does_not_answer_ends_when_it_is_cancelled(
    kube: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_a_cancel_whose_answer_is_lost_has_happened(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await running(executor)
        kube.server.faults.drop_after(verb="delete")
        with suppress(ExecutorUnavailable):
            await executor.cancel(ONE)
        await in_state(executor, ONE, AttemptState.ENDED)
        await executor.cancel(ONE)


async def test_a_cancel_never_hits_another_pod_of_the_same_name(kube: Replicas) -> None:
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


# -- forgetting


async def test_a_forgotten_pod_is_gone_with_its_finalizer_even_if_it_was_never_told(kube: Replicas) -> None:
    async with kube.executor() as executor:
        await ended(kube, executor)
        await executor.delete(ONE)
        assert not kube.cluster.exists(ONE)
        await executor.delete(ONE)


@pytest.mark.parametrize("verb", ["patch", "delete"])
async def test_a_forgetting_that_failed_on_its_way_can_be_repeated(kube: Replicas, verb: str) -> None:
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


async def test_a_forgotten_pod_that_somebody_else_holds_on_to_is_no_stranger_to_its_own_name(
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


async def test_a_replica_that_others_forgot_a_pod_behind_learns_of_it(kube: Replicas) -> None:
    async with kube.executor() as one, kube.executor() as two:
        await ended(kube, one)
        await in_state(two, ONE, AttemptState.ENDED)
        async with synced(two) as changes:
            await one.delete(ONE)
            assert await anext(changes) == Removed(ONE)


# -- cost


async def test_a_build_costs_at_most_six_calls_whatever_the_number_of_replicas_that_look_on(
    kube: Replicas,
) -> None:
    async with kube.executor() as executor, kube.executor(), kube.executor():
        await ended(kube, executor, AttemptName("build-first"))
        await eventually(lambda: len(kube.server.streams("watch")) == 6)
        before = len(kube.server.requests)
        await executor.create(a_spec(ONE), AttemptStatus(requests={"wish": "digest"}))
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


async def test_the_builders_program_is_delivered_once_for_all_builds(kube: Replicas) -> None:
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
