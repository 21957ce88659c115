"""The command `migrate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.migration.files import Migration
    from rabbit2docker.migration.translation import Note

_EXITS = "Exit codes: 0 translated · 1 with --strict: something is left out · 64 a file cannot be read, or has no such section."


def migrate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="VALUES.YAML",
            help="Values of binderhub-service or BinderHub; several files as for helm, the last one wins. `-` reads "
            "standard input.",
        ),
    ],
    section: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Section of a parent chart, such as basehub.binderhub-service. Default: it is found, or is the whole file.",
        ),
    ] = None,
    image: Annotated[str, typer.Option(help="Image of rabbit2docker, without its tag.")] = "",
    amqp_secret: Annotated[str, typer.Option(help="Name of the Secret with RabbitMQ's URL.")] = "rabbitmq",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything is left out.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print values and remarks as one JSON object.")
    ] = False,
) -> None:
    """Translate the values of binderhub-service into those of the chart rabbit2docker.

    The values are printed on standard output. Standard error says what is left out and why, what works in another way,
    and which Secrets to create. Secrets are never printed: the new values refer to Secrets by name. Names of images stay,
    so images in the registry are found. Nothing is changed, here or in a cluster.

    Examples:

    \b
        helm get values binderhub-service > old.yaml
        rabbit2docker migrate old.yaml --image registry.example.org/rabbit2docker > values.yaml
        rabbit2docker migrate common.values.yaml staging.values.yaml --section binderhub-service --strict
    """
    from rabbit2docker.errors import ConfigurationError
    from rabbit2docker.migration.files import migrate as translate

    texts = [(name, _read(name)) for name in files]
    try:
        found = translate(texts, section, image=image, amqp_secret=amqp_secret)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)
    if as_json:
        _print_json(found)
    else:
        say(found.text().rstrip())
        _report(found)
    if strict and found.translation.left_out:
        raise typer.Exit(Exit.FAILED)


def _read(name: str) -> str:
    import sys
    from pathlib import Path

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode()
    except OSError as error:
        fail(f"{name} cannot be read: {error.strerror or error}.", Exit.USAGE)
    except UnicodeDecodeError:
        fail(f"{name} is not UTF-8.", Exit.USAGE)


def _print_json(found: "Migration") -> None:
    import json
    from dataclasses import asdict

    translation = found.translation
    say(
        json.dumps(
            {
                "section": ".".join(found.section),
                "values": found.values,
                "secrets": [asdict(secret) for secret in translation.secrets.values()],
                "changed": [asdict(note) for note in translation.changed],
                "left_out": [asdict(note) for note in translation.left_out],
            }
        )
    )


def _report(found: "Migration") -> None:
    translation = found.translation
    where = f"the section {'.'.join(found.section)}" if found.section else "the whole file"
    say(f"\nTranslated {where}. Names of images stay: {_prefix(found)}", err=True)
    say("\nCreate these Secrets in the namespace of the release:", err=True)
    for secret in translation.secrets.values():
        origin = f", with what is in {', '.join(secret.sources)}" if secret.sources else ""
        say(f"  {secret.name} for {secret.value}{origin}\n    {secret.command}", err=True)
    _print_notes("Decide or check:", translation.changed)
    _print_notes("Left out:", translation.left_out)


def _prefix(found: "Migration") -> str:
    prefix = found.translation.values["config"].get("images", {}).get("prefix")
    return f"they begin with {prefix} as before." if prefix else "set config.images.prefix to the old prefix."


def _print_notes(title: str, notes: "list[Note]") -> None:
    if notes:
        say(f"\n{title}", err=True)
    for note in notes:
        say(f"  {note.path}: {note.text}", err=True)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Services", epilog=_EXITS)(migrate)
