"""The commands `run` and `hub`: the two services."""

from typing import Annotated, Any

import typer

from rabbit2docker.cli.exits import Exit, errors_explained, fail
from rabbit2docker.cli.output import say
from rabbit2docker.settings.constants import ExecutorKind, HubAuth


def run(
    executor: Annotated[
        ExecutorKind | None,
        typer.Option(help="Place to run builds. Default: RABBIT2DOCKER_EXECUTOR, else local."),
    ] = None,
    declare: Annotated[
        bool | None,
        typer.Option(
            "--declare/--no-declare",
            help="Declare exchanges and queues at start if the RabbitMQ user may. "
            "Default: RABBIT2DOCKER_AMQP__DECLARE, else yes.",
        ),
    ] = None,
) -> None:
    """Take build requests from RabbitMQ and build them, until SIGTERM or Ctrl-C.

    It waits for RabbitMQ, the container engine and the registry if they are away. Builds continue when the consumer
    stops or is killed; the next start adopts them. RABBIT2DOCKER_HTTP__BIND serves health, readiness and metrics.
    """
    import asyncio

    from rabbit2docker import logs
    from rabbit2docker.settings import load_settings

    given: dict[str, Any] = {} if executor is None else {"executor": executor}
    with errors_explained():
        from rabbit2docker.consumer.service import run as run_service

        settings = load_settings(**given)
        if declare is not None:
            amqp = settings.amqp.model_copy(update={"declare": declare})
            settings = settings.model_copy(update={"amqp": amqp})
        logs.configure(settings.log)
        asyncio.run(run_service(settings))


def hub(
    auth: Annotated[
        HubAuth | None,
        typer.Option(help="Access control. Default: RABBIT2DOCKER_HUB__AUTH, else users of the JupyterHub."),
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Address to serve at. Default: JupyterHub's, else 127.0.0.1:8585."
        ),
    ] = None,
) -> None:
    """Serve builds to a JupyterHub, with BinderHub's HTTP API and with pages, until SIGTERM or Ctrl-C.

    As a service of a JupyterHub it needs only the address of RabbitMQ. It builds nothing itself: `rabbit2docker run`
    does. Builds continue while it is stopped, and clients that reconnect resume where they were.
    """
    import asyncio

    from rabbit2docker import logs
    from rabbit2docker.errors import ConfigurationError
    from rabbit2docker.settings import load_settings

    with errors_explained():
        settings = load_settings()
        given: dict[str, Any] = {"auth": auth, "bind": bind}
        changed = {name: value for name, value in given.items() if value is not None}
        settings = settings.model_copy(update={"hub": settings.hub.model_copy(update=changed)})
        logs.configure(settings.log)
        try:
            from rabbit2docker.hub.service import run
        except ImportError as error:
            raise ConfigurationError(
                f"`rabbit2docker hub` needs {error.name}. Install it with: pip install 'rabbit2docker[hub]'."
            ) from error
        asyncio.run(run(settings))


def end_builds(
    seconds: Annotated[
        float, typer.Option(min=1, help="Time limit for all of it.", show_default=True)
    ] = 120.0,
) -> None:
    """End all builds of an installation that is to be removed, and report each end to its requesters.

    Running builds are cancelled, their ends are published, then their records are removed, in Kubernetes with pods and
    finalizers. Stop the consumers first: they would start further builds. Requests that wait in RabbitMQ stay there.
    The chart runs this before `helm uninstall` removes anything. In a namespace that is stuck in Terminating, run it
    from outside the cluster. If something is left, it says what, why and how to free it by hand, and exits with code 1.
    """
    import asyncio

    from rabbit2docker import logs
    from rabbit2docker.settings import load_settings

    with errors_explained():
        from rabbit2docker.consumer import removal

        settings = load_settings()
        logs.configure(settings.log)
        report = asyncio.run(removal.end_builds(settings, seconds=seconds))
    say(f"Builds ended and reported: {report.ended}")
    if not report.is_complete:
        for attempt in report.unreported:
            say(f"No end reported: {attempt.spec.build_id}, {attempt.name}", err=True)
        for name in report.left:
            say(f"Record not removed: {name}", err=True)
        problems = " ".join(report.problems) or "Something is left."
        fail(f"{problems}\n{removal.advice(settings, report)}", Exit.FAILED)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, hub, end_builds):
        app.command(rich_help_panel="Services")(command)
