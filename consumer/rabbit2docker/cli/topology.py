"""`topology declare|check|export`."""

import asyncio
import json
from typing import Annotated

import typer

from rabbit2docker.amqp.declare import check as check_topology
from rabbit2docker.amqp.declare import declare as declare_topology
from rabbit2docker.amqp.declare import vhost_of
from rabbit2docker.amqp.topology import as_definitions, make_topology
from rabbit2docker.cli.exits import Exit, err, explained, out
from rabbit2docker.settings import Settings, load_settings

app = typer.Typer(
    help="Exchanges, queues, streams and policies in RabbitMQ.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Tenants = Annotated[
    list[str] | None,
    typer.Option("--tenant", help="A tenant that gets a stream; repeatable. Default: RABBIT2DOCKER_TENANTS."),
]


def _settings(tenants: list[str] | None) -> Settings:
    settings = load_settings()
    return settings.model_copy(update={"tenants": tenants}) if tenants else settings


@app.command()
def declare(tenant: Tenants = None) -> None:
    """Make what is missing; change nothing that exists, except policies.

    Policies need RABBIT2DOCKER_AMQP__MANAGEMENT_URL.
    """
    with explained():
        for line in asyncio.run(declare_topology(_settings(tenant))):
            out.print(line, markup=False)


@app.command()
def check(tenant: Tenants = None) -> None:
    """Compare what is there with what should be; exit 1 when something is missing or differs."""
    with explained():
        problems = asyncio.run(check_topology(_settings(tenant)))
    for problem in problems:
        out.print(problem, markup=False)
    if problems:
        err.print("`rabbit2docker topology declare` makes what is missing.")
        raise typer.Exit(Exit.FAILED)
    out.print("The topology is as it should be.")


@app.command()
def export(tenant: Tenants = None) -> None:
    """Print everything as RabbitMQ definitions, with users and their permissions. Connects to nothing.

    Import them with `rabbitmqctl import_definitions`. The users have no password: set one with
    `rabbitmqctl change_password` before they can log in.
    """
    with explained():
        settings = _settings(tenant)
        definitions = as_definitions(make_topology(settings.tenants), vhost=vhost_of(settings.amqp))
    typer.echo(json.dumps(definitions, indent=2))
