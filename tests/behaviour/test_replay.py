"""Replay as an operator uses it: a real RabbitMQ, consumers that die, and commands that are killed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Completed
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import Consumer, a_request
from tests.support.promises import captured, ends_of, until_ended
from tests.support.replays import (
    TENANTS,
    answers_to_replays,
    ask_as,
    command,
    json_lines,
    killed_after,
    planned,
    with_repo2docker,
)

pytestmark = pytest.mark.broker

OLD, NEW = "2025.1.0", "2099.1.0"
BUILT_WITH_OLDER = ("--built-with", f"repo2docker<{NEW}")
OF_EACH_TENANT = 3


async def built_by(consumer: Consumer, settings: Settings, names: dict[str, list[str]]) -> None:
    """Have the consumer build these names of each tenant, all but those that begin with `broken`."""
    for tenant, own in names.items():
        requests = [
            a_request(name, lines=1, **({"fail": 3} if name.startswith("broken") else {})) for name in own
        ]
        await ask_as(settings, tenant, *requests)


async def test_builds_of_an_older_builder_are_rebuilt_once_each_whatever_is_killed(
    make_consumer: MakeConsumer, settings: Settings, amqp: AmqpSettings, tmp_path: Path
) -> None:
    tenants = {"RABBIT2DOCKER_TENANTS": json.dumps(TENANTS)}
    names = {tenant: [f"{tenant}-{n}" for n in range(OF_EACH_TENANT)] for tenant in TENANTS}
    old = make_consumer(**tenants, **with_repo2docker(tmp_path, OLD))
    old.start_and_wait()
    await built_by(old, settings, {t: [*own, f"broken-{t}"] for t, own in names.items()})
    for tenant in TENANTS:
        await until_ended(amqp, OF_EACH_TENANT + 1, tenant=tenant)
    # Asked for a second time: of the two, one is replayed.
    await ask_as(settings, "alpha", a_request("alpha-0", lines=1).model_copy(update={"request_id": "again"}))
    await until_ended(amqp, OF_EACH_TENANT + 2, tenant="alpha")
    old.stop()
    new = make_consumer(**tenants, **with_repo2docker(tmp_path, NEW))
    new.start_and_wait()
    await built_by(new, settings, {tenant: [f"later-{tenant}"] for tenant in TENANTS})
    for tenant in TENANTS:
        await until_ended(amqp, OF_EACH_TENANT + 2 + (tenant == "alpha"), tenant=tenant)

    found, summary = await planned(amqp, *BUILT_WITH_OLDER)
    assert sorted(one["replay_of"].replace("again", "alpha-0") for one in found) == sorted(
        name for own in names.values() for name in own
    )
    assert {one["requests"] for one in found if one["replay_of"] == "again"} == {2}
    assert (summary["builds"], summary["requests"], summary["force"]) == (
        3 * OF_EACH_TENANT,
        3 * OF_EACH_TENANT + 1,
        True,
    )

    replay = await killed_after(amqp, 3, *BUILT_WITH_OLDER, "--rate", "20/s")
    new.kill()
    new.start_and_wait()
    resumed = await command(
        amqp, "replay", "--resume", replay, "--yes", "--follow", "--json", "--rate", "50/s", "--wait", "180"
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    ended = [line for line in json_lines(resumed.stdout) if line["kind"] == "ended"]
    assert Counter(line["state"] for line in ended) == {"completed": 3 * OF_EACH_TENANT}

    for tenant in TENANTS:
        events = await captured(amqp, tenant)
        answers = answers_to_replays(events)
        assert len(answers) == OF_EACH_TENANT
        ends = ends_of(events)
        for answer in answers.values():
            end = ends[answer.build_id].data
            assert isinstance(end, Completed)
            assert end.repo2docker_version == NEW
    pushed = Counter((new.fake_docker / "pushed").read_text().split())
    assert sorted(pushed.values()) == [1] * 3 + [2] * (3 * OF_EACH_TENANT - 1) + [3]
    assert (await planned(amqp, *BUILT_WITH_OLDER))[1]["builds"] == 0
