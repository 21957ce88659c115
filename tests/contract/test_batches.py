"""Batches in the JSON API, over real HTTP and a real database."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.hub.store.store import Store
from rabbit2docker.replay.publication import id_prefix, new_replay_id
from rabbit2docker_schemas.batches import BatchName, batch_of, new_batch
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.reasons import RejectReason
from tests.contract.test_binder_stream import BUILD, accepted, completed, failed, rejected
from tests.support.hub_api import Api, happened
from tests.support.hub_service import MemoryBuilds, serving

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
BATCH = BatchName("prebuild-20260131t120000-0a1b2c", 4)
TOKENS = {"ada": "ada-secret", "bob": "bob-secret", "root": "root-secret"}


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    async with serving(MemoryBuilds(), store, auth="tokens", tokens=TOKENS, admins=["root"]) as viewer:
        yield Api(viewer.address).with_token("root-secret")


async def answered(store: Store) -> None:
    """Enter three answers to a batch of four, and a build that was requested alone."""
    first, second, third = (BATCH.request_id(number) for number in (1, 2, 3))
    await store.put(happened(first, *BUILD, completed(attempt=1)))
    await store.put(happened(second, *BUILD, failed()))
    await store.put(happened(third, rejected(RejectReason.NOT_ALLOWED, "=1+1")))
    await store.put(happened("alone", *BUILD, completed(attempt=1)))


def test_a_request_names_its_batch_by_its_id() -> None:
    batch = new_batch("prebuild", NOW, 40)
    assert batch_of(batch.request_id(7)) == batch
    replay_id = new_replay_id(NOW)
    assert batch_of(f"{id_prefix(replay_id)}{'0a' * 16}") == BatchName(f"replay-{replay_id}")
    for alone in ("prebuild-1", "replay", "webhook-" + "a" * 40, f"{batch.id}-of40-7\n", ""):
        assert batch_of(alone) is None


async def test_a_batch_is_listed_with_its_progress_and_reported(api: Api, store: Store) -> None:
    await answered(store)
    [batch] = (await api.get("api/batches")).json["batches"]
    assert batch["counts"] == {"completed": 1, "failed": 1, "rejected": 1}
    assert (batch["id"], batch["kind"], batch["size"]) == (BATCH.id, "prebuild", 4)
    assert (batch["answered"], batch["ended"], batch["over"]) == (3, 3, False)

    shown = (await api.get(f"api/batches/{BATCH.id}")).json
    reasons = {each["request_id"]: each.get("reason") for each in shown["requests"]}
    assert list(reasons.values()).count(None) == 1
    assert reasons[BATCH.request_id(3)] == "not_allowed"

    report = await api.get(f"api/batches/{BATCH.id}/report")
    lines = list(csv.DictReader(io.StringIO(report.text)))
    assert {line["state"] for line in lines} == {"completed", "failed", "rejected"}
    [refused] = [line for line in lines if line["state"] == "rejected"]
    assert refused["message"] == "'=1+1", "no spreadsheet calculates it"
    assert (await api.get("api/batches/prebuild-20260131t120000-ffffff")).status == 404


async def test_a_request_that_joins_a_build_and_one_that_is_redriven_are_counted_once(
    api: Api, store: Store
) -> None:
    await answered(store)
    # The rejected one is published again, and the last one joins the build of the first.
    await store.put(happened(BATCH.request_id(3), *BUILD, completed(attempt=1)))
    joined = build_id_of("default", BATCH.request_id(1))
    await store.put(
        happened(BATCH.request_id(4), accepted(attached=True).model_copy(update={"build_id": joined}))
    )
    [batch] = (await api.get("api/batches")).json["batches"]
    assert batch["counts"] == {"completed": 3, "failed": 1}
    assert batch["over"] is True
    requests = (await api.get(f"api/batches/{BATCH.id}")).json["requests"]
    assert len(requests) == 4
    assert [each["build_id"] for each in requests].count(joined) == 2


async def test_users_see_the_batches_of_their_own_builds_only(api: Api, store: Store) -> None:
    ada, bob = api.with_token("ada-secret"), api.with_token("bob-secret")
    await store.put(happened(BATCH.request_id(1), accepted(requester="ada")))
    await store.put(happened(BATCH.request_id(2), accepted(requester="grace")))
    [batch] = (await ada.get("api/batches")).json["batches"]
    assert batch["answered"] == 1
    assert len((await ada.get(f"api/batches/{BATCH.id}")).json["requests"]) == 1
    assert (await bob.get("api/batches")).json["batches"] == []
    assert (await bob.get(f"api/batches/{BATCH.id}")).status == 404
    assert (await bob.get(f"api/batches/{BATCH.id}/report")).status == 404


async def test_the_latest_batches_come_first_and_end_with_their_builds(api: Api, store: Store) -> None:
    for number in range(3):
        name = BatchName(f"replay-20260131t12000{number}-0a1b2c")
        await store.put(happened(name.request_id(1), accepted()))
    found = (await api.get("api/batches?limit=2")).json["batches"]
    assert [batch["id"][:22] for batch in found] == ["replay-20260131t120002", "replay-20260131t120001"]
    later = datetime.now(UTC) + timedelta(days=400)
    await store.delete_expired(ended_before=later, now=later)
    assert (await api.get("api/batches")).json["batches"] == []
