"""The commands `dead-letters list`, `show`, `redrive` and `discard`."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.options import AsJson, parse_rate_option
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.amqp.dead_letters import DeadLetter, DeadLetters

app = typer.Typer(
    help="List, show, publish again or delete messages that could not be carried out. They are kept for two weeks.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
T = TypeVar("T")

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Ids, or their first characters, from `dead-letters list`."),
]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


def _run(work: "Callable[[DeadLetters], Awaitable[T]]") -> T:
    from rabbit2docker.amqp.dead_letters import dead_letters
    from rabbit2docker.cli.session import run
    from rabbit2docker.settings import load_settings

    async def connect_and_work() -> T:
        async with dead_letters(load_settings().amqp) as letters:
            return await work(letters)

    return run(connect_and_work)


def _all_letters() -> "list[DeadLetter]":
    return _run(lambda letters: letters.listed())


def _as_dict(letter: "DeadLetter") -> dict[str, Any]:
    from rabbit2docker.amqp.dead_letter_help import explain

    explanation = explain(letter.reason)
    return {
        "id": letter.id,
        "reason": letter.reason,
        "message": letter.message,
        "cause": explanation.cause,
        "action": explanation.action,
        "routing_key": letter.routing_key,
        "message_id": letter.message_id,
        "published_at": letter.published_at.isoformat() if letter.published_at else None,
        "undecodable": letter.undecodable,
        "unverified": letter.unverified,
        "body": letter.body.decode(errors="replace"),
    }


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the dead letters, oldest first."""
    letters = _all_letters()
    if as_json:
        for letter in letters:
            say(json.dumps(_as_dict(letter)))
    elif letters:
        _print_table(letters)
    else:
        say("There are no dead letters.")


def _print_table(letters: "list[DeadLetter]") -> None:
    from rich.table import Table

    from rabbit2docker.cli.console import out
    from rabbit2docker.cli.texts import age

    table = Table("ID", "AGE", "REASON", "KEY", "MESSAGE", box=None, pad_edge=False)
    for letter in letters:
        table.add_row(letter.id, age(letter.published_at), letter.reason, letter.routing_key, letter.message)
    out().print(table)
    _print_help(letters)


def _print_help(letters: "list[DeadLetter]") -> None:
    """Print what to do about each reason in the list."""
    from rabbit2docker.amqp.dead_letter_help import explain

    for reason in dict.fromkeys(letter.reason for letter in letters):
        explanation = explain(reason)
        say(f"\n{reason}: {explanation.cause}\n  {explanation.action}")


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id, or its first characters.")],
    as_json: AsJson = False,
) -> None:
    """Show a dead letter with its body."""
    letters = [letter for letter in _all_letters() if letter.id.startswith(id_)]
    if not letters:
        fail(
            f"No dead letter has the id {id_}. List them with `rabbit2docker dead-letters list`.",
            Exit.NOT_FOUND,
        )
    for letter in letters:
        if as_json:
            say(json.dumps(_as_dict(letter)))
            continue
        for name, value in _as_dict(letter).items():
            say(f"{name}: {value}")


def _selection(ids: list[str] | None, is_all: bool) -> "Callable[[DeadLetter], bool]":
    if bool(ids) == is_all:
        fail("Give the ids of dead letters, or --all.", Exit.USAGE)
    return lambda letter: is_all or letter.id.startswith(tuple(ids or ()))


def _report(letters: "list[DeadLetter]", outcome: "Callable[[DeadLetter], str]") -> None:
    for letter in letters:
        say(f"{letter.id} {outcome(letter)}")
    _report_none(letters)


def _report_none(letters: "list[DeadLetter]") -> None:
    if not letters:
        fail("No dead letter matches. List them with `rabbit2docker dead-letters list`.", Exit.NOT_FOUND)


@app.command()
def redrive(
    ids: Ids = None,
    is_all: All = False,
    unverified: Annotated[
        bool,
        typer.Option("--unverified", help="Also letters whose sender RabbitMQ cannot prove."),
    ] = False,
    rate: Annotated[
        str | None,
        typer.Option(metavar="NUMBER/UNIT", help="Letters per s, min or h: 20/min. Default: all at once."),
    ] = None,
) -> None:
    """Publish dead letters again under their original routing key.

    A message is removed from the dead letters once RabbitMQ has confirmed its copy. A forged one stays. With --rate, each
    letter is reported when it is published, and those that are left after a Ctrl-C stay dead letters.
    """
    is_selected = _selection(ids, is_all)
    reasons = partial(_why_kept, unverified=unverified)
    if rate is None:
        letters = _run(lambda letters: letters.redrive(is_selected, unverified=unverified))
        _report(letters, lambda letter: _redriven(reasons(letter)))
    else:
        seconds = parse_rate_option(rate, "--rate")
        letters = _redrive_at_rate(is_selected, seconds, unverified=unverified)
        _report_none(letters)
    if any(map(reasons, letters)):
        raise typer.Exit(Exit.FAILED)


def _why_kept(letter: "DeadLetter", *, unverified: bool) -> str:
    return letter.why_kept(unverified=unverified)


def _redriven(why_kept: str) -> str:
    return f"kept: {why_kept}" if why_kept else "published again"


def _redrive_at_rate(
    is_selected: "Callable[[DeadLetter], bool]", seconds: float, *, unverified: bool
) -> "list[DeadLetter]":
    """Publish the selected letters again, one in so many seconds, and report each; return them."""
    from rabbit2docker.amqp.dead_letters import dead_letters, redrive_one_by_one
    from rabbit2docker.cli.session import run
    from rabbit2docker.replay.publication import Pace
    from rabbit2docker.settings import load_settings

    async def redrive_all() -> "list[DeadLetter]":
        done = []
        open_letters = partial(dead_letters, load_settings().amqp)
        wait = Pace(seconds).wait
        async for letter in redrive_one_by_one(open_letters, is_selected, wait, unverified=unverified):
            say(f"{letter.id} {_redriven(letter.why_kept(unverified=unverified))}")
            done.append(letter)
        return done

    return run(redrive_all)


@app.command()
def discard(
    ids: Ids = None,
    is_all: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete dead letters for good."""
    is_selected = _selection(ids, is_all)
    if not yes:
        typer.confirm("Delete them for good?", abort=True)
    _report(_run(lambda letters: letters.discard(is_selected)), lambda _: "deleted")
