"""The builder's line format, as every executor reads it."""

import json
from typing import Any, Final

from rabbit2docker.executors.base import BuilderLine
from rabbit2docker_schemas.events import Phase

_PHASES: Final[dict[str, Phase]] = {phase.value: phase for phase in Phase}


def parse_line(data: bytes) -> BuilderLine | None:
    """Return the line, or None for what the builder did not write."""
    try:
        line: dict[str, Any] = json.loads(data)
        return BuilderLine(
            n=int(line["n"]),
            ts=str(line["ts"]),
            phase=_PHASES.get(line["phase"], Phase.BUILDING),
            text=str(line["text"]),
            progress=line.get("progress"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
