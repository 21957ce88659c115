"""The command `check registry`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.check_steps import print_steps
from rabbit2docker.cli.exits import Exit, errors_explained

if TYPE_CHECKING:
    from rabbit2docker.settings import Settings


def registry(
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", help="Beginning of image names. Default: RABBIT2DOCKER_IMAGES__PREFIX."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each step as a line of JSON.")] = False,
) -> None:
    """Check the registry step by step: name, connection, login, and the rights to pull and push.

    It uses the settings and the docker configuration that consumer and builder use, so run it where they run. To try the
    right to push, it begins an upload to PREFIXrabbit2docker-check and drops it; some registries keep an empty repository
    of that name.
    """
    import asyncio

    from rabbit2docker.settings import load_settings

    with errors_explained():
        settings = load_settings()
        is_ok = asyncio.run(_check(settings, prefix or settings.images.prefix, as_json=as_json))
    if not is_ok:
        raise typer.Exit(Exit.FAILED)


async def _check(settings: "Settings", prefix: str, *, as_json: bool) -> bool:
    """Print each step as it is done; return whether all went well."""
    from rabbit2docker.consumer.images.registry_check import RegistryCheck
    from rabbit2docker.consumer.providers.http import open_session

    async with open_session(settings.providers) as session:
        check = RegistryCheck(session, settings.images, settings.docker)
        return await print_steps(check.steps(prefix), as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Add the command to the group `check`."""
    app.command()(registry)
