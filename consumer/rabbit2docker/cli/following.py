"""Following a build: events are shown until its end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from rabbit2docker.cli.console import out
from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.output import say
from rabbit2docker.cli.rendering import exit_code, make_view
from rabbit2docker_schemas.cloudevents import Event


async def follow(events: AsyncGenerator[Event, None], id_: str, *, as_json: bool) -> Exit:
    """Show events until the build ends and return its exit code. Ctrl-C ends the following, not the build."""
    code: Exit | None = None
    try:
        with make_view(out(), json_lines=as_json) as view:
            async with aclosing(events):
                async for event in events:
                    view.show(event)
                    code = exit_code(event)
        return Exit.FAILED if code is None else code
    except asyncio.CancelledError:
        if not as_json:
            say(
                f"\nThe build continues. Follow it with `rabbit2docker logs --follow {id_}`, "
                f"end it with `rabbit2docker cancel {id_}`.",
                err=True,
            )
        raise


async def known(events: AsyncGenerator[Event, None], id_: str) -> AsyncGenerator[Event, None]:
    """Yield the past events of a build or request; exit with NOT_FOUND if there are none."""
    is_known = False
    async with aclosing(events):
        async for event in events:
            is_known = True
            yield event
    if not is_known:
        fail(
            f"No build or request has the id {id_}. `rabbit2docker list` shows those of the tenant that "
            "RABBIT2DOCKER_TENANT names.",
            Exit.NOT_FOUND,
        )
