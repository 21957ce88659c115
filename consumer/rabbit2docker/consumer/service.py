"""The consumer service: wires its parts together and runs them until a signal."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final, Self

import structlog

from rabbit2docker import metrics
from rabbit2docker.amqp.broker import Broker
from rabbit2docker.amqp.state_claim import NOT_CLAIMED
from rabbit2docker.amqp.topology_keeper import ADVICE, LOSS_ADVICE
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.cleaner import Cleaner
from rabbit2docker.consumer.credentials import GitCredentials
from rabbit2docker.consumer.engine_disk.cleaner import EngineCleaner
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import Executor
from rabbit2docker.consumer.following.follower import FollowerContext
from rabbit2docker.consumer.following.pace import LogPace
from rabbit2docker.consumer.following.recovery import Recovery
from rabbit2docker.consumer.following.supervisor import FollowerSupervisor
from rabbit2docker.consumer.health import Check, Health
from rabbit2docker.consumer.images.base import FindImage
from rabbit2docker.consumer.images.creation import RepositoryCreation
from rabbit2docker.consumer.images.tenants import TenantImages, TenantRegistries
from rabbit2docker.consumer.intake.admission import Admission, AdmissionContext, AdmissionOutcome
from rabbit2docker.consumer.intake.build_limits import BuildLimits, Quotas
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.capacity import OPEN_QUEUES, Capacity
from rabbit2docker.consumer.intake.places import PlaceAnnouncer
from rabbit2docker.consumer.intake.shares import Shares
from rabbit2docker.consumer.intake.waiting_line import WaitingLine
from rabbit2docker.consumer.intake.worker import IntakeWorker
from rabbit2docker.consumer.ownership import Ownership
from rabbit2docker.consumer.providers.catalog import Providers, connect_apps
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.consumer.providers.spec_rules import SpecRules
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable
from rabbit2docker.garbage import collect_less_often
from rabbit2docker.retry import retry_forever
from rabbit2docker.settings import ExecutorKind, Settings
from rabbit2docker.settings.reloading import SettingsFile
from rabbit2docker.tasks import cancel_and_wait, first_set, root_cause, set_on_signals
from rabbit2docker_schemas.routing import make_ladder

log = structlog.get_logger()

DRAIN_SECONDS: Final = 8.0
"""Time that deliveries in hand have to finish at a SIGTERM: intake takes seconds. Builds are not waited for."""
STATE_PAUSES: Final = (1.0, 2.0, 5.0)
ANSWER_SECONDS: Final = 10.0
"""Time that a tenant's stream may take for an answer: until then, its request is held in place of others."""


def make_executor(settings: Settings, credentials: GitCredentials | None = None) -> Executor:
    """Return the executor that the settings name; raises ConfigurationError."""
    # Imported only here: an installation has the packages of the executor that it uses.
    try:
        match settings.executor:
            case ExecutorKind.LOCAL:
                from rabbit2docker.consumer.executors.local.executor import LocalExecutor

                return LocalExecutor(settings, credentials=credentials)
            case ExecutorKind.KUBERNETES:
                from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor

                return KubernetesExecutor(settings, credentials=credentials)
    except ModuleNotFoundError as error:
        kind = settings.executor
        raise ConfigurationError(
            f"The {kind} executor needs {error.name}: pip install 'rabbit2docker[{kind}]'."
        ) from error


def make_engine_cleaner(settings: Settings) -> EngineCleaner | None:
    """Return what cleans the engine's disk; None if it has no limit, or if pods beside the engines do. Raises ConfigurationError."""
    is_beside = settings.executor is ExecutorKind.LOCAL
    return EngineCleaner(settings) if is_beside and settings.engine.disk.is_limited else None


