"""Assembles the commands."""

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from rabbit2docker.cli import builds, dead_letters, hub, information, service, topology
from rabbit2docker.cli.exits import EXIT_HELP, Exit, err

app = typer.Typer(
    name="rabbit2docker",
    help=(
        "Builds container images from repositories: requests come through RabbitMQ, repo2docker builds, and "
        "progress, logs and results go back as events.\n\n"
        "Start a consumer with `rabbit2docker run`, ask for a build with `rabbit2docker build gh owner/repository/HEAD` "
        "or `rabbit2docker build https://…`. Settings are environment variables; `rabbit2docker settings` lists them."
    ),
    epilog=EXIT_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rabbit2docker {version('rabbit2docker')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Nothing to do before a command."""


service.add_to(app)
hub.add_to(app)
builds.add_to(app)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(topology.app, name="topology")
information.add_to(app)

# Typer may carry a click of its own: what its errors have in common is found by way of one that it shows.
_UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line and exit."""
    try:
        code = app(standalone_mode=False)
    except _UsageProblem as error:
        error.show()
        code = Exit.USAGE
    except (typer.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # `rabbit2docker logs ID | head`: nobody reads on, which is no error of ours.
        sys.stderr.close()
        code = 0
    sys.exit(int(code) if isinstance(code, int) else 0)


__all__ = ["app", "err", "main"]
