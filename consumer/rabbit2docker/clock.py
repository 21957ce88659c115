"""The clock, in one place, so that tests can say what time it is."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the time now, with its zone."""
    return datetime.now(UTC)