class Service:
    """One replica of the consumer. Use it as a context manager, then `run` it."""

    def __init__(self, settings: Settings) -> None:
        """Check the settings; raises ConfigurationError. Nothing is opened before the context is entered."""
        self._settings = settings
        TenantImages(settings)  # checks them
        self._credentials = GitCredentials(settings.tenants)
        self._executor = make_executor(settings, self._credentials)
        self._broker = Broker(settings)
        self._attempts = AttemptCache(self._executor)
        self._events = EventPublisher(self._broker.publisher, instance=settings.instance)
        self._answers = EventPublisher(
            self._broker.publisher, instance=settings.instance, patience=ANSWER_SECONDS
        )
        self._ownership = Ownership(self._executor)
        shares = Shares(settings.shares)
        self._line = WaitingLine(settings, shares)
        self._broker.waiting.subscribe(self._line.apply)
        self._capacity = Capacity(
            self._broker.source,
            self._attempts,
            self._ownership,
            self._line,
            shares,
            self._broker.waiting,
            settings,
        )
        self._places = PlaceAnnouncer(
            self._line, self._broker.waiting, self._answers, self._ownership, self._capacity, settings
        )
        self._cancellation = Cancellation(self._executor, self._attempts, self._broker.cancels)
        self._cleaner = Cleaner(
            self._executor,
            self._attempts,
            self._ownership,
            keep_seconds=settings.limits.keep_ended_seconds,
        )
        self._breakers = Breakers()
        self._breakers.export()
        self._engine = EngineWatch(self._executor, self._breakers)
        self._engine_cleaner = make_engine_cleaner(settings)
        self._limits = BuildLimits(self._attempts, settings.policy)
        self._settings_file = SettingsFile(self._use_rules)
        self._health = Health(settings.http.bind, self._checks, self._degraded)
        self._stack = AsyncExitStack()
        self._stopping = False
        metrics.preset(AdmissionOutcome)

    async def __aenter__(self) -> Self:
        """Open the executor; raises ConfigurationError when another service holds its records."""
        await self._stack.__aenter__()
        session = await self._stack.enter_async_context(open_session(self._settings.providers))
        connect_apps(self._credentials, self._settings.providers, session, self._breakers)
        registry = TenantRegistries(session, self._settings, self._breakers)
        self._providers = Providers(self._settings.providers, session, self._breakers, self._credentials)
        self._supervisor = self._make_supervisor(registry.find)
        self._intake = self._make_intake(registry.find)
        await self._stack.enter_async_context(self._executor)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """Close everything; builds run on."""
        await self._stack.__aexit__(*exc)

    def _make_supervisor(self, find_image: FindImage) -> FollowerSupervisor:
        context = FollowerContext(
            executor=self._executor,
            attempts=self._attempts,
            events=self._events,
            find_image=find_image,
            settings=self._settings,
            recovery=Recovery(self._engine, find_image, self._settings),
            pace=LogPace(self._settings.build_logs.batch_seconds),
            credentials=self._credentials,
        )
        return FollowerSupervisor(context, self._ownership)

    def _use_rules(self, settings: Settings) -> None:
        """Apply the rules of changed settings. Raises ConfigurationError before any of them is in effect."""
        rules, quotas = SpecRules(settings.providers), Quotas(settings.policy)
        self._providers.use_rules(rules)
        self._limits.use(settings.policy, quotas)

    def _make_intake(self, find_image: FindImage) -> IntakeWorker:
        context = AdmissionContext(
            executor=self._executor,
            attempts=self._attempts,
            events=self._answers,
            providers=self._providers,
            find_image=find_image,
            settings=self._settings,
            cancellation=self._cancellation,
            limits=self._limits,
            refresh_settings=self._settings_file.refresh,
            ensure_repository=RepositoryCreation(self._settings.images).ensure,
            breakers=self._breakers,
            credentials=self._credentials,
        )
        return IntakeWorker(
            source=self._broker.source,
            events=self._answers,
            admission=Admission(context),
            cancellation=self._cancellation,
            capacity=self._capacity,
            line=self._line,
            waiting_log=self._broker.waiting,
            max_bytes=self._settings.limits.message_bytes,
            patience=timedelta(seconds=self._settings.limits.outage_seconds),
            ladder=make_ladder(self._settings.topology.retry_pauses, self._settings.limits.retry_seconds),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then shut down in order: intake, followers, connections.

        Raises an error that retries cannot cure: ConfigurationError, AccessRefused, TopologyMismatch, StateConflict.
        """
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return group.create_task(work, name=name)

            base = [
                start("health", self._health.run()),
                start("broker", self._run_broker()),
                start("attempts", self._attempts.run()),
                start("ownership", self._ownership.run()),
            ]
            # Requests that wait for the engine would otherwise be taken for its return.
            base.append(start("engine", self._engine.run()))
            if self._engine_cleaner is not None:
                base.append(start("engine cleaner", self._engine_cleaner.run()))
            for known in (self._attempts.synced, self._ownership.known, self._engine.checked):
                await first_set(known, stop)
            supervisor = start("supervisor", self._supervisor.run())
            # A request that was cancelled earlier must not be taken before that is known. Builds are followed already.
            await first_set(self._broker.cancels.caught_up, stop)
            intake = [
                start("capacity", self._capacity.run(self._intake.start)),
                start("intake", self._intake.run()),
                start("places", self._places.run()),
                start("cleaner", self._cleaner.run()),
            ]
            log.info("ready to take requests", executor=self._settings.executor.value)
            await stop.wait()
            await self._drain(intake)
            await cancel_and_wait([supervisor])
            await cancel_and_wait(base)

    async def _run_broker(self) -> None:
        state_id = await retry_forever(
            self._executor.state_id,
            on=ExecutorUnavailable,
            pauses=STATE_PAUSES,
            report=lambda error, _: log.warning("executor unavailable, retrying", reason=str(error)),
        )
        await self._broker.run(state_id)

    async def _drain(self, intake: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        log.info("service stopping")
        await cancel_and_wait(intake)
        for queue in OPEN_QUEUES:
            await self._broker.source.set_prefetch(queue, 0)
        await self._intake.drain(DRAIN_SECONDS)

    def _topology_check(self) -> Check:
        broken, losses = self._broker.topology_problems(), self._broker.topology_losses()
        if broken:
            return Check("topology", False, f"{'; '.join([*broken, *losses])}. {ADVICE}")
        return Check(
            "topology", True, f"complete, but {'; '.join(losses)}: {LOSS_ADVICE}" if losses else "complete"
        )

    def _degraded(self) -> list[str]:
        outdated = [self._settings_file.problem] if self._settings_file.problem else []
        waiting = self._broker.waiting
        unknown = [waiting.problem] if waiting.caught_up.is_set() and waiting.problem else []
        return [*self._breakers.sentences(), *self._broker.publisher.problems(), *outdated, *unknown]

    def _checks(self) -> list[Check]:
        checks = [
            Check(f"broker ({role})", not problem, problem or "connected")
            for role, problem in self._broker.problems().items()
        ]
        checks.append(self._topology_check())
        claim = self._broker.source.claim
        is_free = claim is not None and claim.is_refused
        checks.append(Check("state", True, NOT_CLAIMED if is_free else "no other state is served here"))
        cancels = self._broker.cancels
        checks.append(Check("cancels", cancels.caught_up.is_set(), cancels.problem or "known"))
        synced = self._attempts.synced.is_set()
        checks.append(Check("executor", synced, "records are read" if synced else "reading records"))
        checks += [
            Check(name, not problem, problem or "well") for name, problem in self._executor.problems().items()
        ]
        paused = self._capacity.is_paused
        state = "stopping" if self._stopping else "all slots are taken" if paused else "taking requests"
        return [*checks, Check("intake", not self._stopping, state)]


async def run(settings: Settings) -> None:
    """Run the consumer until SIGTERM or SIGINT. Raises an error that retries cannot cure."""
    collect_less_often()
    stop = set_on_signals()
    try:
        async with Service(settings) as service:
            await service.run(stop)
    except BaseExceptionGroup as group:
        raise root_cause(group) from None
    log.info("service stopped")
