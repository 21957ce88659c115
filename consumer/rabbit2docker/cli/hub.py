"""`hub`: the service for a JupyterHub."""

import asyncio
from typing import Annotated, Any

import typer

from rabbit2docker import logs
from rabbit2docker.cli.exits import explained
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import HubAuth, load_settings


def hub(
    auth: Annotated[
        HubAuth | None,
        typer.Option(help="Who may ask. Default: RABBIT2DOCKER_HUB__AUTH, else users of the JupyterHub."),
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Default: what JupyterHub says, else 127.0.0.1:8585."),
    ] = None,
) -> None:
    """Serve builds to a JupyterHub, in BinderHub's own words, until SIGTERM or Ctrl-C.

    Started by JupyterHub as a service it needs no settings but RabbitMQ's address. It builds nothing itself:
    `rabbit2docker run` does. When it is stopped, builds run on, and viewers who come back go on where they were.
    """
    with explained():
        settings = load_settings()
        given: dict[str, Any] = {"auth": auth, "bind": bind}
        changed = {name: value for name, value in given.items() if value is not None}
        settings = settings.model_copy(update={"hub": settings.hub.model_copy(update=changed)})
        logs.configure(settings.log)
        try:
            from rabbit2docker.hub.service import run
        except ImportError as error:
            raise ConfigurationError(
                f"The service for a JupyterHub needs {error.name}: pip install 'rabbit2docker[hub]'."
            ) from error
        asyncio.run(run(settings))


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Service")(hub)
