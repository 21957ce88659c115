"""The steps of `replay`: read, plan, show, publish, follow."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rabbit2docker.amqp.replay_publisher import replay_publisher
from rabbit2docker.cli.build import login_name
from rabbit2docker.cli.exits import Exit, fail
from rabbit2docker.cli.output import say
from rabbit2docker.cli.progress import reading_progress
from rabbit2docker.cli.replay_views import JsonReplayView, ReplayView, TextReplayView, described
from rabbit2docker.cli.session import run
from rabbit2docker.replay.following import Following
from rabbit2docker.replay.plan import Plan
from rabbit2docker.replay.publication import (
    Pace,
    Replay,
    ReplayHeader,
    began_at,
    find_replay,
    id_prefix,
    new_replay_id,
)
from rabbit2docker.replay.reading import LogReport, ReplayReader, replay_reader
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker.settings import load_settings
from rabbit2docker_schemas.requests import Force


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of the command."""

    conditions: dict[str, Any]
    force: Force | None
    is_published: bool
    seconds_between: float
    resume: str | None
    follow: bool
    limit: int
    as_json: bool
    wait: float


def run_replay(options: ReplayOptions) -> Exit:
    """Run the command and return its exit code."""
    return run(lambda: _replay(options))


async def _replay(options: ReplayOptions) -> Exit:
    amqp, workspace = load_settings().amqp, Workspace()
    # A plan can be made again; what publishes waits until RabbitMQ is back.
    patience = None if options.is_published else options.wait
    try:
        async with replay_reader(amqp, wait_seconds=options.wait, reconnect_seconds=patience) as reader:
            header, is_resumed = await _header(options, reader, workspace)
            view: ReplayView = (
                JsonReplayView(header) if options.as_json else TextReplayView(header, options.limit)
            )
            plan = Plan(workspace, header.selection)
            report = await _read(reader, workspace, header)
            await asyncio.to_thread(_preview, plan, view)
            view.summary(
                plan.totals,
                report,
                seconds_between=options.seconds_between,
                is_published=options.is_published,
            )
            if not options.is_published or not plan.totals.chosen:
                return Exit.COMPLETED
            replay = Replay(
                header, plan, workspace, is_resumed=is_resumed, pace=Pace(options.seconds_between)
            )
            return await _publish(replay, header, reader, view, options, plan.totals.chosen)
    finally:
        workspace.close()


async def _header(
    options: ReplayOptions, reader: ReplayReader, workspace: Workspace
) -> tuple[ReplayHeader, bool]:
    if options.resume is None:
        now = datetime.now(UTC)
        selection = Selection.model_validate(options.conditions)
        force = options.force if options.force is not None else (True if selection.names_builders else None)
        return ReplayHeader(
            replay=new_replay_id(now), selection=selection, force=force, by=login_name()
        ), False
    header = await find_replay(reader, workspace, options.resume)
    if header is None:
        fail(
            f"The log of requests has no replay {options.resume}: it published nothing, or it is deleted by now. "
            "Start it again with its conditions.",
            Exit.NOT_FOUND,
        )
    return header, True


async def _read(reader: ReplayReader, workspace: Workspace, header: ReplayHeader) -> LogReport:
    async with reading_progress() as show:
        reader.on_progress = show
        report = await reader.fill(workspace, header.selection, without=id_prefix(header.replay))
        await asyncio.to_thread(workspace.finish)
    return report


def _preview(plan: Plan, view: ReplayView) -> None:
    for candidate in plan.candidates():
        view.plan(candidate)


async def _publish(
    replay: Replay,
    header: ReplayHeader,
    reader: ReplayReader,
    view: ReplayView,
    options: ReplayOptions,
    total: int,
) -> Exit:
    amqp, began = load_settings().amqp, began_at(header.replay)
    following = Following(reader, began) if options.follow else None
    try:
        async with replay_publisher(amqp, wait_seconds=options.wait) as publisher:
            view.begin(total)
            async with aclosing(replay.publish_all(publisher, reader)) as published:
                async for one in published:
                    view.published(one)
                    if following is not None:
                        candidate = one.candidate
                        following.add(
                            candidate.tenant,
                            one.request_id,
                            candidate.original_id,
                            described(candidate.content),
                        )
        if following is None:
            view.end_of_publication()
            return Exit.COMPLETED
        await following.until_ended(view.following)
        view.ends(following.requests())
        counts = following.counts()
        return Exit.COMPLETED if set(counts) <= {"completed"} else Exit.FAILED
    except asyncio.CancelledError:
        view.close()
        say(
            f"\nInterrupted. `rabbit2docker replay --resume {header.replay} --yes` goes on; "
            "what was published is not published again.",
            err=True,
        )
        raise
    finally:
        view.close()
        if following is not None:
            await following.close()
