"""The topology compared with what RabbitMQ lists or answers."""

from typing import Any

import pytest

from rabbit2docker.amqp.comparison import Policy, Present, compare
from rabbit2docker.amqp.declarer import UNKNOWN, present_limit
from rabbit2docker.amqp.topology import make_topology
from rabbit2docker_schemas.routing import REQUESTS_QUEUE, tenant_stream

TOPOLOGY = make_topology(["one"])
STREAM = tenant_stream("one")
[STREAM_SPEC] = [queue for queue in TOPOLOGY.queues if queue.name == STREAM]


def present(*policies: Policy, **arguments: dict[str, Any]) -> Present:
    """Return a RabbitMQ that has everything, with these changes to the arguments of queues."""
    return Present(
        exchanges={
            each.name: {"type": each.type, "arguments": each.arguments} for each in TOPOLOGY.exchanges
        },
        queues={
            each.name: {
                "type": each.arguments["x-queue-type"],
                "arguments": {**each.arguments, **arguments.get(each.name, {})},
            }
            for each in TOPOLOGY.queues
        },
        bindings=frozenset(TOPOLOGY.bindings),
        policies=policies,
    )


def policy(
    name: str, pattern: str, definition: dict[str, Any], *, priority: int = 0, kind: str = "policy"
) -> Policy:
    return Policy(kind, name, pattern, "all", priority, definition)


def test_nothing_is_said_of_a_topology_that_is_complete() -> None:
    report = compare(TOPOLOGY, present())
    assert (report.problems, report.notes) == ([], [])


def test_a_limit_and_another_argument_that_differ_are_named() -> None:
    changes = {STREAM: {"x-max-age": "1D"}, REQUESTS_QUEUE: {"x-overflow": "drop-head"}}
    first, second = compare(TOPOLOGY, present(**changes)).problems
    assert "x-overflow='drop-head', it should be 'reject-publish'" in first
    assert "x-max-age=1D" in second
    assert "RABBIT2DOCKER_TOPOLOGY__EVENTS_DAYS makes it 7D" in second


def test_of_several_policies_the_one_in_force_is_named_and_settles_a_difference() -> None:
    policies = (
        policy("weak", "^builds", {"max-age": "2D"}),
        policy("strong", "results", {"max-age": "365D"}, priority=5),
        policy("unreadable", "(?<=", {"max-age": "3D"}),
        policy("cap", "results", {"max-length-bytes": 10}, kind="operator policy"),
    )
    report = compare(TOPOLOGY, present(*policies, **{STREAM: {"x-max-age": "1D"}}))
    assert report.problems == []
    notes = [note for note in report.notes if f"applies to {STREAM}" in note or f", {STREAM}" in note]
    assert any(note.startswith("policy strong (max-age=365D)") for note in notes)
    assert any(note.startswith("operator policy cap (max-length-bytes=10)") for note in notes)
    assert not any(note.startswith("policy weak") for note in notes)


@pytest.mark.parametrize("key", ["expires", "message-ttl"])
def test_a_policy_that_removes_requests_is_a_problem(key: str) -> None:
    [problem] = compare(TOPOLOGY, present(policy("tidy", r"^builds\.requests$", {key: 60_000}))).problems
    assert problem.startswith(f"policy tidy ({key}=60000) removes requests from queue builds.requests")


INEQUIVALENT = "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'builds' in vhost '/': "


@pytest.mark.parametrize(
    ("argument", "rest", "expected"),
    [
        ("x-max-age", "received '30D' but current is '7D'", ("x-max-age", "7D")),
        ("x-max-age", "received '2592000000' but current is '604800000'", ("x-max-age", "7D")),
        ("x-max-age", "received '2592000000' but current is '5400000'", ("x-max-age", "90m")),
        ("x-max-length-bytes", "received '10' but current is '50'", ("x-max-length-bytes", 50)),
        (
            "x-max-age",
            "received the value '7D' of type 'longstr' but current is none",
            ("x-max-age", None),
        ),
        (
            "x-initial-cluster-size",
            "received none but current is the value '3' of type 'byte'",
            ("x-initial-cluster-size", 3),
        ),
        ("x-max-age", "received the value '7D' of type 'long", ("x-max-age", UNKNOWN)),
        ("x-overflow", "received 'a' but current is 'b'", (None, None)),
    ],
)
def test_the_present_value_of_a_limit_is_read_from_rabbitmqs_answer(
    argument: str, rest: str, expected: tuple[Any, Any]
) -> None:
    assert present_limit(STREAM_SPEC, INEQUIVALENT.format(argument) + rest) == expected
