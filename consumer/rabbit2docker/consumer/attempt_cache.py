"""Attempts as the executor last reported them, indexed for intake, following and cleaning."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, assert_never

from rabbit2docker.consumer.executors.base import (
    Answer,
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptStatus,
    AttemptStore,
    Change,
    Changed,
    Removed,
    StoredOutcome,
    Synced,
)
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Kind, TerminalEventData

Listener = Callable[[Change], None]
Key = TypeVar("Key")


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
        self._by_build: defaultdict[str, dict[AttemptName, Attempt]] = defaultdict(dict)
        self._by_request: defaultdict[tuple[str, str], dict[AttemptName, Attempt]] = defaultdict(dict)
        self._live: dict[AttemptName, Attempt] = {}
        self._unreported: dict[AttemptName, Attempt] = {}
        self.slot_changes = 0
        """Number of changes so far of which attempts take a slot, or whose."""
        self._listeners: list[Listener] = []
        self._answering: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._answered: dict[AttemptName, set[str]] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Apply the executor's changes until cancelled."""
        async for change in self._executor.changes():
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Apply a change and notify the subscribers."""
        match change:
            case Changed(attempt):
                self.slot_changes += _slot_of(self._remember(attempt)) != _slot_of(attempt)
            case Removed(name):
                self.slot_changes += _slot_of(self._forget(name)) is not None
                self._answered.pop(name, None)
            case Synced():
                self.synced.set()
            case unhandled:
                assert_never(unhandled)
        for listener in self._listeners:
            listener(change)

    def _remember(self, attempt: Attempt) -> Attempt | None:
        """Index an attempt; return what was known of it before."""
        name, known = attempt.name, self._by_name.get(attempt.name)
        if known is not None:
            self._drop_keys(known, keep=attempt)
        self._by_name[name] = self._by_build[attempt.spec.build_id][name] = attempt
        for key in _request_keys(attempt):
            self._by_request[key][name] = attempt
        for index, is_in in ((self._live, attempt.is_live), (self._unreported, not is_reported(attempt))):
            if is_in:
                index[name] = attempt
            else:
                index.pop(name, None)
        return known

    def _forget(self, name: AttemptName) -> Attempt | None:
        known = self._by_name.pop(name, None)
        if known is not None:
            self._drop_keys(known)
            self._live.pop(name, None)
            self._unreported.pop(name, None)
        return known

    def _drop_keys(self, known: Attempt, *, keep: Attempt | None = None) -> None:
        """Drop an attempt from where it is found by build and by request, unless the one that follows it is there, too."""
        if keep is None or keep.spec.build_id != known.spec.build_id:
            _remove(self._by_build, known.spec.build_id, known.name)
        for key in set(_request_keys(known)) - set(_request_keys(keep) if keep else ()):
            _remove(self._by_request, key, known.name)

    def put(self, attempt: Attempt) -> Attempt:
        """Store a snapshot that one of our own calls returned, ahead of the executor's change."""
        self.apply(Changed(attempt))
        return attempt

    @contextmanager
    def answering(self, build_id: str) -> Iterator[None]:
        """Mark the build as one of which a request is being answered: its follower waits for the answer."""
        answered = asyncio.Event()
        self._answering[build_id].append(answered)
        try:
            yield
        finally:
            self._answering[build_id].remove(answered)
            if not self._answering[build_id]:
                del self._answering[build_id]
            answered.set()

    async def until_answered(self, build_id: str) -> None:
        """Wait while this replica answers requests of the build, so that they are not answered twice."""
        while answers := self._answering.get(build_id):
            await answers[0].wait()

    def note_answered(self, name: AttemptName, request_id: str) -> None:
        """Remember that this replica has published the answer to a request of the record."""
        self._answered.setdefault(name, set()).add(request_id)

    def unanswered(self, name: AttemptName, status: AttemptStatus) -> dict[str, Answer]:
        """Return the answers in the record that this replica has not published; another one may have."""
        answered = self._answered.get(name, set())
        return {id_: answer for id_, answer in status.unanswered.items() if id_ not in answered}

    def needs_answer(self, name: AttemptName, request_id: str) -> bool:
        """False once another replica answers for this one, because the build goes on or has ended there."""
        known = self._by_name.get(name)
        return known is not None and known.status.outcome is None and request_id in known.status.unanswered

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called with each change, in order. It must not block."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Attempt]:
        """Iterate over a copy of all snapshots."""
        return iter(list(self._by_name.values()))

    def get(self, name: AttemptName) -> Attempt | None:
        """Return the last snapshot of the attempt."""
        return self._by_name.get(name)

    def live(self) -> list[Attempt]:
        """Return the attempts that take a slot."""
        return list(self._live.values())

    def of_build(self, build_id: str) -> list[Attempt]:
        """Return the attempts of a build, first to last."""
        found = self._by_build.get(build_id, {}).values()
        return sorted(found, key=lambda attempt: attempt.spec.attempt)

    def newest_of_build(self, build_id: str) -> Attempt | None:
        """Return the build's last attempt."""
        return next(reversed(self.of_build(build_id)), None)

    def of_request(self, tenant: str, request_id: str) -> Attempt | None:
        """Return the last attempt of the build that this request started or joined."""
        return _newest(self._by_request.get((tenant, request_id), {}).values())

    def unfinished(self, is_wanted: Callable[[AttemptSpec], bool]) -> Attempt | None:
        """Return the last attempt of such a build that a request may still join."""
        return _newest(
            attempt
            for attempt in self._unreported.values()
            if is_wanted(attempt.spec) and attempt.status.is_joinable
        )

    def just_completed(self, fingerprint: str) -> Completed | None:
        """Return the end of such a build if it has completed and that is not reported yet."""
        found = _newest(
            attempt
            for attempt in self._unreported.values()
            if attempt.spec.fingerprint == fingerprint and attempt.status.has_just_completed
        )
        outcome = found.status.outcome if found else None
        return Completed.model_validate(outcome.data) if outcome else None


def _request_keys(attempt: Attempt) -> Iterator[tuple[str, str]]:
    return ((attempt.spec.tenant, request_id) for request_id in attempt.status.requests)


def _slot_of(attempt: Attempt | None) -> str | None:
    """Return the replica that created an attempt, which may be unknown; None if the attempt takes no slot."""
    return attempt.created_by or "" if attempt is not None and attempt.is_live else None


def _remove(index: dict[Key, dict[AttemptName, Attempt]], key: Key, name: AttemptName) -> None:
    index[key].pop(name, None)
    if not index[key]:
        del index[key]


def _newest(attempts: Iterable[Attempt]) -> Attempt | None:
    return max(attempts, key=lambda attempt: (attempt.spec.created_at, attempt.spec.attempt), default=None)
