"""The topology compared with what RabbitMQ's management API lists. No I/O."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rabbit2docker.amqp.declarer import Difference
from rabbit2docker.amqp.topology import Arguments, BindingSpec, ExchangeSpec, QueueSpec, Topology

_LOSING: Final = ("expires", "message-ttl")
"""Keys of policies that remove messages, or the queue with them."""
_APPLY_TO: Final = {
    "stream": {"all", "queues", "streams"},
    "queue": {"all", "queues", "quorum_queues"},
    "exchange": {"all", "exchanges"},
}


@dataclass(slots=True)
class Report:
    """The result of a comparison, one sentence each."""

    problems: list[str] = field(default_factory=list)
    """Objects that are missing or differ."""
    notes: list[str] = field(default_factory=list)
    """Policies of operators, and objects that could not be seen."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, or an operator policy, of an operator."""

    kind: str
    name: str
    pattern: str
    apply_to: str
    priority: int
    definition: Arguments

    def applies_to(self, spec: ExchangeSpec | QueueSpec) -> bool:
        """Return whether the pattern and the kind fit. A pattern that only RabbitMQ can read fits nothing."""
        try:
            return self.apply_to in _APPLY_TO[spec.kind] and bool(re.search(self.pattern, spec.name))
        except re.error:
            return False

    def __str__(self) -> str:
        """Name it with its values."""
        values = ", ".join(f"{key}={value}" for key, value in sorted(self.definition.items()))
        return f"{self.kind} {self.name} ({values})"


@dataclass(frozen=True, slots=True)
class Present:
    """The objects and policies in RabbitMQ."""

    exchanges: Mapping[str, Mapping[str, Any]]
    queues: Mapping[str, Mapping[str, Any]]
    bindings: frozenset[BindingSpec]
    policies: tuple[Policy, ...] = ()

    def policies_of(self, spec: ExchangeSpec | QueueSpec) -> list[Policy]:
        """Return the policies in force: of each kind the one with the highest priority."""
        fitting = sorted(
            (policy for policy in self.policies if policy.applies_to(spec)), key=lambda each: each.priority
        )
        return list({policy.kind: policy for policy in fitting}.values())


def compare(topology: Topology, present: Present) -> Report:
    """Return what is missing or differs, and the policies that change it."""
    report = Report()
    for exchange in topology.exchanges:
        report.problems += _exchange_problems(exchange, present.exchanges.get(exchange.name))
    for queue in topology.queues:
        report.problems += _queue_problems(queue, present)
    report.problems += [
        f"{binding} is missing" for binding in topology.bindings if binding not in present.bindings
    ]
    report.problems += [
        f"{binding} is of an earlier version and must be removed"
        for binding in topology.obsolete
        if binding in present.bindings
    ]
    report.notes += _policy_notes(topology.objects, present)
    return report


def _exchange_problems(spec: ExchangeSpec, found: Mapping[str, Any] | None) -> Iterable[str]:
    if found is None:
        yield f"exchange {spec.name} is missing"
        return
    if found["type"] != spec.type:
        yield f"exchange {spec.name} is of type {found['type']}, not {spec.type}"
    yield from _argument_problems(spec, found.get("arguments") or {}, ignored=())


def _queue_problems(spec: QueueSpec, present: Present) -> Iterable[str]:
    found = present.queues.get(spec.name)
    if found is None:
        yield f"{spec.kind} {spec.name} is missing"
        return
    arguments, type_ = found.get("arguments") or {}, spec.arguments["x-queue-type"]
    if found.get("type", type_) != type_:
        yield f"queue {spec.name} is of type {found['type']}, not {type_}"
    yield from _argument_problems(spec, arguments, ignored=("x-queue-type", *spec.limits))
    policies = present.policies_of(spec)
    for argument in spec.limits.keys() - _set_by(policies):  # a policy is the operator's choice, and is noted
        if arguments.get(argument) != spec.arguments.get(argument):
            yield str(Difference.of(spec, argument, arguments.get(argument)))
    for policy in policies:
        for key in _LOSING:
            if spec.kind == "queue" and key in policy.definition and f"x-{key}" not in spec.limits:
                yield f"{policy} removes requests from queue {spec.name} by its {key}: take that out"


def _set_by(policies: Iterable[Policy]) -> set[str]:
    return {f"x-{key}" for policy in policies for key in policy.definition}


def _argument_problems(
    spec: ExchangeSpec | QueueSpec, actual: Mapping[str, Any], *, ignored: Iterable[str]
) -> Iterable[str]:
    for name in sorted((actual.keys() | spec.arguments.keys()) - set(ignored)):
        if actual.get(name) != spec.arguments.get(name):
            wanted = spec.arguments.get(name)
            yield f"{spec.kind} {spec.name} has {name}={actual.get(name)!r}, it should be {wanted!r}"


def _policy_notes(specs: Iterable[ExchangeSpec | QueueSpec], present: Present) -> Iterable[str]:
    names: dict[str, list[str]] = {}
    for spec in specs:
        for policy in present.policies_of(spec):
            names.setdefault(str(policy), []).append(spec.name)
    for policy_text, of in names.items():
        yield (
            f"{policy_text} applies to {', '.join(of)}; in a stream its values replace the settings', "
            "in a queue the lower value counts"
        )
