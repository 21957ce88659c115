"""Invariants of the topology."""

from rabbit2docker.amqp.topology import WORK_QUEUES, make_topology
from rabbit2docker_schemas.routing import RETRY_LADDER, retry_queue

TOPOLOGY = make_topology(["one"])
ARGUMENTS = {queue.name: queue.arguments for queue in TOPOLOGY.queues}


def test_no_work_queue_drops_a_message() -> None:
    for name in (*WORK_QUEUES, *(retry_queue(rung, queue) for queue in WORK_QUEUES for rung in RETRY_LADDER)):
        arguments = ARGUMENTS[name]
        assert arguments["x-queue-type"] == "quorum"
        assert "x-dead-letter-exchange" in arguments
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-delivery-limit"] >= 10


def test_each_rung_of_the_ladder_leads_back_to_its_queue() -> None:
    for queue in WORK_QUEUES:
        for rung in RETRY_LADDER:
            arguments = ARGUMENTS[retry_queue(rung, queue)]
            assert arguments["x-dead-letter-routing-key"] == queue
            assert arguments["x-message-ttl"] == rung.seconds * 1000


def test_streams_have_segments_small_enough_to_expire() -> None:
    streams = [arguments for arguments in ARGUMENTS.values() if arguments["x-queue-type"] == "stream"]
    assert len(streams) == 2
    assert all(arguments["x-stream-max-segment-size-bytes"] <= 50_000_000 for arguments in streams)
