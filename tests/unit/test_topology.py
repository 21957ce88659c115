"""Invariants of the topology."""

import re

import pytest

from rabbit2docker.amqp.broker import Broker
from rabbit2docker.amqp.topology import WORK_QUEUES, make_topology
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.routing import (
    DEAD_LETTER_EXCHANGE,
    REQUEST_LOG_EXCHANGE,
    REQUESTS_EXCHANGE,
    RESULTS_EXCHANGE,
    RESULTS_LOG_EXCHANGE,
    RETRY_EXCHANGE,
    RETRY_LADDER,
    UNROUTED_EXCHANGE,
    UNROUTED_QUEUE,
    build_event_key,
    hub_bindings,
    parse_request_key,
    repeated_event_key,
    request_event_key,
    retry_queue,
    tenant_stream,
)

TOPOLOGY = make_topology(["one"])
ARGUMENTS = {queue.name: queue.arguments for queue in TOPOLOGY.queues}


def test_no_work_queue_drops_a_message() -> None:
    for name in (
        *WORK_QUEUES,
        *(retry_queue(rung, queue) for queue in WORK_QUEUES for rung in RETRY_LADDER.rungs),
    ):
        arguments = ARGUMENTS[name]
        assert arguments["x-queue-type"] == "quorum"
        assert "x-dead-letter-exchange" in arguments
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-delivery-limit"] >= 10


def test_each_rung_of_the_ladder_leads_back_to_its_queue() -> None:
    for queue in WORK_QUEUES:
        for rung in RETRY_LADDER.rungs:
            arguments = ARGUMENTS[retry_queue(rung, queue)]
            assert arguments["x-dead-letter-routing-key"] == queue
            assert arguments["x-message-ttl"] == rung.seconds * 1000


def test_streams_have_segments_small_enough_to_expire() -> None:
    streams = [arguments for arguments in ARGUMENTS.values() if arguments["x-queue-type"] == "stream"]
    assert len(streams) == 6
    assert all(arguments["x-stream-max-segment-size-bytes"] <= 50_000_000 for arguments in streams)


def test_requests_are_routed_to_queues_that_a_consumer_reads_and_to_nothing_else() -> None:
    """RabbitMQ confirms a request that any queue has taken, so a copy for a log would hide that no reader has it."""
    bound = {binding.queue for binding in TOPOLOGY.bindings if binding.exchange == REQUESTS_EXCHANGE}
    assert bound == set(WORK_QUEUES)
    [exchange] = [exchange for exchange in TOPOLOGY.exchanges if exchange.name == REQUESTS_EXCHANGE]
    assert exchange.arguments == {"alternate-exchange": UNROUTED_EXCHANGE}
    caught = {binding.queue for binding in TOPOLOGY.bindings if binding.exchange == UNROUTED_EXCHANGE}
    assert caught == {UNROUTED_QUEUE}


def test_each_work_queue_can_be_reached_past_the_bindings_of_requests() -> None:
    ways = {
        (binding.queue, binding.key) for binding in TOPOLOGY.bindings if binding.exchange == RETRY_EXCHANGE
    }
    assert {(queue, queue) for queue in WORK_QUEUES} <= ways
    keys = ("request.one.interactive", "request.one.bulk", "cancel.one")
    parsed = [key for key in map(parse_request_key, keys) if key is not None]
    assert tuple(key.queue for key in parsed) == WORK_QUEUES


@pytest.mark.parametrize("tenant", ["", "a.b", "a|.*", "A", "-a", "a" * 64, "a\n"])
def test_an_invalid_tenant_gets_no_permissions(tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a tenant"):
        make_topology(["one", tenant])


def test_the_users_of_unknown_tenants_are_an_error() -> None:
    amqp = AmqpSettings(tenant_users={"one": "hub-one", "two": "hub-two"})
    with pytest.raises(ConfigurationError, match="names two, which RABBIT2DOCKER_TENANTS does not"):
        Broker(Settings(tenants=["one"], amqp=amqp))


def test_the_exchange_of_a_tenant_leads_its_keys_alone_to_queues_that_a_consumer_reads() -> None:
    for tenant in ("one", "two"):
        bound = [
            (binding.key, binding.queue)
            for binding in make_topology(["one", "two"]).bindings
            if binding.exchange == f"builds.entry.{tenant}"
        ]
        keys = (f"request.{tenant}.interactive", f"request.{tenant}.bulk", f"cancel.{tenant}")
        assert bound == list(zip(keys, WORK_QUEUES, strict=True))


@pytest.mark.parametrize("tenants", [["one"], ["one", "two"], ["default", "one"]])
def test_only_a_single_tenant_may_publish_to_the_exchange_of_all(tenants: list[str]) -> None:
    hubs = [user for user in make_topology(tenants).users if user.name.startswith("hub-")]
    assert len(hubs) == len(tenants)
    for hub in hubs:
        assert bool(re.search(hub.write, "builds")) == (len(tenants) == 1)


def test_the_shipped_worker_may_read_and_write_what_the_service_uses() -> None:
    [worker] = [user for user in TOPOLOGY.users if "worker" in user.name]
    assert all(re.search(worker.read, queue) for queue in (*WORK_QUEUES, UNROUTED_QUEUE))
    written = (
        RESULTS_EXCHANGE,
        RESULTS_LOG_EXCHANGE,
        RETRY_EXCHANGE,
        DEAD_LETTER_EXCHANGE,
        REQUEST_LOG_EXCHANGE,
    )
    assert all(re.search(worker.write, exchange) for exchange in written)


def _matches(binding: str, key: str) -> bool:
    pattern = re.escape(binding).replace(r"\*", r"[^.]+").replace(r"\#", r".*")
    return re.fullmatch(pattern, key) is not None


def test_a_repetition_for_hubs_reaches_hubs_and_no_stream() -> None:
    keys = (request_event_key("one", "r", "accepted"), build_event_key("one", "b", "log"))
    streams = [
        {binding.key for binding in TOPOLOGY.bindings if binding.queue == tenant_stream("one")}
        & {binding.key for binding in TOPOLOGY.bindings if binding.exchange == exchange}
        for exchange in (RESULTS_EXCHANGE, RESULTS_LOG_EXCHANGE)
    ]
    for key in keys:
        for bindings in (*streams, hub_bindings("one")):
            assert any(_matches(binding, key) for binding in bindings)
        repeated = repeated_event_key(key)
        assert any(_matches(binding, repeated) for binding in hub_bindings("one"))
        assert not any(_matches(binding, repeated) for bindings in streams for binding in bindings)
