"""Times and sizes as text, and durations from text."""

from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.cli.texts import age, parse_duration, seconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("24h", 86400), ("7d", 604800), ("1w", 604800)],
)
def test_durations_are_parsed(text: str, expected: int) -> None:
    assert parse_duration(text) == timedelta(seconds=expected)


@pytest.mark.parametrize("text", ["", "5", "soon", "-1h", "1.5h", "h"])
def test_a_malformed_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ""), (0.26, "0.3s"), (59.6, "1m00s"), (65, "1m05s"), (3700, "1h01m")]
)
def test_seconds_are_shown_in_fitting_units(value: float | None, expected: str) -> None:
    assert seconds(value) == expected


def test_ages_and_sizes_are_shown_in_fitting_units() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert [age(now - timedelta(seconds=past), now) for past in (5, 300, 7200, 90_000)] == [
        "5s",
        "5m",
        "2h",
        "1d",
    ]
    assert [size(value) for value in (None, 999, 2_026_557, 3_100_000_000)] == [
        "",
        "999 B",
        "2.0 MB",
        "3.1 GB",
    ]
