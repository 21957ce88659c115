"""The command `check repository`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.check_steps import print_steps
from rabbit2docker.cli.exits import Exit, errors_explained

if TYPE_CHECKING:
    from rabbit2docker.settings import Settings


def repository(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of a git repository: https://…, ssh://… or git@….")
    ],
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT", help="Tenant whose credentials are used. Default: RABBIT2DOCKER_TENANT."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each step as a line of JSON.")] = False,
) -> None:
    """Check a git repository step by step: address, host, credentials, and the list of its refs.

    It uses the settings and the files with credentials that the consumer uses, so run it where that runs. Credentials
    are offered to the host only if the repository cannot be read without them, and are never shown.
    """
    import asyncio

    from rabbit2docker.settings import load_settings

    with errors_explained():
        settings = load_settings()
        is_ok = asyncio.run(_check(settings, url, tenant or settings.tenant, as_json=as_json))
    if not is_ok:
        raise typer.Exit(Exit.FAILED)


async def _check(settings: "Settings", url: str, tenant: str, *, as_json: bool) -> bool:
    """Print each step as it is done; return whether all went well."""
    from rabbit2docker.consumer.providers.http import open_session
    from rabbit2docker.consumer.providers.repository_check import RepositoryCheck

    async with open_session(settings.providers) as session:
        steps = RepositoryCheck(session, settings, tenant).steps(url)
        return await print_steps(steps, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Add the command to the group `check`."""
    app.command()(repository)
