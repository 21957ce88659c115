"""Progress and `log` events made from the builder's lines. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from rabbit2docker.consumer.executors.base import BuilderLine
from rabbit2docker_schemas.events import Log, LogLine, Phase, Progress, ProgressDetail

PHASE_MESSAGES: Final = {
    Phase.WAITING: "Waiting for the Docker engine",
    Phase.FETCHING: "Fetching the repository",
    Phase.BUILDING: "Building the image",
    Phase.PUSHING: "Pushing the image",
}
LINE_OVERHEAD_BYTES: Final = 80
"""Bytes that a line takes in a `log` event beside its text."""
# BuildKit's plain output: "#8 [2/5] RUN pip install …"; with stages "#8 [build 2/5] …".
_STEP = re.compile(r"^#\d+ \[(?:[\w.-]+ +)?(\d{1,6})/(\d{1,6})\] (.+)")


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """A progress event and the number of the line that it comes from, which makes its id."""

    data: Progress
    line: int


@dataclass(slots=True)
class ProgressReader:
    """Reads lines in order and reports phase changes, build steps and pushed layers."""

    build_id: str
    attempt: int
    phase: Phase | None = None
    _last_detail: tuple[object, ...] = field(default=())

    def read(self, lines: Iterable[BuilderLine]) -> list[ProgressUpdate]:
        """Return every change of phase and, of each phase's details, only the last among these lines."""
        updates: list[ProgressUpdate] = []
        latest: ProgressUpdate | None = None
        for line in lines:
            if line.phase is not self.phase:
                updates += [latest] if latest else []
                latest = None
                self.phase = line.phase
                updates.append(self._update(line, PHASE_MESSAGES[line.phase], ProgressDetail()))
            if detail := _detail_of(line):
                latest = self._update(line, *detail)
        if latest and (detail_of_phase := (latest.data.phase, latest.data.detail)) != self._last_detail:
            self._last_detail = detail_of_phase
            updates.append(latest)
        return updates

    def _update(self, line: BuilderLine, message: str, detail: ProgressDetail) -> ProgressUpdate:
        data = Progress(
            build_id=self.build_id,
            attempt=self.attempt,
            phase=line.phase,
            message=message,
            detail=detail,
            lines=line.n,
        )
        return ProgressUpdate(data, line.n)


def _detail_of(line: BuilderLine) -> tuple[str, ProgressDetail] | None:
    progress = line.progress or {}
    if "layers_total" in progress:
        done, total = progress.get("layers_done", 0), progress["layers_total"]
        return f"Pushed {done} of {total} layers", ProgressDetail(layers_done=done, layers_total=total)
    if line.phase is Phase.BUILDING and (match := _STEP.match(line.text)):
        # The engine does not count the steps that a base image adds by ONBUILD.
        step, steps = int(match[1]), max(int(match[1]), int(match[2]))
        return f"Step {step} of {steps}: {match[3][:200]}", ProgressDetail(step=step, steps=steps)
    return None


def as_log_events(build_id: str, attempt: int, lines: list[BuilderLine], *, max_bytes: int) -> Iterator[Log]:
    """Cut consecutive lines into `log` events of at most about `max_bytes` of text each."""
    start = size = 0
    for index, item in enumerate(lines):
        size += len(item.text) + LINE_OVERHEAD_BYTES
        if size >= max_bytes or index + 1 == len(lines):
            batch = [_log_line(line) for line in lines[start : index + 1]]
            yield Log.model_construct(build_id=build_id, attempt=attempt, n=lines[start].n, lines=batch)
            start, size = index + 1, 0


def _log_line(line: BuilderLine) -> LogLine:
    # Not validated: the executor read it from our own builder, and there are thousands a second.
    return LogLine.model_construct(phase=line.phase, text=line.text, ts=line.ts, clipped=line.clipped or None)


def last_of(texts: Iterable[str], *, max_bytes: int) -> tuple[str, ...]:
    """Return as many of the last lines as fit into `max_bytes`."""
    found: list[str] = []
    for text in reversed(list(texts)):
        max_bytes -= len(text.encode())
        if max_bytes < 0:
            break
        found.append(text)
    return tuple(reversed(found))
