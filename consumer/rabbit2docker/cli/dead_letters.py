"""`dead-letters list|show|redrive|discard`."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from rabbit2docker.amqp.dead_letters import DeadLetter, DeadLetters, dead_letters
from rabbit2docker.cli.exits import Exit, explained, fail, out
from rabbit2docker.cli.texts import age
from rabbit2docker.settings import load_settings

app = typer.Typer(
    help="Messages that could not be carried out, kept for two weeks.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
T = TypeVar("T")

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Ids, or their beginnings, as `list` shows them."),
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _with_letters(work: Callable[[DeadLetters], Awaitable[T]]) -> T:
    async def go() -> T:
        async with dead_letters(load_settings().amqp) as letters:
            return await work(letters)

    with explained():
        return asyncio.run(go())


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "message": letter.message,
        "routing_key": letter.routing_key,
        "message_id": letter.message_id,
        "published_at": letter.published_at.isoformat() if letter.published_at else None,
        "body": letter.body.decode(errors="replace"),
    }


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List them, oldest first."""
    letters = _with_letters(DeadLetters.listed)
    if as_json:
        for letter in letters:
            typer.echo(json.dumps(_as_dict(letter)))
        return
    if not letters:
        out.print("There are no dead letters.")
        return
    table = Table("ID", "AGE", "REASON", "KEY", "WHY", box=None, pad_edge=False)
    for letter in letters:
        table.add_row(letter.id, age(letter.published_at), letter.reason, letter.routing_key, letter.message)
    out.print(table)


@app.command()
def show(id_: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show one with its body."""
    letters = [letter for letter in _with_letters(DeadLetters.listed) if letter.id.startswith(id_)]
    if not letters:
        fail(f"There is no dead letter {id_}. `rabbit2docker dead-letters list` shows all.", Exit.NOT_FOUND)
    for letter in letters:
        if as_json:
            typer.echo(json.dumps(_as_dict(letter)))
            continue
        for name, value in _as_dict(letter).items():
            out.print(f"{name}: {value}", markup=False)


def _wanted(ids: list[str] | None, everything: bool) -> Callable[[DeadLetter], bool]:
    if bool(ids) == everything:
        fail("Name the ids of dead letters, or give --all.", Exit.USAGE)
    return lambda letter: everything or letter.id.startswith(tuple(ids or ()))


def _tell(done: list[DeadLetter], what: str) -> None:
    for letter in done:
        out.print(f"{letter.id} {what}", markup=False)
    if not done:
        fail("No dead letter has such an id. `rabbit2docker dead-letters list` shows all.", Exit.NOT_FOUND)


@app.command()
def redrive(ids: Ids = None, everything: All = False) -> None:
    """Publish them again under the key they first had; they leave the dead letters once RabbitMQ has confirmed."""
    wanted = _wanted(ids, everything)
    _tell(_with_letters(lambda letters: letters.redrive(wanted)), "is published again")


@app.command()
def discard(
    ids: Ids = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Throw them away."""
    wanted = _wanted(ids, everything)
    if not yes:
        typer.confirm("Throw them away for good?", abort=True)
    _tell(_with_letters(lambda letters: letters.discard(wanted)), "is discarded")
