"""Recent events in memory, by build, so that a reader who joins a build does not read the tenant's stream. No I/O.

RabbitMQ filters a stream in chunks, and a chunk holds events of all builds that go on at the time: reading one build
from there costs as much as reading all. These events are kept as they came, and parsed again for those who join.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from sys import intern
from typing import Final

from rabbit2docker.client.build_index import begins_anew, is_last
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import MODEL_OF, Kind
from rabbit2docker_schemas.ids import EventId
from rabbit2docker_schemas.tracing import Trace

PACKED_BYTES: Final = 400
"""Approximate memory of a packed event beside its body."""
BUILD_BYTES: Final = 1000
"""Approximate memory of a build beside its events."""
TAIL_SECONDS: Final = 10.0
"""Events younger than this may not be in the stream yet, and are kept whatever happens to the rest of their build."""
SHRINK_TO: Final = 0.9
"""Share of the limit that is left once it was exceeded: sorting by weight is for many events, not for each."""


@dataclass(frozen=True, slots=True)
class PackedEvent:
    """An event as it came."""

    arrived: float
    id: EventId
    tenant: str
    time: datetime
    kind: Kind
    source: str
    trace: Trace | None
    body: bytes

    @property
    def weight(self) -> int:
        """Approximate memory in bytes."""
        return PACKED_BYTES + len(self.body)

    def unpack(self) -> Event:
        """Return the event."""
        data = MODEL_OF[self.kind].model_validate_json(self.body)
        return Event(self.id, self.tenant, self.time, data, self.source, self.trace)


@dataclass(slots=True)
class _RecentBuild:
    """The events of one build, of the newest of its generations."""

    key: str
    dropped_at: float
    """Arrival of the newest event that is no longer here, or may not be."""
    events: deque[PackedEvent] = field(default_factory=deque)
    weight: int = BUILD_BYTES
    arrived: float = 0.0
    """Arrival of the newest event."""
    has_ended: bool = False
    is_cut: bool = False

    def append(self, event: PackedEvent) -> None:
        self.events.append(event)
        self.weight += event.weight
        self.arrived = event.arrived

    def drop_until(self, moment: float) -> int:
        """Drop the events that arrived before `moment`; return their weight."""
        before = self.weight
        while self.events and self.events[0].arrived < moment:
            self._drop_oldest()
        return before - self.weight

    def drop_to(self, weight: int) -> int:
        """Drop the oldest events until the rest weighs at most this; return the weight of what was dropped."""
        before = self.weight
        while self.events and self.weight > weight:
            self._drop_oldest()
        return before - self.weight

    def _drop_oldest(self) -> None:
        oldest = self.events.popleft()
        self.weight -= oldest.weight
        self.dropped_at, self.is_cut = oldest.arrived, True


class RecentEvents:
    """Recent events by build, and for each build the time since which they are complete.

    When there is too much, builds that have ended long ago go first, and then the past of the largest ones.
    """

    def __init__(self, *, limit: int) -> None:
        """Hold at most about `limit` bytes; with 0 nothing is held and no build is covered."""
        self._limit = limit
        self._builds: dict[str, _RecentBuild] = {}
        self._ended: dict[str, None] = {}
        """In the order of their ends."""
        self._weight = 0
        self._gap_at = float("inf")
        self._forgotten_at = 0.0
        """Arrival of the newest event of all builds of which nothing is left."""

    def add(self, event: Event, body: bytes, now: float) -> None:
        """Add an event that arrived now, a time of the event loop; `body` is that of its message."""
        if not self._limit:
            return
        key = event.stream_filter
        build = self._build_of(key, event)
        before = build.weight
        build.append(_pack(event, body, now))
        if build.is_cut:
            build.drop_until(now - TAIL_SECONDS)
        self._weight += build.weight - before
        self._note_end(key, event, build)
        if self._weight > self._limit:
            self._shrink(int(self._limit * SHRINK_TO), now - TAIL_SECONDS)

    def _build_of(self, key: str, event: Event) -> _RecentBuild:
        """Return the build that an event belongs to, a new one if the event begins another generation."""
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = _RecentBuild(key, self._forgotten_at)
            self._weight += build.weight
        elif build.has_ended and begins_anew(event) and all(event.id != held.id for held in build.events):
            self._weight -= build.weight
            build = self._builds[key] = _RecentBuild(key, build.arrived)
            self._weight += build.weight
        return build

    def _note_end(self, key: str, event: Event, build: _RecentBuild) -> None:
        build.has_ended = build.has_ended or event.is_terminal
        if build.has_ended or is_last(event):
            self._ended.setdefault(key)
        else:
            self._ended.pop(key, None)

    def _shrink(self, target: int, tail: float) -> None:
        for key in list(self._ended):
            if self._weight <= target:
                return
            if self._builds[key].arrived < tail:
                self._forget(key)
        share = target // max(1, len(self._builds))
        for build in sorted(self._builds.values(), key=attrgetter("weight"), reverse=True):
            if self._weight <= target:
                return
            self._weight -= build.drop_until(tail)
            if self._weight > target:
                self._weight -= build.drop_to(share)
            if not build.events:
                self._forget(build.key)

    def _forget(self, key: str) -> None:
        build = self._builds.pop(key)
        self._ended.pop(key, None)
        self._weight -= build.weight
        self._forgotten_at = max(self._forgotten_at, build.arrived)

    def mark_gap_possible(self, now: float) -> None:
        """Record that events may have been missed until now."""
        if not self._limit:
            return
        self._gap_at = now
        for build in list(self._builds.values()):
            self._weight -= build.drop_until(now - TAIL_SECONDS)
            if not build.events:
                self._forget(build.key)

    def is_complete_since(self, build_id: str, moment: float) -> bool:
        """Return whether every event of a build that arrived at `moment` or later is here."""
        build = self._builds.get(build_id)
        return moment > max(self._gap_at, self._forgotten_at if build is None else build.dropped_at)

    def of_build(self, build_id: str, since: float) -> Iterator[Event]:
        """Return the events of a build so far that arrived at `since` or later; each is parsed when it is asked for."""
        build = self._builds.get(build_id)
        held = [] if build is None else [event for event in build.events if event.arrived >= since]
        return (event.unpack() for event in held)

    def arrival_of(self, event: Event) -> float | None:
        """Return when this very event arrived; None if it is not here. A repetition has another time."""
        build = self._builds.get(event.stream_filter)
        for held in () if build is None else build.events:
            if held.id == event.id and held.time == event.time:
                return held.arrived
        return None


def _pack(event: Event, body: bytes, now: float) -> PackedEvent:
    tenant, source = intern(event.tenant), intern(event.source)
    return PackedEvent(now, event.id, tenant, event.time, event.kind, source, event.trace, body)


class RecentBuild:
    """The recent events of one build, if they are all there from its beginning."""

    def __init__(self, recent: RecentEvents, build_id: str, since: float | None) -> None:
        """Take the build's id, and a time of the event loop that is no later than its first event, if one is known."""
        self._recent = recent
        self._build_id = build_id
        self._since = since

    def events(self) -> Iterator[Event] | None:
        """Return all events so far; None if some may be missing."""
        if self._since is None or not self._recent.is_complete_since(self._build_id, self._since):
            return None
        return self._recent.of_build(self._build_id, self._since)

    def events_from(self, begin: Event) -> Iterator[Event] | None:
        """Return the same for a build that this event begins."""
        self._since = self._recent.arrival_of(begin)
        return self.events()

    def newest(self, now: float) -> Iterator[Event]:
        """Return the events that the stream may not have yet."""
        return self._recent.of_build(self._build_id, now - TAIL_SECONDS)
