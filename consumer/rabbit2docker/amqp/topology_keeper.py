"""The topology while the service runs: what has disappeared is declared again, or reported.

RabbitMQ gives notice when a queue with a consumer is deleted, but not when an exchange, a binding or a stream is. So
everything is checked periodically, and at once when a message was returned or a consumer has lost its queue.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from rabbit2docker import metrics
from rabbit2docker.amqp.declarer import Declarer, Difference
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.management import Management
from rabbit2docker.amqp.queue_age import QUEUE_AGES
from rabbit2docker.amqp.topology import BindingSpec, ExchangeSpec, QueueSpec, make_topology
from rabbit2docker.clock import utc_now
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, Rabbit2DockerError, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff, doubling
from rabbit2docker.settings import Settings
from rabbit2docker.tasks import TaskSet

log = get_logger()

CHECK_SECONDS: Final = 30.0
PROBLEM_SECONDS: Final = 5.0
"""Pause between checks while something is missing, so that the service soon uses what an operator has declared."""
CLOSE_SECONDS: Final = 3.0
"""Time that a running check has at the end of the service."""
SOONEST_SECONDS: Final = 0.5
"""Pause before a check that was requested; it doubles while such checks find nothing to restore."""
JITTER: Final = 0.3
ADVICE: Final = (
    "run `rabbit2docker topology declare` as a user who may configure it; `topology check` lists everything"
)
LOSS_ADVICE: Final = "they are gone, and nothing has a copy: their senders must send them again"
LOSS_SECONDS: Final = 3600.0
"""How long readiness reports messages that were lost with their queue."""
UNCHECKED: Final = "the topology has not been checked yet"
"""Keeps the service unready: the first check declares everything, so it would restore a loss without a word."""
_AFTER_RESTORING: Final = {
    "exchange": "find out what deletes it; its bindings are restored, hubs restore their own when they reconnect",
    "queue": "find out what deletes it; its limits and bindings are restored",
    "stream": "find out what deletes it; its history is gone",
    "binding": "find out what removes it",
}


class TopologyKeeper:
    """Checks exchanges, queues, streams and bindings, and declares those that are missing if the user may."""

    def __init__(self, settings: Settings, on_checked: Callable[[], Awaitable[None]]) -> None:
        """Take the tenants from the settings. `on_checked` is called after each check."""
        self.problems: tuple[str, ...] = (UNCHECKED,)
        """What is missing or differs and was not restored, as the last check found it."""
        self.missing_queues: set[str] = set()
        """Queues that the last check did not find and did not restore."""
        self._topology = make_topology(settings.tenants, settings.topology)
        self._settings = settings.amqp
        self._on_checked = on_checked
        self._requested = asyncio.Event()
        self._refused: set[Hashable] = set()
        """What the user may not declare: each refusal closes a channel, so it is not tried at every check."""
        self._tasks = TaskSet()
        self._declarer = Declarer(Endpoint(settings.amqp, "topology"))
        self._differences: set[Difference] = set()
        self._losses: dict[str, _Loss] = {}

    @property
    def may_restore(self) -> bool:
        """True unless the settings or RabbitMQ forbid the service to declare."""
        return self._settings.declare and not self._refused

    @property
    def losses(self) -> list[str]:
        """Return the queues that were deleted with messages in them of late, one sentence each."""
        now = asyncio.get_running_loop().time()
        return [str(loss) for loss in self._losses.values() if now - loss.seen_at < LOSS_SECONDS]

    def check_soon(self) -> None:
        """Check at once instead of at the next turn, because something seems to be missing."""
        self._requested.set()

    async def run(self) -> None:
        """Check until cancelled."""
        pauses = Backoff(doubling(SOONEST_SECONDS, PROBLEM_SECONDS), jitter=JITTER)
        try:
            while True:
                # The library can turn the cancellation of a call into another error, so a check is not cancelled.
                if await asyncio.shield(self._tasks.run(self._check(), "topology check")):
                    pauses.reset()
                await self._on_checked()
                if not await self._wait_until_due():
                    pauses.reset()
                    continue
                await pauses.sleep()
        finally:
            await self._tasks.close(seconds=CLOSE_SECONDS)
            await self._declarer.rpc.close()

    async def _wait_until_due(self) -> bool:
        """Wait for the next turn or for a request to check; return whether it was requested."""
        seconds = PROBLEM_SECONDS if self.problems else CHECK_SECONDS
        try:
            async with asyncio.timeout(seconds * random.uniform(1 - JITTER, 1 + JITTER)):
                await self._requested.wait()
        except TimeoutError:
            return False
        return True

    async def _check(self) -> bool:
        """Check everything once; return whether something was restored. An outage of RabbitMQ ends the check."""
        self._requested.clear()
        found = _Findings()
        try:
            for spec in self._topology.objects:
                await self._check_object(spec, found)
            # Read late: a binding that is lost in between would be restored without a word.
            unbound = await self._unbound()
            for binding in self._topology.bindings:
                await self._check_binding(binding, found, is_missing=binding in unbound)
            await self._remove_obsolete()
        except (AccessRefused, BrokerUnavailable) as error:  # the other connections report it
            log.debug("topology not checked", reason=str(error))
            await self._declarer.rpc.close()
        else:
            self._report(found)
            await self._declarer.rpc.close_if_worn()
        return found.has_restored

    def _report(self, found: "_Findings") -> None:
        metrics.TOPOLOGY_PROBLEMS.set(len(found.problems))
        for queue, waiting in self._declarer.waiting.items():
            metrics.QUEUE_MESSAGES.labels(queue=queue).set(waiting)
            QUEUE_AGES.note_waiting(queue, waiting)
        for problem in found.problems:
            if problem not in self.problems:
                log.error("topology incomplete", problem=problem, advice=ADVICE)
        if self.problems and self.problems != (UNCHECKED,) and not found.problems:
            log.info("topology complete again")
        for difference in found.differences - self._differences:
            log.warning("limit differs from the settings", problem=str(difference))
        self._differences = found.differences
        self.problems, self.missing_queues = tuple(found.problems), found.missing_queues

    async def _check_object(self, spec: ExchangeSpec | QueueSpec, found: "_Findings") -> None:
        """Declare an exchange, queue or stream again if it is missing; compare its arguments."""
        waiting = self._declarer.waiting.get(spec.name, 0)
        is_missing = await self._is_missing(spec)
        if is_missing and waiting:
            self._add_loss(spec.name, waiting)

        async def declare() -> None:
            found.differences.update(await self._declarer.declare(spec))

        try:
            is_declared = await self._declared((spec.kind, spec.name), declare, is_missing=is_missing)
        except TopologyMismatch as error:
            found.problems.append(str(error))
            return
        if is_missing:
            found.add_missing(spec.kind, spec.name, is_restored=is_declared)

    def _add_loss(self, queue: str, messages: int) -> None:
        self._losses[queue] = _Loss(queue, messages, asyncio.get_running_loop().time(), utc_now())
        metrics.QUEUE_MESSAGES.labels(queue=queue).set(0)
        metrics.MESSAGES_LOST.labels(queue=queue).inc(messages)
        log.error("queue deleted with messages in it", queue=queue, messages=messages, advice=LOSS_ADVICE)

    async def _check_binding(self, binding: BindingSpec, found: "_Findings", *, is_missing: bool) -> None:
        """Bind a queue again, whether or not the binding is known to be missing."""
        bind = partial(self._declarer.bind, binding)
        try:
            is_bound = await self._declared(binding, bind, is_missing=is_missing)
        except ChannelNotFoundEntity:
            return  # its queue or exchange is missing, which is reported
        if is_missing:
            found.add_missing("binding", str(binding), is_restored=is_bound)

    async def _declared(
        self, what: Hashable, declare: Callable[[], Awaitable[None]], *, is_missing: bool
    ) -> bool:
        """Declare what is in place or missing; return False if settings or permissions forbid it."""
        if not self._settings.declare or (what in self._refused and not is_missing):
            return False
        try:
            await declare()
        except ChannelAccessRefused:
            self._refused.add(what)
            return False
        self._refused.discard(what)
        return True

    async def _is_missing(self, spec: ExchangeSpec | QueueSpec) -> bool:
        looking = ("look", spec.kind, spec.name)  # a permission of its own from RabbitMQ 4.3 on
        if looking in self._refused:
            return False
        try:
            return not await self._declarer.exists(spec)
        except ChannelAccessRefused:
            self._refused.add(looking)
        return False

    async def _unbound(self) -> set[BindingSpec]:
        """Return the missing bindings if the management API is configured: AMQP does not show bindings."""
        if not self._settings.has_management:
            return set()
        try:
            async with Management(self._settings) as management:
                return set(self._topology.bindings) - await management.bindings()
        except Rabbit2DockerError as error:
            log.debug("bindings not read", reason=str(error))
            return set()

    async def _remove_obsolete(self) -> None:
        for binding in self._topology.obsolete:
            try:
                unbind = partial(self._declarer.unbind, binding)
                await self._declared(("without", binding), unbind, is_missing=False)
            except ChannelNotFoundEntity:
                continue


@dataclass(frozen=True, slots=True)
class _Loss:
    """A queue that disappeared while messages waited in it."""

    queue: str
    messages: int
    """Those that waited when it was last seen."""
    seen_at: float
    time: datetime

    def __str__(self) -> str:
        """Name queue, time and number."""
        noun = "message" if self.messages == 1 else "messages"
        return f"queue {self.queue} was found deleted at {self.time:%H:%M} UTC, with about {self.messages} {noun} in it"


@dataclass(slots=True)
class _Findings:
    """The result of one check."""

    problems: list[str] = field(default_factory=list)
    missing_queues: set[str] = field(default_factory=set)
    differences: set[Difference] = field(default_factory=set)
    has_restored: bool = False

    def add_missing(self, kind: str, name: str, *, is_restored: bool) -> None:
        """Count and log what was restored, or take what was not for a problem."""
        if is_restored:
            self.has_restored = True
            metrics.TOPOLOGY_RESTORED.labels(kind=kind).inc()
            log.warning("topology restored", kind=kind, name=name, advice=_AFTER_RESTORING[kind])
            return
        self.problems.append(f"{name} is missing" if kind == "binding" else f"{kind} {name} is missing")
        if kind == "queue":
            self.missing_queues.add(name)
