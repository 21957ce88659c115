"""Pure: the rule by which a reader gets each event and each log line once, from any mixture of sources."""

from dataclasses import replace

from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Gap, Log
from rabbit2docker_schemas.ids import EventId, lines_event_id


class Merged:
    """Takes events in the order they come, with repetitions and overlaps, and gives what is new."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: set[EventId] = set()
        self._highest: dict[tuple[str, int], int] = {}

    def take(self, event: Event) -> list[Event]:
        """Return what is new of this event: nothing, it, or its new lines, perhaps after a gap that nobody told."""
        match event.data:
            case Log() as log:
                return self._lines(event, log)
            case Gap() as gap:
                return self._gap(event, gap)
            case _:
                return self._once(event)

    def _once(self, event: Event) -> list[Event]:
        if event.id in self._seen:
            return []
        self._seen.add(event.id)
        return [event]

    def _lines(self, event: Event, log: Log) -> list[Event]:
        key = (log.build_id, log.attempt)
        highest = self._highest.get(key, -1)
        last = log.n + len(log.lines) - 1
        if last <= highest:
            return []
        self._highest[key] = last
        if log.n > highest + 1:
            return [self._untold_gap(event, log, highest + 1), event]
        known = highest + 1 - log.n
        if not known:
            return [event]
        rest = log.model_copy(update={"n": highest + 1, "lines": log.lines[known:]})
        new_id = lines_event_id(log.build_id, log.attempt, rest.n, last, rest.kind)
        return [replace(event, id=new_id, data=rest)]

    @staticmethod
    def _untold_gap(event: Event, log: Log, first: int) -> Event:
        gap = Gap(
            build_id=log.build_id,
            attempt=log.attempt,
            first=first,
            last=log.n - 1,
            message="These lines did not reach this reader.",
        )
        return replace(
            event, id=lines_event_id(log.build_id, log.attempt, first, log.n - 1, gap.kind), data=gap
        )

    def _gap(self, event: Event, gap: Gap) -> list[Event]:
        key = (gap.build_id, gap.attempt)
        highest = self._highest.get(key, -1)
        if gap.last <= highest:
            return []
        self._highest[key] = gap.last
        return [replace(event, data=gap.model_copy(update={"first": max(gap.first, highest + 1)}))]
