"""`run`: the consumer."""

import asyncio
from typing import Annotated, Any

import typer

from rabbit2docker import logs
from rabbit2docker.cli.exits import explained
from rabbit2docker.settings import ExecutorKind, load_settings


def run(
    executor: Annotated[
        ExecutorKind | None,
        typer.Option(help="Where builds run. Default: RABBIT2DOCKER_EXECUTOR, else local."),
    ] = None,
    declare: Annotated[
        bool | None,
        typer.Option(
            "--declare/--no-declare",
            help="Declare exchanges and queues at start, where the user may. Default: RABBIT2DOCKER_AMQP__DECLARE, else yes.",
        ),
    ] = None,
) -> None:
    """Take build requests from RabbitMQ and carry them out, until SIGTERM or Ctrl-C.

    It waits for RabbitMQ and for whatever else is away. When it is stopped, or killed, builds run on: the next start
    adopts them. Health, readiness and metrics are served at RABBIT2DOCKER_HTTP__BIND.
    """
    given: dict[str, Any] = {} if executor is None else {"executor": executor}
    with explained():
        from rabbit2docker.consumer.service import run as run_service

        settings = load_settings(**given)
        if declare is not None:
            amqp = settings.amqp.model_copy(update={"declare": declare})
            settings = settings.model_copy(update={"amqp": amqp})
        logs.configure(settings.log)
        asyncio.run(run_service(settings))


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Service")(run)
