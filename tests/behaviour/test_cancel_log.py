"""Cancels of requests that are no builds yet: known to all replicas, and after a restart."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from rabbit2docker.amqp import declare, shared_log
from rabbit2docker.amqp.broker import Broker, publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.consumer.intake.withdrawn import UNNAMED_REQUESTER, WithdrawnRequests
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Rejected
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest
from rabbit2docker_schemas.routing import CANCEL_LOG_STREAM, CANCEL_QUEUE, RETRY_LADDER, retry_queue
from tests.faults.conftest import MakeConsumer, ask
from tests.support.broker import running, with_amqp
from tests.support.consumer import a_request
from tests.support.promises import until_answered
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually


@pytest.mark.broker
class TestStream:
    async def test_replicas_hear_of_cancels_at_once_and_of_earlier_ones_before_they_begin(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_log, "PREFETCH", 100)
        monkeypatch.setattr(shared_log, "ACK_EVERY", 20)
        await declare.declare(settings)
        earlier = [f"build-{number}" for number in range(300)]
        async with running(settings) as one, running(settings) as two:
            heard: list[tuple[str, str, str]] = []
            two.cancels.subscribe(lambda *cancel: heard.append(cancel))
            await asyncio.wait_for(two.cancels.caught_up.wait(), 180)
            await asyncio.gather(*(one.cancels.record("lab", build_id, "ada") for build_id in earlier))
            await eventually(lambda: {build_id for _, build_id, _ in heard} == set(earlier))
            # After a lost connection, it goes on where it was.
            two.cancels._connection.request_reconnect()
            await one.cancels.record("lab", "last", "bob")
            await eventually(lambda: ("lab", "last", "bob") in heard)
            assert len(heard) == len(earlier) + 1
        known: set[str] = set()

        def listen(broker: Broker) -> None:
            broker.cancels.subscribe(lambda tenant, build_id, by: known.add(build_id))

        async with running(settings, prepare=listen) as later:
            await asyncio.wait_for(later.cancels.caught_up.wait(), 180)
            assert known == {*earlier, "last"}
            assert later.cancels.problem == ""

    @pytest.mark.parametrize("loss", ["stream", "permission"])
    async def test_without_the_stream_the_service_goes_on_and_says_so(
        self, settings: Settings, vhost: str, rabbitmq: RabbitMQ, loss: str
    ) -> None:
        await declare.declare(settings)
        user, read = f"poor-{vhost}", ".*"
        if loss == "stream":
            rabbitmq.api("DELETE", f"queues/{vhost}/{CANCEL_LOG_STREAM}")
        else:
            read = r"^builds\.(requests|requests\.bulk|cancels|unrouted)$"
        rabbitmq.add_user(user, vhost, configure="^$", write=".*", read=read)
        poor = with_amqp(settings, url=rabbitmq.url(vhost, user=f"{user}:{user}"), declare=False)
        async with running(poor) as broker:
            await eventually(
                lambda: "are not known" in broker.cancels.problem and broker.cancels.caught_up.is_set()
            )
            await broker.cancels.record("lab", "one", "ada")
            await declare.declare(settings)
            if loss == "stream":
                await eventually(lambda: broker.cancels.problem == "")


@pytest.mark.broker
class TestProcesses:
    async def test_a_request_that_was_cancelled_while_it_waited_is_not_built_after_a_restart(
        self,
        make_consumer: MakeConsumer,
        amqp: AmqpSettings,
        settings: Settings,
        rabbitmq: RabbitMQ,
        vhost: str,
        tmp_path: Path,
    ) -> None:
        consumer = make_consumer(
            RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1", RABBIT2DOCKER_TENANTS='["default", "other"]'
        )
        await asyncio.to_thread(consumer.start_and_wait)
        release = tmp_path / "release"
        await ask(settings, a_request("first", hold=release))
        await until_answered(amqp, 1)
        await ask(settings, a_request("second"), a_request("third"), a_request("fourth"))
        async with publishing(settings, wait_seconds=180) as publisher:
            mine, other = RequestPublisher(publisher, "default"), RequestPublisher(publisher, "other")
            await mine.cancel(CancelRequest(request_id="second", requester="ada"))
            await mine.cancel(CancelRequest(build_id=build_id_of("default", "third"), requester="ada"))
            await other.cancel(CancelRequest(request_id="fourth"))  # it has no such request
        retried = 'rabbit2docker_requests_settled_total{outcome="retried"} 3.0'
        await eventually(lambda: retried in consumer.get("/metrics")[1])
        await asyncio.to_thread(consumer.kill)
        # As after more than the retry ladder's eleven minutes: the cancel messages have come to their end.
        for queue in (CANCEL_QUEUE, *(retry_queue(rung, CANCEL_QUEUE) for rung in RETRY_LADDER.rungs)):
            await eventually(partial(is_purged, rabbitmq, vhost, queue))
        await asyncio.to_thread(consumer.start_and_wait)
        release.touch()
        events = [event.data for event in await until_answered(amqp, 4)]
        answers = {data.request_id: data for data in events if isinstance(data, Accepted | Rejected)}
        assert isinstance(answers["fourth"], Accepted)
        for rejected in (answers["second"], answers["third"]):
            assert isinstance(rejected, Rejected)
            assert rejected.reason == "cancelled"
            assert "ada" in rejected.message
        consumer.stop()


def is_purged(rabbitmq: RabbitMQ, vhost: str, queue: str) -> bool:
    """Purge a queue until nothing is left of it, as what a killed consumer held comes back late."""
    rabbitmq.api("DELETE", f"queues/{vhost}/{queue}/contents")
    return rabbitmq.depth(vhost, queue) == 0


class TestMemory:
    def test_the_oldest_cancels_are_forgotten_beyond_the_limit(self) -> None:
        withdrawn = WithdrawnRequests(limit=1000)
        for number in range(10_000):
            withdrawn.add("lab", f"build-{number}", "ada")
            withdrawn.add("lab", f"build-{number}", "bob")
            assert len(withdrawn) <= 1000
        assert withdrawn.by("lab", "build-9999") == "ada"
        assert all(withdrawn.by("lab", f"build-{number}") for number in range(9500, 10_000))
        assert withdrawn.by("lab", "build-0") is None

    def test_a_cancel_counts_for_its_own_tenant_and_outlives_the_name_of_its_requester(self) -> None:
        withdrawn = WithdrawnRequests()
        withdrawn.add("lab", "build", "ada")
        assert withdrawn.by("other", "build") is None
        for number in range(20_000):
            withdrawn.add("lab", str(number), "bob")
        assert withdrawn.by("lab", "build") == UNNAMED_REQUESTER
