"""Declares one part of the topology after the other, and leaves the limits of what exists as they are."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.rpc import Rpc
from rabbit2docker.amqp.topology import Arguments, BindingSpec, ExchangeSpec, QueueSpec
from rabbit2docker.errors import TopologyMismatch
from rabbit2docker.settings.constants import ENV_PREFIX

ANSWER_SECONDS: Final = 10.0
"""Limit for one of RabbitMQ's answers."""
UNKNOWN: Final = "unknown"
"""Stands for a value that RabbitMQ's answer, which has at most 255 bytes, does not show."""
_UNITS: Final = {"D": 86_400, "h": 3_600, "m": 60, "s": 1}
"""Seconds of RabbitMQ's units, the longest first, without its months and years of 30 and 365 days."""
_ARGUMENT: Final = re.compile(r"inequivalent arg '([^']+)'")
_PRESENT: Final = re.compile(r" but current is (?:none|(?:the value )?'(?P<value>[^']*)')")


@dataclass(frozen=True, slots=True)
class Difference:
    """A limit of an existing queue or stream that is not the one of the settings."""

    what: str
    argument: str
    present: Any
    """The value in RabbitMQ; None: there is none."""
    wanted: Any
    setting: str

    @classmethod
    def of(cls, spec: QueueSpec, argument: str, present: Any) -> "Difference":
        """Return the difference in one argument."""
        setting = f"{ENV_PREFIX}TOPOLOGY__{spec.limits[argument].upper()}"
        return cls(f"{spec.kind} {spec.name}", argument, present, spec.arguments.get(argument), setting)

    def __str__(self) -> str:
        """Name both values, the setting and the ways out."""
        return (
            f"{self.what} exists with {self.argument}={_shown(self.present)} and keeps it, although {self.setting} "
            f"makes it {_shown(self.wanted)}. Change the setting, or set a policy, or delete the "
            f"{self.what.partition(' ')[0]} and declare it again"
        )


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


class Declarer:
    """Declares over a connection of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Take the addresses; the first call connects."""
        self.rpc = Rpc(endpoint)
        self.waiting: dict[str, int] = {}
        """Messages that waited in each queue when it was last seen; those that a consumer had in hand are not counted."""
        self._present: dict[str, Arguments] = {}
        """Arguments as RabbitMQ has them, by queue: each comparison that fails closes a channel."""

    async def __aenter__(self) -> "Declarer":
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.rpc.close()

    async def exists(self, spec: ExchangeSpec | QueueSpec) -> bool:
        """Return whether there is one of this name."""
        try:
            waiting = await self.rpc.call(partial(_look, spec))
        except ChannelNotFoundEntity:
            self._present.pop(spec.name, None)  # the next one gets the limits of the settings
            self.waiting.pop(spec.name, None)
            return False
        if spec.kind == "queue":
            self.waiting[spec.name] = waiting
        return True

    async def declare(self, spec: ExchangeSpec | QueueSpec) -> list[Difference]:
        """Declare it; return the limits that an existing one has instead of the settings'.

        Raises TopologyMismatch when it exists with other arguments that are no limits.
        """
        if isinstance(spec, ExchangeSpec):
            await self._declare(spec, spec.arguments)
            return []
        present = self._present.get(spec.name, spec.arguments)
        present = self._present[spec.name] = await self._with_present_limits(spec, present)
        return [
            Difference.of(spec, argument, present.get(argument))
            for argument in spec.limits
            if present.get(argument) != spec.arguments.get(argument)
        ]

    async def _with_present_limits(self, spec: QueueSpec, arguments: Arguments) -> Arguments:
        """Declare a queue, if need be with the limits that RabbitMQ has; return its arguments."""
        for _ in range(len(spec.limits) + 1):
            try:
                await self._declare(spec, arguments)
            except TopologyMismatch as mismatch:
                argument, value = present_limit(spec, str(mismatch.__cause__))
                if argument is None:
                    raise
                arguments = {name: held for name, held in arguments.items() if name != argument}
                if value is not None:
                    arguments[argument] = value
                if value == UNKNOWN:
                    break
            else:
                break
        return arguments

    async def _declare(self, spec: ExchangeSpec | QueueSpec, arguments: Arguments) -> None:
        try:
            await self.rpc.call(partial(_declare, spec, arguments))
        except ChannelPreconditionFailed as error:
            text = str(error.args[-1]).removeprefix("PRECONDITION_FAILED - ")
            raise TopologyMismatch(
                f"{spec.kind.capitalize()} {spec.name} exists with other arguments: {text}. Arguments cannot be "
                "changed: empty it, delete it and declare again."
            ) from error

    async def bind(self, binding: BindingSpec) -> None:
        """Bind a queue."""
        await self.rpc.call(partial(_bind, binding))

    async def unbind(self, binding: BindingSpec) -> None:
        """Remove a binding if it exists."""
        await self.rpc.call(partial(_unbind, binding))


def present_limit(spec: QueueSpec, answer: str) -> tuple[str | None, Any]:
    """Return the limit that RabbitMQ's answer names, and its value there; no name if it is about something else."""
    named, shown = _ARGUMENT.search(answer), _PRESENT.search(answer)
    if named is None or named[1] not in spec.limits:
        return None, None
    if shown is None:
        return named[1], UNKNOWN
    value = shown["value"]
    if value is None or not value.isdigit():
        return named[1], value
    return named[1], _duration(int(value)) if named[1] == "x-max-age" else int(value)


def _duration(milliseconds: int) -> str:
    """Return a duration as it is declared; RabbitMQ 4.3 answers with milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    if rest:
        return UNKNOWN
    unit, size = next((unit, size) for unit, size in _UNITS.items() if seconds % size == 0)
    return f"{seconds // size}{unit}"


async def _look(spec: ExchangeSpec | QueueSpec, channel: AbstractChannel) -> int:
    """Return how many messages wait in it."""
    if isinstance(spec, ExchangeSpec):
        await channel.exchange_declare(spec.name, passive=True, timeout=ANSWER_SECONDS)
        return 0
    found = await channel.queue_declare(spec.name, passive=True, timeout=ANSWER_SECONDS)
    return found.message_count or 0


async def _declare(spec: ExchangeSpec | QueueSpec, arguments: Arguments, channel: AbstractChannel) -> None:
    how: dict[str, Any] = {"durable": True, "arguments": arguments, "timeout": ANSWER_SECONDS}
    if isinstance(spec, ExchangeSpec):
        await channel.exchange_declare(spec.name, exchange_type=spec.type, **how)
    else:
        await channel.queue_declare(spec.name, **how)


async def _bind(binding: BindingSpec, channel: AbstractChannel) -> None:
    await channel.queue_bind(binding.queue, binding.exchange, binding.key, timeout=ANSWER_SECONDS)


async def _unbind(binding: BindingSpec, channel: AbstractChannel) -> None:
    await channel.queue_unbind(binding.queue, binding.exchange, binding.key, timeout=ANSWER_SECONDS)
