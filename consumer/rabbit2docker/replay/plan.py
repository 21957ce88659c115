"""The plan of a replay: equal requests are one, and each one that is left out has a reason. Pure, but for the workspace."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from rabbit2docker.consumer.providers.specs import pin
from rabbit2docker.errors import RequestRejected
from rabbit2docker.replay.logged import UnreadableRequest, checked
from rabbit2docker.replay.selection import OutcomeKind, PastRequest, Selection
from rabbit2docker.replay.workspace import Key, Workspace
from rabbit2docker_schemas.reasons import RejectReason

POISON: Final = frozenset({RejectReason.DELIVERY_LIMIT, RejectReason.INTERNAL})
"""Rejections of requests at which the service itself failed."""
NOT_ENDED: Final = "has not ended yet; `--outcome never-ended` chooses it"
REPLAY_RUNS: Final = "is being replayed already: that has not ended yet"
UNKNOWN_OUTCOME: Final = "outcome not known any more: the events are deleted"
UNKNOWN_BUILDER: Final = "not known what built it"
UNKNOWN_COMMIT: Final = "commit not known: the request was never accepted"
REBUILT: Final = "has been rebuilt since"
POISONED: Final = "the service failed on it before; `--outcome rejected:{}` chooses it all the same"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Equal requests of one tenant that become one build, or that are left out."""

    tenant: str
    key: Key
    newest: PastRequest
    requests: int
    excluded: str = ""
    """Why they are left out; empty if they are chosen."""
    content: dict[str, Any] = field(default_factory=dict)
    """Of the request to publish: what the chosen one has beside its ids."""

    @property
    def original_id(self) -> str:
        """Return the request that is replayed: of a replay, the one that it replayed."""
        return self.newest.replay_of or self.newest.request_id


@dataclass(slots=True)
class GroupFold:
    """Equal requests, one after the other, the oldest first."""

    selection: Selection
    requests: int = 0
    newest: PastRequest | None = None
    matched_before: bool = False
    """True if an earlier one than the newest matches."""
    _matches: bool | None = False

    def add(self, request: PastRequest) -> None:
        """Add the next one."""
        self.matched_before |= self._matches is True
        self._matches = self.selection.matches_outcome(request)
        self.requests += 1
        self.newest = request

    def verdict(self) -> str | None:
        """Return why the group is left out, an empty text if it is chosen, None if it does not match at all."""
        assert self.newest is not None
        outcome, names = self.newest.outcome, self.selection.outcomes
        if self._matches and outcome.kind is OutcomeKind.REJECTED and outcome.reason in POISON:
            is_named = f"rejected:{outcome.reason}" in names or self.selection.ids
            return "" if is_named else POISONED.format(outcome.reason)
        if outcome.kind is OutcomeKind.UNKNOWN and self.selection.needs_outcomes:
            return UNKNOWN_OUTCOME
        if self._matches:
            return ""
        if outcome.kind is OutcomeKind.NEVER_ENDED and (
            self.matched_before or not self.selection.needs_outcomes
        ):
            return REPLAY_RUNS if self.newest.replay_of else NOT_ENDED
        if self._matches is None:
            return UNKNOWN_BUILDER
        return self._superseded() if self.matched_before else None

    def _superseded(self) -> str:
        assert self.newest is not None
        outcome = self.newest.outcome
        if outcome.kind is OutcomeKind.COMPLETED:
            return REBUILT
        again = "its replay" if self.newest.replay_of else "requested again since, which"
        return f"{again} ended as {outcome}"


@dataclass(slots=True)
class Totals:
    """Numbers of one pass over the plan."""

    chosen: int = 0
    requests: int = 0
    """Requests that the chosen groups stand for."""
    unmatched: int = 0
    excluded: Counter[str] = field(default_factory=Counter)

    def add(self, candidate: Candidate) -> None:
        """Count a candidate."""
        if candidate.excluded:
            self.excluded[candidate.excluded] += 1
        else:
            self.chosen += 1
            self.requests += candidate.requests


class Plan:
    """The candidates of a selection, always in the same order."""

    def __init__(self, workspace: Workspace, selection: Selection) -> None:
        """Take a workspace that is filled."""
        self._workspace = workspace
        self._selection = selection
        self.totals = Totals()
        """Of the latest pass."""

    def candidates(self) -> Iterator[Candidate]:
        """Yield those that are chosen or left out for a reason, and count."""
        self.totals = Totals()
        past = self._workspace.past(same_commit=self._selection.same_commit)
        for (tenant, key), members in groupby(past, key=lambda found: (found[1].tenant, found[0])):
            if self._selection.same_commit and key is None:
                candidates = self._without_commit(tenant, (request for _, request in members))
            else:
                candidates = self._of_group(tenant, key, (request for _, request in members))
            for candidate in candidates:
                self.totals.add(candidate)
                yield candidate

    def chosen(self) -> Iterator[Candidate]:
        """Yield those that are chosen."""
        return (candidate for candidate in self.candidates() if not candidate.excluded)

    def _without_commit(self, tenant: str, members: Iterable[PastRequest]) -> Iterator[Candidate]:
        for request in members:
            if self._selection.matches_outcome(request) is not False:
                yield Candidate(tenant, None, request, 1, UNKNOWN_COMMIT)
            else:
                self.totals.unmatched += 1

    def _of_group(self, tenant: str, key: Key, members: Iterable[PastRequest]) -> Iterator[Candidate]:
        fold = GroupFold(self._selection)
        for request in members:
            fold.add(request)
        verdict, newest = fold.verdict(), fold.newest
        assert newest is not None
        if verdict is None:
            self.totals.unmatched += 1
        elif verdict:
            yield Candidate(tenant, key, newest, fold.requests, verdict, self._raw_content(newest))
        else:
            yield self._checked(Candidate(tenant, key, newest, fold.requests))

    def _raw_content(self, request: PastRequest) -> dict[str, Any]:
        return self._workspace.content_of(request.group)

    def _checked(self, candidate: Candidate) -> Candidate:
        tenant, newest = candidate.tenant, candidate.newest
        content = self._raw_content(newest)
        excluded = ""
        if tenant not in self._workspace.beginnings:
            excluded = (
                f"the tenant {tenant} has no stream any more, so that no one would see its events; "
                f"`rabbit2docker topology declare --tenant {tenant}` makes it"
            )
        else:
            try:
                if self._selection.same_commit:
                    pinned = pin(content["provider"], content["spec"], newest.outcome.ref, hosts={})
                    content["spec"] = pinned.resolved_spec
                checked(content)
            except (UnreadableRequest, RequestRejected) as error:
                excluded = f"cannot be read by this version: {error}"
        return Candidate(tenant, candidate.key, newest, candidate.requests, excluded, content)
