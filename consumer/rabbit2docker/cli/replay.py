"""The command `replay`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rabbit2docker.cli.exits import EXIT_HELP, Exit, errors_explained, fail
from rabbit2docker.cli.options import AsJson, WaitSeconds, parse_moment_option, parse_rate_option

if TYPE_CHECKING:
    from rabbit2docker.cli.replay_run import ReplayOptions

Several = list[str] | None


def replay(
    since: Annotated[
        str, typer.Option(help="Requests published since: 12h, 7d, or a time such as 2026-01-31T12:00Z.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="And until, in the same form. Default: now.")] = None,
    tenant: Annotated[
        Several, typer.Option(help="Requests of this tenant; repeatable. Default: all.")
    ] = None,
    requester: Annotated[Several, typer.Option(help="Requests by this person; repeatable.")] = None,
    provider: Annotated[Several, typer.Option(help="Requests for this provider; repeatable.")] = None,
    repository: Annotated[
        Several,
        typer.Option(
            metavar="GLOB", help="Repository: 'owner/*', or a URL with or without https://; repeatable."
        ),
    ] = None,
    id_: Annotated[
        Several, typer.Option("--id", metavar="ID", help="Id of a request or build; repeatable.")
    ] = None,
    outcome: Annotated[
        Several,
        typer.Option(
            metavar="OUTCOME",
            help="completed, failed, cancelled, rejected, never-ended; with a reason or category failed:disk_full, "
            "failed:infrastructure; repeatable. Default: all that ended.",
        ),
    ] = None,
    image: Annotated[
        Several, typer.Option(metavar="GLOB", help="Name and tag of the image; repeatable.")
    ] = None,
    built_with: Annotated[
        Several,
        typer.Option(
            metavar="CONDITION",
            help="Completed by a version of repo2docker: 'repo2docker<2026.4'; implies --force. Repeatable: all hold.",
        ),
    ] = None,
    builder_image: Annotated[
        Several,
        typer.Option(
            metavar="GLOB",
            help="Completed by a build pod of this image; '!GLOB': of any other; implies --force. Repeatable.",
        ),
    ] = None,
    outdated: Annotated[
        bool,
        typer.Option(
            "--outdated",
            help="Completed by another builder.image than the one in the settings; with the local executor, by an older "
            "repo2docker than the one installed here. Implies --force.",
        ),
    ] = False,
    same_commit: Annotated[
        bool,
        typer.Option(
            "--same-commit", help="Build the commits of then. Default: branches and tags are resolved anew."
        ),
    ] = False,
    force: Annotated[
        bool | None,
        typer.Option(
            "--force/--no-force", help="Build even if the image exists. Default: as the original request."
        ),
    ] = None,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="With --force: build with the engine's cache.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Publish. Without it, only show the plan.")
    ] = False,
    rate: Annotated[
        str, typer.Option(metavar="NUMBER/UNIT", help="Requests per s, min or h that are published.")
    ] = "60/min",
    resume: Annotated[
        str | None,
        typer.Option(metavar="REPLAY", help="Go on with an interrupted replay, with its own conditions."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait until all have ended, and show their ends.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Largest number of builds that the plan lists.")] = 50,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Choose earlier requests from the log and publish them again, as bulk requests that delay no person.

    Equal requests become one. Without --yes, the plan is shown and nothing is published. It takes an operator's user of
    RabbitMQ. An interrupted replay goes on with --resume and publishes nothing twice.

    Examples:

    \b
        rabbit2docker replay --since 24h --outcome failed:infrastructure
        rabbit2docker replay --built-with 'repo2docker<2026.4' --same-commit --yes --rate 20/min --follow
        rabbit2docker replay --repository 'binder-examples/*' --tenant hub-a --force --yes
        rabbit2docker replay --resume 20260131t120000-0a1b2c --yes
    """
    from rabbit2docker.cli.replay_run import ReplayOptions, run_replay

    if keep_cache and not force:
        fail("--keep-cache goes with --force: an ordinary build uses the engine's cache.", Exit.USAGE)
    given = {
        "tenants": tenant,
        "requesters": requester,
        "providers": provider,
        "repositories": repository,
        "ids": id_,
        "outcomes": outcome,
        "images": image,
        **_builders(built_with, builder_image, is_outdated=outdated),
        "same_commit": same_commit,
    }
    conditions = {name: value for name, value in given.items() if value}
    if resume and (conditions or until or force is not None):
        fail(
            "--resume goes on with the conditions of the replay that it names: leave the others out.",
            Exit.USAGE,
        )
    options = ReplayOptions(
        conditions={**conditions, **_period(since, until)},
        force="cache" if keep_cache else force,
        is_published=yes,
        seconds_between=parse_rate_option(rate, "--rate"),
        resume=resume,
        follow=follow,
        limit=limit,
        as_json=as_json,
        wait=wait,
    )
    _check(options)
    raise typer.Exit(run_replay(options))


def _builders(built_with: Several, builder_image: Several, *, is_outdated: bool) -> dict[str, list[str]]:
    found = {"built_with": built_with or [], "builder_images": builder_image or []}
    if not is_outdated:
        return found
    if built_with or builder_image:
        fail("--outdated stands for the other conditions on builders: leave them out.", Exit.USAGE)
    from rabbit2docker.settings import load_settings

    with errors_explained():
        image = load_settings().builder_image
    return {"builder_images": [f"!{image}"]} if image else {"built_with": [f"repo2docker<{_installed()}"]}


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jupyter-repo2docker")
    except PackageNotFoundError:
        fail(
            "--outdated compares with the repo2docker installed here, and there is none: use --built-with.",
            Exit.USAGE,
        )


def _period(since: str, until: str | None) -> dict[str, Any]:
    from datetime import UTC, datetime

    end = parse_moment_option(until, "--until") if until else datetime.now(UTC)
    return {"since": parse_moment_option(since, "--since"), "until": end}


def _check(options: "ReplayOptions") -> None:
    """Exit with a usage error if the conditions are none."""
    from pydantic import ValidationError

    from rabbit2docker.replay.publication import began_at
    from rabbit2docker.replay.selection import Selection

    try:
        selection = Selection.model_validate(options.conditions)
    except ValidationError as error:
        problem = error.errors()[0]
        option = str(problem["loc"][0]).rstrip("s").replace("_", "-") if problem["loc"] else "conditions"
        fail(f"--{option}: {problem['msg'].removeprefix('Value error, ')}.", Exit.USAGE)
    if selection.since >= selection.until:
        fail("--since must be before --until.", Exit.USAGE)
    if options.resume:
        with errors_explained():
            began_at(options.resume)
    if options.follow and not options.is_published:
        fail("--follow goes with --yes: without it, nothing is published.", Exit.USAGE)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Builds", epilog=EXIT_HELP)(replay)
