"""The texts of a replay for people."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from rabbit2docker.cli.replay_views import TextReplayView
from rabbit2docker.replay.following import FollowedRequest
from rabbit2docker.replay.plan import Candidate, Totals
from rabbit2docker.replay.publication import Published, ReplayHeader, new_replay_id
from rabbit2docker.replay.reading import LogReport
from rabbit2docker.replay.selection import Outcome, OutcomeKind, PastRequest, Selection

NOW = datetime.now(UTC)
HEADER = ReplayHeader(
    replay=new_replay_id(NOW),
    selection=Selection(since=NOW - timedelta(days=1), until=NOW),
    force=True,
)


def candidate(name: str, *, excluded: str = "") -> Candidate:
    outcome = Outcome(OutcomeKind.COMPLETED, repo2docker="2025.1")
    newest = PastRequest("alpha", name, NOW.timestamp() - 7200, "", "", b"", outcome)
    return Candidate("alpha", b"", newest, 3, excluded, {"provider": "gh", "spec": f"o/{name}\x1b[2J/HEAD"})


def test_the_plan_has_rows_numbers_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    view, totals = TextReplayView(HEADER, limit=1), Totals()
    for one in (candidate("a"), candidate("b"), candidate("c", excluded="has not ended yet")):
        view.plan(one)
        totals.add(one)
    report = LogReport(requests=9, unreadable=Counter({"the body is not JSON": 2}), oldest=NOW)
    view.summary(totals, report, seconds_between=3.0, is_published=False)
    shown = capsys.readouterr().out
    assert "gh o/a\\u001b[2J/HEAD" in shown
    for text in (
        "… and 1 more; `--limit` lists more of them.",
        "9 requests read from the log",
        "2 builds for 6 requests, without the engine's cache even if the image exists. Equal ones are built once.",
        "1 left out: has not ended yet.",
        "2 unreadable in the log: the body is not JSON.",
        "Nothing is published yet: `--yes` does that, within 6.0s at this rate.",
    ):
        assert text in shown


def test_publishing_says_how_to_resume_and_what_was_published_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = TextReplayView(HEADER, limit=1)
    view.begin(2)
    view.published(Published(candidate("a"), "id-a", is_new=True))
    view.published(Published(candidate("b"), "id-b", is_new=False))
    view.end_of_publication()
    shown = capsys.readouterr()
    assert f"Replay {HEADER.replay}" in shown.err
    assert "1 requests published. 1 had been published before." in shown.out


def test_the_ends_are_counted_by_tenant_and_those_without_an_image_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = TextReplayView(HEADER, limit=1)
    view.ends(
        [
            FollowedRequest("alpha", "one", "a", "gh o/a", "completed", "", "i:1", "sha256:1"),
            FollowedRequest("alpha", "two", "b", "gh o/b", "failed", "disk_full", "", ""),
            FollowedRequest("beta", "three", "c", "gh o/c", "rejected", "internal: A defect.", "", ""),
        ]
    )
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["alpha", "1", "1", "0", "0"] in shown
    assert ["beta", "0", "0", "1", "0"] in shown
    assert ["alpha", "two", "gh", "o/b", "failed:", "disk_full"] in shown
    assert ["beta", "three", "gh", "o/c", "rejected:", "internal:", "A", "defect."] in shown
