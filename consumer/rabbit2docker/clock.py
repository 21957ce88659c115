"""The clock, in one place, so that tests can set the time."""

from datetime import UTC, datetime


def as_utc(moment: datetime) -> datetime:
    """Return a moment with its time zone; one without is in UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def utc_now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)
