"""The commands `store prune` and `store migrate`: care of the hub service's database."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import Exit, errors_explained, fail
from rabbit2docker.cli.options import AsJson, parse_duration_option
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from datetime import datetime

    from rabbit2docker.hub.store.prune import PrunePlan
    from rabbit2docker.settings import HubSettings

app = typer.Typer(
    help="Delete old builds from the hub service's database, or migrate it. RABBIT2DOCKER_HUB__STORE_URL names it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(help="Delete builds that ended longer ago: 30d, 12h. Default: hub.store_days."),
    ] = None,
    max_log_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Then delete the oldest logs until all take no more. Default: hub.store_bytes."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete builds that ended long ago, and logs that take too much space, from the hub service's database.

    The service may run at the same time. A SQLite file shrinks; in PostgreSQL the space is used again.

    Example: `rabbit2docker store prune --older-than 30d --dry-run`
    """
    from datetime import UTC, datetime, timedelta

    from rabbit2docker.settings import load_settings

    with errors_explained():
        settings = load_settings()
    age = (
        timedelta(days=settings.hub.store_days)
        if older_than is None
        else parse_duration_option(older_than, "--older-than")
    )
    limit = settings.hub.store_bytes if max_log_bytes is None else max_log_bytes
    plan = _prune(settings.hub, settings.tenant, datetime.now(UTC) - age, limit, dry_run=dry_run)
    _report(plan, dry_run=dry_run, as_json=as_json)


def _prune(
    hub: "HubSettings", tenant: str, ended_before: "datetime", limit: int, *, dry_run: bool
) -> "PrunePlan":
    from rabbit2docker.cli.session import run

    async def work() -> "PrunePlan":
        import asyncio

        from rabbit2docker.errors import StoreUnavailable
        from rabbit2docker.hub.store.store import Store

        async with Store(hub.store_url, tenant, log_bytes=hub.store_log_bytes) as store:
            plan = await store.prune(ended_before=ended_before, max_log_bytes=limit, dry_run=dry_run)
            if not dry_run:
                try:
                    await asyncio.to_thread(store.compact)
                except StoreUnavailable as error:
                    say(f"The file keeps its size, and the space is used again: {error}", err=True)
            return plan

    require_hub_extra()
    return run(work)


def _report(plan: "PrunePlan", *, dry_run: bool, as_json: bool) -> None:
    from rabbit2docker.cli.texts import size

    if as_json:
        counts = {"builds": len(plan.builds), "logs": len(plan.logs), "log_bytes": plan.log_bytes}
        say(json.dumps({**counts, "dry_run": dry_run}))
        return
    verb = "would be deleted" if dry_run else "deleted"
    say(
        f"{len(plan.builds)} builds and the logs of {len(plan.logs)} others {verb}: "
        f"{size(plan.log_bytes)} of logs in all."
    )


@app.command()
def migrate(
    to: Annotated[
        str,
        typer.Option(
            metavar="REVISION",
            help="Revision of the tables: `head` of this version, an older one, or `base` without tables.",
        ),
    ] = "head",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the tables of the hub service's database to a revision, forward or back.

    The service does this by itself at its start. Before you go back to an earlier version of it, stop it and go back to
    that version's revision with the newer program: only that one knows the way. `base` deletes all builds and logs.
    """
    from rabbit2docker.settings import load_settings

    with errors_explained():
        url = load_settings().hub.store_url
    if to == "base" and not yes:
        typer.confirm("Delete all builds and logs for good?", abort=True)
    require_hub_extra()
    with errors_explained():
        from rabbit2docker.hub.store.database import migrate_to

        before, after = migrate_to(url, to)
    if as_json:
        say(json.dumps({"from": before, "to": after}))
    else:
        say(f"The tables were at {before or 'base'} and are at {after or 'base'} now.")


def require_hub_extra() -> None:
    """Exit with the name of the missing extra if the database's libraries are not installed."""
    try:
        import rabbit2docker.hub.store.database  # noqa: F401
    except ImportError as error:
        fail(
            f"The hub's database needs {error.name}. Install it with: pip install 'rabbit2docker[hub]'.",
            Exit.CONFIGURATION,
        )
