"""The commands `topology declare`, `check`, `export` and `release`."""

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import Exit, errors_explained
from rabbit2docker.cli.output import say
from rabbit2docker.settings.constants import DEFAULT_TENANTS, DEFAULT_VHOST, is_configured

if TYPE_CHECKING:
    from rabbit2docker.settings import Settings, TopologySettings

app = typer.Typer(
    help="Declare, check or export exchanges, queues, streams and bindings of RabbitMQ.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Tenants = Annotated[
    list[str] | None,
    typer.Option(
        "--tenant",
        help="Tenant to give an exchange and a stream; repeatable. Default: RABBIT2DOCKER_TENANTS.",
    ),
]


def _settings(tenants: list[str] | None) -> "Settings":
    from rabbit2docker.settings import load_settings

    settings = load_settings()
    return settings.model_copy(update={"tenants": tenants}) if tenants else settings


@app.command()
def declare(tenant: Tenants = None) -> None:
    """Create what is missing. What exists is left as it is; limits that differ from the settings are listed.

    Policies are never created or changed.
    """
    from rabbit2docker.amqp.declare import declare as declare_topology
    from rabbit2docker.cli.session import run

    with errors_explained():
        settings = _settings(tenant)
    differences = run(lambda: declare_topology(settings))
    for difference in differences:
        say(str(difference))
    say("All exchanges, queues, streams and bindings exist.")


@app.command()
def check(tenant: Tenants = None) -> None:
    """Compare RabbitMQ with the required topology; exit with 1 if something is missing or differs.

    Bindings and policies are compared only with RABBIT2DOCKER_AMQP__MANAGEMENT_URL.
    """
    from rabbit2docker.amqp.declare import check as check_topology
    from rabbit2docker.cli.session import run

    with errors_explained():
        settings = _settings(tenant)
    report = run(lambda: check_topology(settings))
    for problem in report.problems:
        say(problem)
    for note in report.notes:
        say(f"note: {note}")
    if report.problems:
        say("Create what is missing with `rabbit2docker topology declare`.", err=True)
        raise typer.Exit(Exit.FAILED)
    say("The topology is complete.")


@app.command()
def export(tenant: Tenants = None) -> None:
    """Print the topology as RabbitMQ definitions, with users and permissions, without connecting.

    Import it with `rabbitmqctl import_definitions`. There is a user for the service, its operators, its monitoring and
    each tenant. They have no password and cannot log in until you set one with `rabbitmqctl change_password`. Several
    tenants publish to exchanges of their own, a single one to `builds` as well.
    """
    from rabbit2docker.amqp.definitions import as_definitions
    from rabbit2docker.amqp.topology import make_topology

    with errors_explained():
        tenants, limits, vhost = _export_settings(tenant)
        definitions = as_definitions(make_topology(tenants, limits), vhost=vhost)
    say(json.dumps(definitions, indent=2))


@app.command()
def release() -> None:
    """Let consumers with another state work on the virtual host, at once instead of ten minutes after the last one.

    Only for a deliberate change of the state directory, cluster or namespace: builds that the former consumers have not
    ended stay without an end.
    """
    from rabbit2docker.amqp.state_claim import release as release_state
    from rabbit2docker.cli.session import run

    with errors_explained():
        settings = _settings(None)
    was_held = run(lambda: release_state(settings.amqp))
    say("The virtual host is free." if was_held else "No state holds the virtual host.")


def _export_settings(tenants: list[str] | None) -> tuple[list[str], "TopologySettings", str]:
    """Return tenants, limits and virtual host. The settings, slow to import, are read only if there are any."""
    if not is_configured(os.environ):
        from rabbit2docker.settings.topology import TopologySettings

        return tenants or list(DEFAULT_TENANTS), TopologySettings(), DEFAULT_VHOST
    from rabbit2docker.amqp.endpoint import vhost_of

    settings = _settings(tenants)
    return list(settings.tenants), settings.topology, vhost_of(settings.amqp)
