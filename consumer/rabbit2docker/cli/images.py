"""The command `images`."""

import csv
import io
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import EXIT_HELP
from rabbit2docker.cli.options import WaitSeconds, parse_moment_option
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from rabbit2docker.replay.images import BuiltImage


class Format(StrEnum):
    """Formats of the list."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def images(
    since: Annotated[
        str,
        typer.Option(
            help="Images built or requested since: 24h, 30d, or a time. Default: all that is known."
        ),
    ] = "3650d",
    tenant: Annotated[
        list[str] | None, typer.Option(help="Images of this tenant; repeatable. Default: your own.")
    ] = None,
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Images of all tenants that RABBIT2DOCKER_TENANTS names.")
    ] = False,
    from_store: Annotated[
        bool,
        typer.Option(
            "--from-store",
            help="Read the database of `rabbit2docker hub`, `hub.store_url`, instead of RabbitMQ: it reaches back "
            "`hub.store_days`.",
        ),
    ] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="json: one object per line; csv: with a line of headings.")
    ] = Format.TABLE,
    wait: WaitSeconds = 10.0,
) -> None:
    """List the images that were built: name, digest, source, version, builder, age and last request.

    They are read from the events of the tenant, which are kept for `topology.events_days`, or with --from-store from the
    database of the hub's service. In RabbitMQ, tenants other than your own take an operator's user.

    Examples:

    \b
        rabbit2docker images
        rabbit2docker images --all-tenants --format csv > images.csv
    """
    from rabbit2docker.settings import load_settings

    moment = parse_moment_option(since, "--since")

    def tenants() -> list[str]:
        settings = load_settings()
        return list(settings.tenants) if all_tenants else (tenant or [settings.tenant])

    _print(_read_store(tenants, moment) if from_store else _read(tenants, moment, wait), format_)


def _read(tenants: "Callable[[], list[str]]", since: "datetime", wait: float) -> "list[BuiltImage]":
    from rabbit2docker.cli.session import run

    async def read() -> "list[BuiltImage]":
        import asyncio

        from rabbit2docker.cli.progress import reading_progress
        from rabbit2docker.clock import utc_now
        from rabbit2docker.replay.images import built_images
        from rabbit2docker.replay.reading import LogReport, replay_reader
        from rabbit2docker.replay.workspace import Workspace
        from rabbit2docker.settings import load_settings

        workspace, names = Workspace(), tenants()
        try:
            async with (
                reading_progress() as show,
                replay_reader(load_settings().amqp, wait_seconds=wait, reconnect_seconds=wait) as reader,
            ):
                reader.on_progress = show
                await reader.fill_events(workspace, names, since, utc_now(), LogReport())
                await asyncio.to_thread(workspace.finish)
            for name in names:
                if name not in workspace.beginnings:
                    say(
                        f"The tenant {name} has no stream: `rabbit2docker topology declare --tenant {name}` makes it.",
                        err=True,
                    )
            return await asyncio.to_thread(lambda: list(built_images(workspace)))
        finally:
            workspace.close()

    return run(read)


def _read_store(tenants: "Callable[[], list[str]]", since: "datetime") -> "list[BuiltImage]":
    from rabbit2docker.cli.session import run
    from rabbit2docker.cli.store import require_hub_extra

    async def read() -> "list[BuiltImage]":
        import asyncio

        from rabbit2docker.hub.store.store import Store
        from rabbit2docker.replay.images import built_images
        from rabbit2docker.replay.workspace import Workspace
        from rabbit2docker.settings import load_settings
        from rabbit2docker_schemas.events import Kind

        workspace = Workspace()
        try:
            for name in tenants():
                async with Store(load_settings().hub.store_url, name) as store:
                    async for events in store.answers_and_ends(since=since):
                        workspace.add_read_events(
                            name, [(Kind(kind), time, data) for kind, time, data in events]
                        )
            await asyncio.to_thread(workspace.finish)
            return await asyncio.to_thread(lambda: list(built_images(workspace)))
        finally:
            workspace.close()

    require_hub_extra()
    return run(read)


def _print(found: "list[BuiltImage]", format_: Format) -> None:
    match format_:
        case Format.JSON:
            for image in found:
                say(json.dumps(image.as_dict(), ensure_ascii=False))
        case Format.CSV:
            _print_csv(found)
        case Format.TABLE if not found:
            say("No images are known. `rabbit2docker list` shows the builds of your tenant.")
        case Format.TABLE:
            _print_table(found)


def _print_csv(found: "Iterable[BuiltImage]") -> None:
    from dataclasses import fields

    from rabbit2docker.replay.images import BuiltImage

    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BuiltImage)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(image.as_dict() for image in found)
    say(text.getvalue().removesuffix("\n"))


def _print_table(found: "Iterable[BuiltImage]") -> None:
    from rich.table import Table
    from rich.text import Text

    from rabbit2docker.cli import texts
    from rabbit2docker.cli.console import out
    from rabbit2docker.cli.output import printable

    table = Table("IMAGE", "AGE", "REQUESTED", "SIZE", "BUILT WITH", "SOURCE", box=None, pad_edge=False)
    for image in found:
        built_with = (
            f"repo2docker {image.repo2docker_version}" if image.repo2docker_version else image.builder_image
        )
        name = f"{image.image}@{image.digest}" if image.digest else image.image
        table.add_row(
            Text(printable(name)),
            texts.age(image.built_at),
            texts.age(image.requested_at),
            texts.size(image.size),
            Text(printable(built_with)),
            Text(printable(f"{image.source} at {image.ref}" if image.source else image.ref)),
        )
    out().print(table)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Builds", epilog=EXIT_HELP)(images)
