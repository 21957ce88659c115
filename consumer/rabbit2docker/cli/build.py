"""The command `build`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rabbit2docker.cli.exits import EXIT_HELP, Exit, errors_explained, fail
from rabbit2docker.cli.options import (
    AsJson,
    BuildArgs,
    Labels,
    Subdir,
    WaitSeconds,
    parse_duration_option,
    parse_pairs,
)
from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.client import BuildEvents
    from rabbit2docker_schemas.requests import BuildRequest


def build(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PROVIDER|URL",
            help="URL of a repository or dataset, of a branch, commit, pull or merge request, a DOI, or the name of a provider.",
        ),
    ],
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]", help="With a provider: repository and version, as in /build/PROVIDER/SPEC."
        ),
    ] = None,
    ref: Annotated[str | None, typer.Option(help="With a URL: branch, tag or commit. Default: HEAD.")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Build even if the image exists, without the engine's cache and on new base images.",
        ),
    ] = False,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="With --force: build with the engine's cache.")
    ] = False,
    subdir: Subdir = None,
    build_arg: BuildArgs = None,
    label: Labels = None,
    appendix: Annotated[
        Path | None, typer.Option(help="File with lines for the Dockerfile.", exists=True, dir_okay=False)
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Shorten the time limit of the build: 90s, 30m, 1h.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Reject the request if no consumer takes it within: 10m, 1h.")
    ] = None,
    bulk: Annotated[
        bool, typer.Option("--bulk", help="Give way to requests for which a person waits.")
    ] = False,
    request_id: Annotated[
        str | None,
        typer.Option(help="Idempotency key: requests with the same id build once. Default: a new id."),
    ] = None,
    requester: Annotated[
        str | None, typer.Option(help="Your name, for the record. Default: the login name.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Show progress and log to the end, or print the ids only."),
    ] = True,
    as_json: AsJson = False,
    wait: WaitSeconds = 10.0,
) -> None:
    """Request a build and follow it.

    Ctrl-C ends the following, not the build. Resume it with `rabbit2docker logs --follow ID`; end the build with
    `rabbit2docker cancel ID`.

    Examples:

    \b
        rabbit2docker build https://github.com/binder-examples/requirements
        rabbit2docker build https://git.example.org/ada/thesis --ref v1.0 --force
        rabbit2docker build gh binder-examples/requirements/HEAD --no-follow --json
    """
    if keep_cache and not force:
        fail("--keep-cache goes with --force: an ordinary build uses the engine's cache.", Exit.USAGE)
    provider, spec = _target(target, spec, ref)
    request = _request(
        provider=provider,
        spec=spec,
        force="cache" if keep_cache else force,
        subdir=subdir,
        build_args=parse_pairs(build_arg, "--build-arg"),
        labels=parse_pairs(label, "--label"),
        appendix=appendix.read_text(encoding="utf-8") if appendix else None,
        timeout_seconds=int(parse_duration_option(timeout, "--timeout").total_seconds()) if timeout else None,
        not_after=_not_after(expires),
        request_id=request_id,
        requester=requester or login_name(),
    )
    raise typer.Exit(_submit(request, is_bulk=bulk, follow=follow, as_json=as_json, wait=wait))


def _target(first: str, second: str | None, ref: str | None) -> tuple[str, str]:
    """Return provider and spec for the arguments."""
    from rabbit2docker_schemas.providers import find_doi

    if "://" in first or first.startswith("git@") or find_doi(first):
        if second is not None:
            fail("Give either a URL, or a provider and a spec.", Exit.USAGE)
        return _from_url(first, ref)
    if second is None:
        fail(
            f"{first!r} is not a URL. Give a URL such as `rabbit2docker build https://github.com/owner/repository`, "
            "or a provider with a spec such as `rabbit2docker build gh owner/repository/HEAD`.",
            Exit.USAGE,
        )
    if ref is not None:
        fail("--ref needs a URL. With a provider, the ref is the last part of the spec.", Exit.USAGE)
    return first, second


def _from_url(url: str, ref: str | None) -> tuple[str, str]:
    from rabbit2docker.repository_urls import from_url
    from rabbit2docker.settings import load_settings

    with errors_explained():
        return from_url(url, ref, hosts=load_settings().providers.hosts)


def _not_after(expires: str | None) -> object:
    from datetime import UTC, datetime

    return datetime.now(UTC) + parse_duration_option(expires, "--expires") if expires else None


def login_name() -> str:
    """Return the user's login name; in a container that has no name for it, its number."""
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _request(**fields: object) -> "BuildRequest":
    from pydantic import ValidationError

    from rabbit2docker_schemas.requests import BuildRequest
    from rabbit2docker_schemas.validation_messages import describe

    given = {name: value for name, value in fields.items() if value not in (None, {})}
    try:
        return BuildRequest.model_validate(given)
    except ValidationError as error:
        fail(describe(error, BuildRequest.model_fields), Exit.USAGE)


def _submit(request: "BuildRequest", *, is_bulk: bool, follow: bool, as_json: bool, wait: float) -> Exit:
    from rabbit2docker.cli import following
    from rabbit2docker.cli.session import run_with_events
    from rabbit2docker_schemas.routing import Priority

    async def submit(events: "BuildEvents") -> Exit:
        request_id = await events.submit(request, Priority.BULK if is_bulk else Priority.INTERACTIVE)
        if not follow:
            _print_ids(request_id, as_json=as_json)
            return Exit.COMPLETED
        if not as_json:
            say(f"Requested {request.provider} {request.spec} (request {request_id})", err=True)
        return await following.follow(events.of_request(request_id), request_id, as_json=as_json)

    return run_with_events(submit, wait)


def _print_ids(request_id: str, *, as_json: bool) -> None:
    from rabbit2docker.settings import load_settings
    from rabbit2docker_schemas.ids import build_id_of

    build_id = build_id_of(load_settings().tenant, request_id)
    if as_json:
        say(json.dumps({"request_id": request_id, "build_id": build_id}))
    else:
        say(f"request {request_id}")
        say(f"build   {build_id} (unless the request joins a running build)")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Builds", epilog=EXIT_HELP)(build)
