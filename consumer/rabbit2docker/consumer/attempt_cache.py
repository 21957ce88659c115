"""Attempts as the executor last reported them, indexed for intake, following and cleaning."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import assert_never

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptStore,
    Change,
    Changed,
    Removed,
    StoredOutcome,
    Synced,
)
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Kind, TerminalEventData

Listener = Callable[[Change], None]


def is_reported(attempt: Attempt) -> bool:
    """True once the outcome of the attempt is published: nothing further will be."""
    return attempt.status.reported


def terminal_event_of(outcome: StoredOutcome) -> TerminalEventData:
    """Return the terminal event that a record holds. Raises ValueError when it holds another kind of outcome."""
    kind = Kind(outcome.kind)
    match kind:
        case Kind.COMPLETED:
            return Completed.model_validate(outcome.data)
        case Kind.FAILED:
            return Failed.model_validate(outcome.data)
        case Kind.CANCELLED:
            return Cancelled.model_validate(outcome.data)
        case Kind.ACCEPTED | Kind.REJECTED | Kind.PROGRESS | Kind.LOG | Kind.GAP:
            raise ValueError(f"{kind} does not end a build")
        case unhandled:
            assert_never(unhandled)


class AttemptCache:
    """A cache of the executor's records, fed by its changes and, ahead of them, by this replica's own writes."""

    def __init__(self, executor: AttemptStore) -> None:
        """Start empty; `run` fills it."""
        self._executor = executor
        self._by_name: dict[AttemptName, Attempt] = {}
        self._listeners: list[Listener] = []
        self._answering: dict[str, asyncio.Event] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Apply the executor's changes until cancelled."""
        async for change in self._executor.changes():
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Apply a change and notify the subscribers."""
        match change:
            case Changed(attempt):
                self._by_name[attempt.name] = attempt
            case Removed(name):
                self._by_name.pop(name, None)
            case Synced():
                self.synced.set()
            case unhandled:
                assert_never(unhandled)
        for listener in self._listeners:
            listener(change)

    def put(self, attempt: Attempt) -> Attempt:
        """Store a snapshot that one of our own calls returned, ahead of the executor's change."""
        self.apply(Changed(attempt))
        return attempt

    @contextmanager
    def answering(self, build_id: str) -> Iterator[None]:
        """Mark the build as one whose request is being answered: nothing is to be published of it before the answer."""
        answered = self._answering.setdefault(build_id, asyncio.Event())
        try:
            yield
        finally:
            self._answering.pop(build_id, None)
            answered.set()

    async def until_answered(self, build_id: str) -> None:
        """Wait while this replica answers the request that starts the build.

        An answer that another replica gives is not known here: it may come after the end. That is rare, because a build
        is followed by the replica that created it, for as long as that lives.
        """
        if answered := self._answering.get(build_id):
            await answered.wait()

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called with each change, in order. It must not block."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Attempt]:
        """Iterate over a copy of all snapshots."""
        return iter(list(self._by_name.values()))

    def get(self, name: AttemptName) -> Attempt | None:
        """Return the last snapshot of the attempt."""
        return self._by_name.get(name)

    def live_count(self) -> int:
        """Return how many attempts take a slot."""
        return sum(attempt.is_live for attempt in self._by_name.values())

    def of_build(self, build_id: str) -> list[Attempt]:
        """Return the attempts of a build, first to last."""
        found = (attempt for attempt in self._by_name.values() if attempt.spec.build_id == build_id)
        return sorted(found, key=lambda attempt: attempt.spec.attempt)

    def newest_of_build(self, build_id: str) -> Attempt | None:
        """Return the build's last attempt."""
        return next(reversed(self.of_build(build_id)), None)

    def of_request(self, tenant: str, request_id: str) -> Attempt | None:
        """Return the last attempt of the build that this request started or joined."""
        return _newest(
            attempt
            for attempt in self._by_name.values()
            if attempt.spec.tenant == tenant and request_id in attempt.status.requests
        )

    def unfinished(self, is_wanted: Callable[[AttemptSpec], bool]) -> Attempt | None:
        """Return the last attempt of such a build that a request may still join."""
        return _newest(
            attempt
            for attempt in self._by_name.values()
            if is_wanted(attempt.spec) and attempt.status.is_joinable
        )


def _newest(attempts: Iterable[Attempt]) -> Attempt | None:
    return max(attempts, key=lambda attempt: (attempt.spec.created_at, attempt.spec.attempt), default=None)
