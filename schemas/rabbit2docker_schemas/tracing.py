"""The W3C trace context of a request, carried on so that spans of other programs can be joined."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

PARENT_HEADER: Final = "traceparent"
STATE_HEADER: Final = "tracestate"
MAX_STATE: Final = 512
"""Characters of a `tracestate`; a longer one is dropped, as the specification allows."""
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,100})?"
)
_STATE = re.compile(r"[ -~\t]+")


class Trace(BaseModel):
    """The span that a request belongs to."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    parent: str
    state: str = ""

    def headers(self) -> dict[str, str]:
        """Return the headers that carry it."""
        state = {STATE_HEADER: self.state} if self.state else {}
        return {PARENT_HEADER: self.parent, **state}

    def environment(self) -> dict[str, str]:
        """Return the variables that carry it to a program."""
        return {name.upper(): value for name, value in self.headers().items()}


def read_trace(headers: Mapping[str, Any]) -> Trace | None:
    """Return the trace context of a message, also in CloudEvents' `ce-traceparent`; None without a valid one."""
    for prefix in ("", "ce-"):
        parent, state = (_text(headers.get(prefix + name)) for name in (PARENT_HEADER, STATE_HEADER))
        if _PARENT.fullmatch(parent):
            is_valid = len(state) <= MAX_STATE and _STATE.fullmatch(state)
            return Trace(parent=parent, state=state if is_valid else "")
    return None


def _text(value: Any) -> str:
    match value:
        case bytes():
            return value.decode(errors="replace").strip()
        case str():
            return value.strip()
        case _:
            return ""
