"""Texts of requesters on an operator's terminal."""

import io
import json

import pytest

from rabbit2docker.amqp.dead_letters import DeadLetter
from rabbit2docker.cli import console, dead_letters, history
from rabbit2docker.cli.output import printable, say
from rabbit2docker.cli.overview import as_table, rows
from rabbit2docker.cli.rendering import JsonView, PlainView, RichView
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Log, LogLine, Phase, Progress, Rejected
from rabbit2docker_schemas.ids import EventId
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.records import NOW

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b1A\r\u202egpj.exe\x7f"
STEERING = ("\x1b]", "\x1b[2J", "\x9b", "\r", "\u202e", "\x7f", "\x07")


def assert_harmless(shown: str) -> None:
    assert "owned" in shown
    assert [character for character in STEERING if character in shown] == []


def test_control_characters_are_shown_as_escapes_and_other_text_is_unchanged() -> None:
    assert printable("\x1b[2J") == r"\u001b[2J"
    assert printable("Grüße, 世界\tand\nlines") == "Grüße, 世界\tand\nlines"
    assert_harmless(printable(HOSTILE))


def test_colours_are_kept_where_a_log_may_have_them() -> None:
    assert printable("\x1b[1;31mred\x1b[0m\x1b[2J", colours=True) == "\x1b[1;31mred\x1b[0m" + r"\u001b[2J"


def test_encoded_json_keeps_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    say(json.dumps({"text": HOSTILE}, ensure_ascii=False))
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert json.loads(shown) == {"text": HOSTILE}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Yield what a console prints to a terminal without colours."""
    screen = io.StringIO()
    made = console._Console(file=screen, width=400, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(console, "out", lambda: made)
    return screen


LETTER = DeadLetter("letter-1", "invalid_request", HOSTILE, HOSTILE, HOSTILE, NOW, HOSTILE.encode(), {})


def test_the_table_of_dead_letters_cannot_steer_the_terminal(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_all_letters", lambda: [LETTER])
    dead_letters.list_()
    assert_harmless(terminal.getvalue())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dead_letter_cannot_steer_the_terminal(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dead_letters, "_all_letters", lambda: [LETTER])
    dead_letters.show("letter", as_json)
    assert_harmless(capsys.readouterr().out)


def events() -> list[Event]:
    """Return events with hostile words wherever these are not the service's own."""
    lines = [LogLine(ts=NOW, phase=Phase.BUILDING, text=HOSTILE)]
    data: list[Progress | Log | Rejected] = [
        Progress(build_id="b", attempt=1, phase=Phase.BUILDING, message=HOSTILE),
        Log(build_id="b", attempt=1, n=0, lines=lines),
        Rejected(request_id="r", reason=RejectReason.INVALID_SPEC, message=HOSTILE, retryable=False),
    ]
    return [Event(EventId(str(number)), "default", NOW, one) for number, one in enumerate(data)]


def test_the_table_of_builds_cannot_steer_the_terminal(terminal: io.StringIO) -> None:
    console.out().print(as_table(rows(events()), 400))
    assert_harmless(terminal.getvalue())


def test_the_state_of_a_build_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for row in rows(events()):
        history._print_status(row)
    assert_harmless(capsys.readouterr().out)


def test_a_live_view_shows_no_sequences_but_its_own(terminal: io.StringIO) -> None:
    view = RichView(console.out())
    progress, log, rejected = events()
    with view:
        view.show(log)
        view.show(rejected)
        view.show(progress)
        view._progress.refresh()
    shown = terminal.getvalue()
    assert shown.count("owned") >= 3
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_lines_in_a_pipe_cannot_steer_the_terminal_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    for view in (PlainView(), JsonView()):
        with view:
            for event in events():
                view.show(event)
        assert_harmless(capsys.readouterr().out)
