"""Times and sizes as text, and durations from text."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"^(?:\d+[smhdw])+$")
_RATE: Final = re.compile(r"^(\d+(?:\.\d+)?)/(s|min|h)$")
_STEPS: Final = (("d", 86400), ("h", 3600), ("m", 60))


def parse_duration(text: str) -> timedelta:
    """Parse `90s`, `30m`, `1h30m` or `7d`. Raises ValueError."""
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is not a duration; write 90s, 30m, 1h30m, 24h or 7d")
    return timedelta(seconds=sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhdw])", text)))


def parse_rate(text: str) -> float:
    """Parse `20/min`, `5/s` or `100/h` and return the seconds between two. Raises ValueError."""
    found = _RATE.match(text)
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is not a rate; write 20/min, 5/s or 100/h")
    return {"s": 1, "min": 60, "h": 3600}[found[2]] / float(found[1])


def seconds(value: float | None) -> str:
    """Return a length of time such as `1m05s`; empty for None."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """Return the time since `moment` in its largest unit; empty for None."""
    if moment is None:
        return ""
    past = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for unit, length in _STEPS:
        if past >= length:
            return f"{int(past // length)}{unit}"
    return f"{int(past)}s"


def size(value: int | None) -> str:
    """Return a number of bytes in a fitting unit; empty for None."""
    if value is None:
        return ""
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
