"""The consumer as requesters and operators see it: a real RabbitMQ, with stand-ins for repo2docker and docker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import pytest
from aiohttp import web

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.dead_letters import dead_letters
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Cancelled, Completed, Failed, Progress, Rejected
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import Lane, Priority, waiting_queue
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import COMMIT, Consumer, a_request
from tests.support.github import FakeGitHub
from tests.support.promises import captured, check_promises, ends_of, until_answered, until_ended
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
async def consumer(make_consumer: MakeConsumer) -> AsyncIterator[Consumer]:
    consumer = make_consumer()
    await asyncio.to_thread(consumer.start_and_wait)
    yield consumer
    assert not consumer.has_ended(), consumer.log.read_text()
    assert not [line for line in consumer.lines() if line["level"] == "error"]


async def publish(
    amqp: AmqpSettings, body: bytes, *, key: str = "request.default.interactive", **more: Any
) -> None:
    """Publish a message like any AMQP client."""
    connection = await aio_pika.connect(amqp.url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("builds", ensure=False)
        await exchange.publish(aio_pika.Message(body, **more), key)


async def answers(amqp: AmqpSettings, count: int = 1) -> list[Accepted | Rejected]:
    """Wait for `count` answers to requests and return them; a further one is an error of the test or of the service."""
    events = await until_answered(amqp, count)
    found = [event.data for event in events if isinstance(event.data, Accepted | Rejected)]
    assert len(found) == count
    return found


async def ends(amqp: AmqpSettings, count: int = 1) -> dict[str, Any]:
    """Wait for the ends of `count` builds and return them by build id."""
    return {build: event.data for build, event in ends_of(await until_ended(amqp, count)).items()}


class TestRequests:
    async def test_a_plain_json_message_becomes_a_build(self, consumer: Consumer, amqp: AmqpSettings) -> None:
        request = a_request("plain").model_dump(exclude={"request_id"}, exclude_defaults=True)
        later = {"colour": "green"}  # of a later version
        trace = {"traceparent": f"00-{'4b' * 16}-{'f0' * 8}-01", "tracestate": "a=1"}
        body = json.dumps(request | later).encode()
        await publish(amqp, body, message_id="my-message", headers=trace)
        [accepted] = await answers(amqp)
        assert isinstance(accepted, Accepted)
        assert accepted.request_id == "my-message"
        assert accepted.resolved_ref == COMMIT
        assert accepted.notice == "Ignored: unknown field `colour`."
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Completed)
        assert end.image == accepted.image
        traced = [event for event in await captured(amqp) if event.kind not in ("log", "gap")]
        assert {event.trace and tuple(event.trace.headers().items()) for event in traced} == {
            tuple(trace.items())
        }

    async def test_five_copies_of_a_request_get_five_answers_and_one_build(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        request = a_request("same", lines=40, every=0.05)
        body = request.model_dump_json(exclude_defaults=True).encode()
        await asyncio.gather(*[publish(amqp, body, message_id=f"m{n}") for n in range(5)])
        found = await answers(amqp, 5)
        assert all(isinstance(answer, Accepted) for answer in found)
        assert {answer.request_id for answer in found} == {"same"}
        assert len(await ends(amqp)) == 1
        assert len(consumer.records()) == 1

    async def test_requests_for_the_same_image_share_one_build(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        first = a_request("one", lines=60, every=0.05)
        requests = [first.model_copy(update={"request_id": f"r{n}"}) for n in range(3)]
        await ask(settings, *requests)
        found = await answers(amqp, 3)
        assert sorted(answer.attached for answer in found if isinstance(answer, Accepted)) == [
            False,
            True,
            True,
        ]
        assert len({answer.build_id for answer in found if isinstance(answer, Accepted)}) == 1
        check_promises(await until_ended(amqp, 1), [f"r{n}" for n in range(3)])

    async def test_a_reused_request_id_is_rejected_and_the_first_build_continues(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("one", lines=30, every=0.05))
        await answers(amqp)
        other = a_request("other").model_copy(update={"request_id": "one"})
        await ask(settings, other)
        rejected = (await answers(amqp, 2))[1]
        assert isinstance(rejected, Rejected)
        assert rejected.reason == "request_id_reused"
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Completed)

    async def test_a_request_repeated_after_the_end_is_answered_with_the_same_end(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("one"))
        await ends(amqp)
        await ask(settings, a_request("one"))
        await answers(amqp, 2)

        async def two_ends() -> bool:
            return len([event for event in await captured(amqp) if event.is_terminal]) == 2

        await eventually(two_ends)
        assert len(ends_of(await captured(amqp))) == 1
        assert len(consumer.records()) == 1

    async def test_an_expired_request_is_rejected_as_retryable(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await ask(settings, a_request("late").model_copy(update={"not_after": past}))
        [rejected] = await answers(amqp)
        assert isinstance(rejected, Rejected)
        assert (rejected.reason, rejected.retryable) == ("expired", True)

    async def test_build_options_are_part_of_image_and_build_name(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        plain = a_request("one")
        await ask(settings, plain, plain.model_copy(update={"subdir": "docs", "request_id": "two"}))
        found = [answer for answer in await answers(amqp, 2) if isinstance(answer, Accepted)]
        assert len({answer.image for answer in found}) == 2
        assert len({answer.build_name for answer in found}) == 2

    async def test_a_bulk_request_is_built(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        async with publishing(settings, wait_seconds=180) as publisher:
            await RequestPublisher(publisher, "default").request(a_request("bulk"), Priority.BULK)
        assert len(await ends(amqp)) == 1


BAD = [
    (b"no json", "invalid_json", True),
    (b"[1, 2]", "invalid_request", True),
    (b'{"provider": "gh"}', "invalid_request", True),
    (b'{"provider": "gh", "sepc": "a/b/c"}', "invalid_request", True),
    (b'{"provider": "gh", "spec": 5}', "invalid_request", True),
    (b'{"provider": "gh", "spec": "a/b/c", "appendix": "' + b"x" * 70_000 + b'"}', "too_large", True),
    (b'{"provider": "svn", "spec": "a/b/c"}', "unknown_provider", False),
    (b'{"provider": "gh", "spec": "no-slashes"}', "invalid_spec", False),
    (b'{"provider": "git", "spec": "file%3A%2F%2F%2Fetc/main"}', "refused_url", True),
    (b'{"provider": "git", "spec": "https%3A%2F%2Fexample.org%2Fr/--upload-pack=x"}', "refused_url", True),
]


class TestWaiting:
    async def test_a_rate_limit_is_announced_at_once_with_its_end(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        github = FakeGitHub()
        async with github.server:
            limit = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 3000)}
            github.always = lambda: web.json_response({"message": "limit"}, status=403, headers=limit)
            url = str(github.server.make_url("")).rstrip("/")
            consumer = make_consumer(RABBIT2DOCKER_PROVIDERS__GITHUB_API_URL=url)
            await asyncio.to_thread(consumer.start_and_wait)
            request = BuildRequest(provider="gh", spec="o/r/main", request_id="limited")
            await ask(settings, request)

            async def waits() -> list[Progress]:
                return [event.data for event in await captured(amqp) if isinstance(event.data, Progress)]

            [wait] = await eventually(waits)
        assert (wait.phase, wait.attempt, wait.build_id) == ("waiting", 0, build_id_of("default", "limited"))
        assert wait.detail.retry_at is not None
        assert wait.message.startswith("github.com limits this service's requests until ")
        assert f"The next try is at {wait.detail.retry_at:%H:%M} UTC, in " in wait.message
        consumer.stop()


class TestBadInput:
    @pytest.fixture
    async def consumer(self, make_consumer: MakeConsumer) -> AsyncIterator[Consumer]:
        consumer = make_consumer(RABBIT2DOCKER_PROVIDERS__ALLOW_PRIVATE_ADDRESSES="false")
        await asyncio.to_thread(consumer.start_and_wait)
        yield consumer
        assert not consumer.has_ended(), consumer.log.read_text()
        assert not [line for line in consumer.lines() if line["level"] == "error"]

    async def test_every_invalid_request_is_rejected_with_a_reason(
        self, consumer: Consumer, amqp: AmqpSettings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        for number, (body, _, _) in enumerate(BAD):
            await publish(amqp, body, message_id=f"bad-{number}")
        found = {answer.request_id: answer for answer in await answers(amqp, len(BAD))}
        for number, (_, reason, _) in enumerate(BAD):
            rejected = found[f"bad-{number}"]
            assert isinstance(rejected, Rejected)
            assert rejected.reason == reason, rejected
            assert rejected.message.endswith((".", "?"))
        dead = sum(is_dead for _, _, is_dead in BAD)
        await eventually(lambda: rabbitmq.depth(vhost, "builds.dead") == dead)
        async with dead_letters(amqp) as letters:
            listed = await letters.listed()
        assert {letter.reason for letter in listed} == {reason for _, reason, is_dead in BAD if is_dead}
        await eventually(lambda: rabbitmq.depth(vhost, "builds.requests") == 0)

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/r",
            "http://localhost/r",
            "http://[::1]/r",
            "http://169.254.169.254/r",
            "http://10.0.0.1/r",
            "http://2130706433/r",
            "http://kubernetes.default.svc/r",
            "http://[::ffff:127.0.0.1]/r",
        ],
    )
    async def test_a_request_for_an_internal_address_is_rejected(
        self, consumer: Consumer, amqp: AmqpSettings, url: str
    ) -> None:
        spec = f"{quote(url, safe='')}/main"
        await publish(amqp, json.dumps({"provider": "git", "spec": spec}).encode(), message_id="m")
        [rejected] = await answers(amqp)
        assert isinstance(rejected, Rejected)
        assert rejected.reason == "refused_url"


class TestBuildEnds:
    async def test_a_failed_step_is_reported_with_the_last_lines(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("broken", fail=3))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert (end.reason, end.category, end.attempt) == ("build_step_failed", "user", 1)
        assert "make it so" in (end.failed_step or "")
        assert any("line 4 of the build" in line for line in end.tail)

    async def test_a_killed_step_is_reported_as_out_of_memory(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("big", fail=137))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert end.reason == "build_out_of_memory"

    async def test_a_denied_push_is_an_operator_failure_and_not_retried(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        (consumer.fake_docker / "denied").touch()
        await ask(settings, a_request("denied"))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert (end.reason, end.category, end.attempt) == ("push_denied", "operator", 1)

    async def test_a_build_over_its_time_limit_is_ended(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        slow = a_request("slow", lines=10_000, every=0.1).model_copy(update={"timeout_seconds": 10})
        await ask(settings, slow)
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert (end.reason, end.category) == ("timeout", "timeout")

    async def test_a_build_without_output_is_ended(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        consumer = make_consumer(RABBIT2DOCKER_LIMITS__IDLE_SECONDS="10")
        await asyncio.to_thread(consumer.start_and_wait)
        await ask(settings, a_request("silent", lines=2, every=600))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert (end.reason, end.category) == ("idle", "timeout")

    async def test_an_engine_that_stays_away_for_longer_than_builds_wait_fails_the_build(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
    ) -> None:
        consumer = make_consumer(
            RABBIT2DOCKER_BUILDER__DOCKER_WAIT_SECONDS="1",
            RABBIT2DOCKER_BUILDER__PUSH_RETRIES="0",
            RABBIT2DOCKER_LIMITS__OUTAGE_SECONDS="1",
        )
        await asyncio.to_thread(consumer.start_and_wait)
        await ask(settings, a_request("one", hold=tmp_path / "release"))
        await answers(amqp)
        (consumer.fake_docker / "away").touch()
        (tmp_path / "release").touch()
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Failed)
        assert (end.reason, end.category, end.attempt) == ("docker_unavailable", "infrastructure", 2)
        retries = [
            event.data
            for event in await captured(amqp)
            if isinstance(event.data, Progress) and event.data.detail.failed_reason
        ]
        assert {progress.attempt for progress in retries} == {2}


class TestCancel:
    async def test_a_request_cancelled_while_it_waits_for_a_slot_is_rejected(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
    ) -> None:
        """The cancel queue is consumed while no slot is free."""
        consumer = make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1")
        await asyncio.to_thread(consumer.start_and_wait)
        release = tmp_path / "release"
        await ask(settings, a_request("first", hold=release))
        await answers(amqp)
        await ask(settings, a_request("second"))
        async with publishing(settings, wait_seconds=180) as publisher:
            await RequestPublisher(publisher, "default").cancel(
                CancelRequest(request_id="second", requester="ada")
            )
        # Its request is not taken yet, so the cancel goes to the retry ladder.
        retried = 'rabbit2docker_requests_settled_total{outcome="retried"} 1.0'
        await eventually(lambda: retried in consumer.get("/metrics")[1])
        release.touch()
        rejected = (await answers(amqp, 2))[1]
        assert isinstance(rejected, Rejected)
        assert rejected.reason == "cancelled"
        assert "ada" in rejected.message

    async def test_a_cancel_of_one_request_ends_the_shared_build(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        first = a_request("one", lines=600, every=0.05)
        await ask(settings, first, first.model_copy(update={"request_id": "two"}))
        await answers(amqp, 2)
        async with publishing(settings, wait_seconds=180) as publisher:
            await RequestPublisher(publisher, "default").cancel(CancelRequest(request_id="two"))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Cancelled), consumer.log.read_text()

    async def test_a_cancel_with_spare_joined_keeps_a_build_that_the_request_has_joined(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        first = a_request("one", lines=60, every=0.05)
        await ask(settings, first, first.model_copy(update={"request_id": "two"}))
        accepted = await answers(amqp, 2)
        assert [answer.attached for answer in accepted if isinstance(answer, Accepted)] == [False, True]
        async with publishing(settings, wait_seconds=180) as publisher:
            cancel = CancelRequest(request_id="two", requester="bob", spare_joined=True)
            await RequestPublisher(publisher, "default").cancel(cancel)
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Completed), consumer.log.read_text()

    async def test_a_cancel_with_spare_joined_ends_a_build_that_the_request_started(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("one", lines=600, every=0.05))
        await answers(amqp)
        async with publishing(settings, wait_seconds=180) as publisher:
            cancel = CancelRequest(request_id="one", requester="ada", spare_joined=True)
            await RequestPublisher(publisher, "default").cancel(cancel)
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Cancelled), consumer.log.read_text()


LANES = [waiting_queue("default", lane) for lane in (Lane.INTERACTIVE, Lane.LATER)]


class TestCapacity:
    async def test_requests_above_the_limit_wait_in_rabbitmq_and_are_all_built(
        self,
        make_consumer: MakeConsumer,
        amqp: AmqpSettings,
        settings: Settings,
        rabbitmq: RabbitMQ,
        vhost: str,
        tmp_path: Path,
    ) -> None:
        consumer = make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="2")
        await asyncio.to_thread(consumer.start_and_wait)
        names = [f"r{n}" for n in range(6)]
        release = tmp_path / "release"
        await ask(settings, *[a_request(name, hold=release) for name in names])
        await answers(amqp, 2)
        await eventually(lambda: sum(map(rabbitmq.depths(vhost).__getitem__, LANES)) == 4)
        ready = json.loads(consumer.get("/health/ready")[1])
        assert ready["ok"]
        assert "all slots are taken" in json.dumps(ready)
        release.touch()
        await until_ended(amqp, 6)
        check_promises(await captured(amqp), names)

    async def test_interactive_requests_overtake_bulk_ones(
        self, make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
    ) -> None:
        consumer = make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1")
        await asyncio.to_thread(consumer.start_and_wait)
        release = tmp_path / "release"
        await ask(settings, a_request("first", hold=release))
        await answers(amqp)
        async with publishing(settings, wait_seconds=180) as publisher:
            requester = RequestPublisher(publisher, "default")
            await requester.request(a_request("bulk"), Priority.BULK)
            await requester.request(a_request("quick"), Priority.INTERACTIVE)
        release.touch()
        found = await answers(amqp, 3)
        assert [answer.request_id for answer in found] == ["first", "quick", "bulk"]
        consumer.stop()


class TestOperators:
    async def test_health_readiness_and_metrics_are_served(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("one"))
        await ends(amqp)
        assert consumer.get("/health/live")[0] == 200
        assert consumer.get("/health/ready")[0] == 200
        text = consumer.get("/metrics")[1]
        assert 'rabbit2docker_requests_settled_total{outcome="accepted"} 1.0' in text
        assert 'rabbit2docker_builds_ended_total{result="completed"} 1.0' in text
        assert 'rabbit2docker_amqp_connected{role="publish"} 1.0' in text

    async def test_a_request_after_its_queue_was_deleted_is_built(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("DELETE", f"queues/{vhost}/builds.requests")
        await ask(settings, a_request("one"))
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Completed)
        await eventually(consumer.is_ready)
        text = consumer.get("/metrics")[1]
        assert 'rabbit2docker_topology_restored_total{kind="queue"} 1.0' in text

    async def test_a_missing_queue_that_may_not_be_declared_makes_the_service_unready_until_it_is_there(
        self,
        make_consumer: MakeConsumer,
        amqp: AmqpSettings,
        settings: Settings,
        rabbitmq: RabbitMQ,
        vhost: str,
    ) -> None:
        await declare.declare(settings)
        consumer = make_consumer(RABBIT2DOCKER_AMQP__DECLARE="false")
        await asyncio.to_thread(consumer.start_and_wait)
        rabbitmq.api("DELETE", f"queues/{vhost}/builds.requests")
        await eventually(lambda: not consumer.is_ready())

        def topology() -> dict[str, Any]:
            checks = json.loads(consumer.get("/health/ready")[1])["checks"]
            return next(check for check in checks if check["name"] == "topology")

        await eventually(lambda: "queue builds.requests is missing" in topology()["detail"])
        assert not topology()["ok"]
        assert "topology declare" in topology()["detail"]
        await ask(settings, a_request("one"))
        await declare.declare(settings)
        [end] = (await ends(amqp)).values()
        assert isinstance(end, Completed)
        await eventually(consumer.is_ready)
        consumer.stop()

    async def test_log_lines_about_a_build_carry_its_id(
        self, consumer: Consumer, amqp: AmqpSettings, settings: Settings
    ) -> None:
        await ask(settings, a_request("one"))
        await ends(amqp)
        about = {"attempt created", "request settled", "build ended"}
        lines = await eventually(
            lambda: (
                [line for line in consumer.lines() if line["event"] in about]
                if "build ended" in consumer.log.read_text()
                else None
            )
        )
        assert {line["build_id"] for line in lines} == {build_id_of("default", "one")}

    async def test_a_second_service_on_the_same_state_directory_exits(
        self, consumer: Consumer, make_consumer: MakeConsumer
    ) -> None:
        second = make_consumer(RABBIT2DOCKER_HTTP__BIND="127.0.0.1:0")
        second.log = consumer.directory / "second.log"
        second.start()
        await eventually(second.has_ended)
        assert second.process is not None
        assert second.process.returncode == 78
        assert "Traceback" not in second.log.read_text()
