"""The command line: its commands, and the exit codes of usage errors."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rabbit2docker.cli import (
    build,
    check_registry,
    check_repository,
    dead_letters,
    engine,
    history,
    images,
    information,
    migrate,
    prebuild,
    replay,
    service,
    store,
    topology,
)
from rabbit2docker.cli.exits import EXIT_HELP, Exit
from rabbit2docker.cli.output import say

_SHORT_HELP = 200
"""Characters of a command's first sentence in the list of commands, which has room for several lines."""


class GroupedCommands(TyperGroup):
    """Lists commands under the heading of their panel, in plain text: rich costs more time than all the rest."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(str(command.rich_help_panel), []).append(
                (name, command.get_short_help_str(_SHORT_HELP))
            )
        for panel, entries in panels.items():
            with formatter.section(panel):
                formatter.write_dl(entries)


app = typer.Typer(
    name="rabbit2docker",
    cls=GroupedCommands,
    help=(
        "Builds container images from repositories. Requests arrive through RabbitMQ, repo2docker builds the images, "
        "and progress, logs and results are published as events.\n\n"
        "Start a consumer with `rabbit2docker run`. Request a build with `rabbit2docker build https://…` or "
        "`rabbit2docker build gh owner/repository/HEAD`.\n\n"
        "Settings are environment variables; `rabbit2docker settings` lists them."
    ),
    epilog=EXIT_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        say(f"rabbit2docker {version('rabbit2docker')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


service.add_to(app)
build.add_to(app)
history.add_to(app)
prebuild.add_to(app)
images.add_to(app)
replay.add_to(app)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel="RabbitMQ")
app.add_typer(topology.app, name="topology", rich_help_panel="RabbitMQ")
checks = typer.Typer(no_args_is_help=True, help="Explain step by step whether what was set up works.")
check_registry.add_to(checks)
check_repository.add_to(checks)
app.add_typer(checks, name="check", rich_help_panel="Services")
app.add_typer(engine.app, name="engine", rich_help_panel="Services")
app.add_typer(store.app, name="store", rich_help_panel="Services")
migrate.add_to(app)
information.add_to(app)

# typer may bundle its own click, so the base class of usage errors is taken from one of typer's.
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
        # The reader of a pipe such as `rabbit2docker logs ID | head` has left, which is not an error.
        sys.stderr.close()
        code = 0
    sys.exit(int(code) if isinstance(code, int) else 0)
