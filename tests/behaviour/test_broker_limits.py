"""Limits of queues and streams: arguments from the settings, and policies that only operators set, on a real RabbitMQ."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from rabbit2docker import metrics
from rabbit2docker.amqp import declare, topology_keeper
from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.settings import Settings, TopologySettings
from rabbit2docker_schemas import routing
from tests.support.broker import REQUEST, running, submit, take, with_amqp
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

STREAM = routing.tenant_stream("default")
A_YEAR: dict[str, Any] = {"pattern": "^builds", "definition": {"max-age": "365D"}, "apply-to": "streams"}


def with_limits(settings: Settings, **limits: object) -> Settings:
    return settings.model_copy(update={"topology": TopologySettings.model_validate(limits)})


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"rabbit2docker_{name}", labels) or 0.0


def arguments(rabbitmq: RabbitMQ, vhost: str, queue: str) -> dict[str, Any]:
    found: dict[str, Any] = rabbitmq.api("GET", f"queues/{vhost}/{queue}")["arguments"]
    return found


async def test_every_queue_and_stream_has_a_limit_without_the_management_api(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    limited = with_limits(settings, requests_length=77, events_days=3, dead_letters_days=2, quorum_replicas=1)
    await declare.declare(with_amqp(limited, management_url=None))
    for queue in rabbitmq.api("GET", f"queues/{vhost}"):
        limits = {"x-max-age", "x-max-length-bytes"} if queue["type"] == "stream" else {"x-max-length"}
        assert limits <= queue["arguments"].keys(), queue["name"]
    assert arguments(rabbitmq, vhost, "builds.requests")["x-max-length"] == 77
    assert arguments(rabbitmq, vhost, "builds.requests")["x-quorum-initial-group-size"] == 1
    assert arguments(rabbitmq, vhost, "builds.dead")["x-message-ttl"] == 2 * 24 * 3600 * 1000
    assert arguments(rabbitmq, vhost, STREAM)["x-max-age"] == "3D"


async def test_a_full_queue_refuses_requests_which_is_counted(settings: Settings) -> None:
    limited = with_limits(settings, requests_length=1)
    await declare.declare(limited)
    before = count("publish_nacks_total", exchange="builds")

    async def fill() -> None:
        for _ in range(50):  # RabbitMQ may take some more than the limit
            await submit(limited, REQUEST)

    with pytest.raises(BrokerUnavailable, match="a queue is full"):
        await fill()
    assert count("publish_nacks_total", exchange="builds") > before


async def test_the_wait_of_requests_and_dead_letters_are_measured(settings: Settings) -> None:
    queue, reason = routing.REQUESTS_QUEUE, "measured"
    async with running(settings) as broker:
        waits = count("request_queued_seconds_count", queue=queue)
        letters = count("dead_lettered_total", reason=reason)
        await broker.source.set_prefetch(queue, 1)
        await submit(settings, REQUEST)
        [delivery] = await take(broker)
        assert count("request_queued_seconds_count", queue=queue) == waits + 1
        await delivery.dead_letter(reason, "A test.")
        assert count("dead_lettered_total", reason=reason) == letters + 1


async def test_a_policy_of_an_operator_is_left_alone_and_named(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    rabbitmq.api("PUT", f"policies/{vhost}/builds-results-log", A_YEAR)
    for _ in range(2):
        async with running(settings):
            [policy] = rabbitmq.api("GET", f"policies/{vhost}")
            assert policy["definition"] == {"max-age": "365D"}
    report = await declare.check(settings)
    assert report.problems == []
    [note] = report.notes
    assert "policy builds-results-log (max-age=365D) applies to " in note
    assert "builds.requests.log" in note


async def test_what_exists_keeps_its_limits_and_the_service_starts(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    await declare.declare(settings)
    changed = with_limits(settings, events_days=365, events_bytes=9_000_000_000, quorum_replicas=3)
    differences = [str(difference) for difference in await declare.declare(changed)]
    assert any(
        "builds.results.log.default exists with x-max-age=7D" in text
        and "RABBIT2DOCKER_TOPOLOGY__EVENTS_DAYS makes it 365D" in text
        for text in differences
    )
    assert any("x-max-length-bytes=5000000000" in text for text in differences)
    assert any("x-quorum-initial-group-size=unset" in text for text in differences)
    for seen_by in (changed, with_amqp(changed, management_url=None)):
        assert set((await declare.check(seen_by)).problems) == set(differences)
    with capture_logs() as logs:
        async with running(changed) as broker:
            await eventually(lambda: any("EVENTS_DAYS" in str(line.get("problem")) for line in logs))
            assert broker.topology_problems() == []
    rabbitmq.api("PUT", f"policies/{vhost}/longer", A_YEAR)
    assert not any("x-max-age" in problem for problem in (await declare.check(changed)).problems)


async def test_a_stream_without_limits_is_used_and_reported(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str
) -> None:
    bare = {"x-queue-type": "stream", "x-stream-filter-size-bytes": 64}
    rabbitmq.api("PUT", f"queues/{vhost}/{STREAM}", {"durable": True, "arguments": bare})
    differences = [str(difference) for difference in await declare.declare(settings)]
    assert {text.partition(" exists with ")[2].split()[0] for text in differences} == {
        "x-max-age=unset",
        "x-max-length-bytes=unset",
        "x-stream-max-segment-size-bytes=unset",
    }


async def test_a_stream_that_is_declared_again_gets_the_limits_of_the_settings(
    settings: Settings, rabbitmq: RabbitMQ, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECK_SECONDS", "PROBLEM_SECONDS"):
        monkeypatch.setattr(topology_keeper, name, 0.2)
    await declare.declare(settings)
    changed = with_limits(settings, events_days=30)
    with capture_logs() as logs:
        async with running(changed):
            await eventually(lambda: any("EVENTS_DAYS" in str(line.get("problem")) for line in logs))
            for stream in (STREAM, f"{STREAM}.index", f"{STREAM}.phases"):
                rabbitmq.api("DELETE", f"queues/{vhost}/{stream}")

            async def is_well() -> bool:
                return not (await declare.check(changed)).problems

            await eventually(is_well)
    assert arguments(rabbitmq, vhost, STREAM)["x-max-age"] == "30D"
