"""The command `engine clean`: care of the disk of a Docker engine, beside the engine."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import errors_explained
from rabbit2docker.cli.options import AsJson
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.consumer.engine_disk.one_cleaning import Cleaned

app = typer.Typer(
    help="Care for the disk of the Docker engine that builds.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Keep `clean` a command of a group, which has only this one."""


@app.command()
def clean(
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the disk within its limits until SIGTERM or Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove images and build cache until the engine's disk is within RABBIT2DOCKER_ENGINE__DISK__MAX_BYTES and __MAX_PERCENT.

    Images that running builds use stay, and so do images that this service has not built. A consumer with the local executor
    does this by itself; in Kubernetes the chart runs it with `--watch` on each node that builds. With `--watch`, builds
    that meet a full disk have it cleaned, and RABBIT2DOCKER_HTTP__BIND serves health and metrics.
    """
    import asyncio

    from rabbit2docker import logs
    from rabbit2docker.settings import load_settings

    with errors_explained():
        from rabbit2docker.consumer import engine_cleaning

        settings = load_settings()
        logs.configure(settings.log)
        if watch:
            asyncio.run(engine_cleaning.watch(settings))
            return
        cleaned = asyncio.run(engine_cleaning.clean(settings))
    _show(cleaned, as_json=as_json)


def _show(cleaned: "Cleaned", *, as_json: bool) -> None:
    survey = cleaned.survey
    found = {
        "freed_bytes": cleaned.freed,
        "images_removed": cleaned.images_removed,
        "images_kept": cleaned.images_kept,
        "image_bytes": survey.image_bytes,
        "cache_bytes": survey.cache_bytes,
        "free_bytes": survey.disk.free if survey.disk else None,
        "over_limit_bytes": max(0, cleaned.excess),
    }
    if as_json:
        say(json.dumps(found))
        return
    for name, value in found.items():
        say(f"{name.replace('_', ' ').capitalize()}: {'unknown' if value is None else value}")
