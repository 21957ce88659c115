"""Headers with which hosts limit requests: how many are left, and how long to wait."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

_LATEST_DELTA: Final = 1_000_000_000
"""Resets below are seconds from now; above, a time in seconds since 1970."""


def requests_left(headers: Mapping[str, str]) -> float | None:
    """Return the number of requests that are left; None if the host does not say."""
    return _number(_quota(headers, "Remaining"))


def seconds_until_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until all requests are left again; None if the host does not say."""
    reset = _number(_quota(headers, "Reset"))
    if reset is None:
        return None
    return max(1.0, reset - time.time() if reset > _LATEST_DELTA else reset)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in the header Retry-After, which may hold a date."""
    text = headers.get("Retry-After")
    if (seconds := _number(text)) is not None or not text:
        return seconds
    try:
        return max(1.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds for which a response asks, also one that has used up the last request; None otherwise."""
    if (wait := retry_after(headers)) is not None:
        return wait
    return seconds_until_reset(headers) if requests_left(headers) == 0 else None


def _quota(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header about the limit: GitHub and Zenodo call it X-RateLimit-…, GitLab RateLimit-…."""
    return headers.get(f"X-RateLimit-{name}") or headers.get(f"RateLimit-{name}")


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 16 else None
