"""The commands `dead-letters list`, `show`, `redrive` and `discard`."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.options import AsJson
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
    return {
        "id": letter.id,
        "reason": letter.reason,
        "message": letter.message,
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
) -> None:
    """Publish dead letters again under their original routing key.

    A message is removed from the dead letters once RabbitMQ has confirmed its copy. A forged one stays.
    """
    is_selected = _selection(ids, is_all)
    letters = _run(lambda letters: letters.redrive(is_selected, unverified=unverified))
    kept = {letter.id: why for letter in letters if (why := letter.why_kept(unverified=unverified))}
    _report(letters, lambda letter: f"kept: {kept[letter.id]}" if letter.id in kept else "published again")
    if kept:
        raise typer.Exit(Exit.FAILED)


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
