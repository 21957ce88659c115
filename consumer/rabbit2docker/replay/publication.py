"""Publishing a plan: each request once, under an id that follows from the replay and the request."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from rabbit2docker.amqp.replay_publisher import ReplayPublisher
from rabbit2docker.amqp.stream_scan import StreamMessage
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.replay.logged import UnreadableRequest, read_logged
from rabbit2docker.replay.plan import Candidate, Plan
from rabbit2docker.replay.reading import REPLAY_KEY_PREFIX, ReplayReader
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker_schemas import batches
from rabbit2docker_schemas.batches import REPLAY, new_suffix
from rabbit2docker_schemas.requests import Force

_CLOCK_SLACK: Final = timedelta(minutes=5)
"""Difference allowed between the clocks of this machine and RabbitMQ's."""


class ReplayHeader(BaseModel):
    """The message in the log with which a replay begins: all that it takes to resume it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    replay: str
    selection: Selection
    force: Force | None = None
    by: str = ""


def new_replay_id(now: datetime) -> str:
    """Return an id that says when the replay began."""
    return new_suffix(now)


def began_at(replay_id: str) -> datetime:
    """Return the time at which a replay began. Raises ConfigurationError if the id is malformed."""
    if (found := batches.began_at(replay_id)) is not None:
        return found
    raise ConfigurationError(
        f"{replay_id!r} is not the id of a replay; it looks like {new_replay_id(datetime.now(UTC))}."
    )


def id_prefix(replay_id: str) -> str:
    """Return the beginning of the ids of all requests of a replay."""
    return f"{REPLAY}-{replay_id}-"


def request_id_of(replay_id: str, candidate: Candidate) -> str:
    """Return the id under which a replay publishes a candidate: the same at each try."""
    key = candidate.key if isinstance(candidate.key, bytes) else str(candidate.key).encode()
    digest = hashlib.blake2b(candidate.tenant.encode() + b"/" + key, digest_size=16).hexdigest()
    return f"{id_prefix(replay_id)}{digest}"


def body_of(candidate: Candidate, request_id: str, force: Force | None) -> bytes:
    """Return the request to publish, with fields that this version does not know.

    Its deadline is over, and credentials were for the original alone.
    """
    content: dict[str, Any] = {
        name: value for name, value in candidate.content.items() if name not in ("not_after", "credentials")
    }
    content |= {"request_id": request_id, "replay_of": candidate.original_id}
    if force is not None:
        content["force"] = force
    return json.dumps(content, ensure_ascii=False).encode()


async def find_replay(reader: ReplayReader, workspace: Workspace, replay_id: str) -> ReplayHeader | None:
    """Return how a replay began, None if the log does not say; the workspace gets the ids that it has published."""
    header: ReplayHeader | None = None
    async for message in reader.log_since(began_at(replay_id) - _CLOCK_SLACK):
        if message.routing_key == REPLAY_KEY_PREFIX + replay_id:
            header = _header(message) or header
        elif (id_ := _published_id(message, replay_id)) is not None:
            workspace.add_published(id_)
    return header


def _header(message: StreamMessage) -> ReplayHeader | None:
    try:
        return ReplayHeader.model_validate_json(message.body)
    except ValidationError:
        return None


def _published_id(message: StreamMessage, replay_id: str) -> str | None:
    try:
        id_ = read_logged(message).request_id
    except UnreadableRequest:
        return None
    return id_ if id_.startswith(id_prefix(replay_id)) else None


@dataclass(frozen=True, slots=True)
class Published:
    """A candidate that is in the queue."""

    candidate: Candidate
    request_id: str
    is_new: bool
    """False if an earlier run of the replay has published it."""


class Pace:
    """At most one in `seconds`; what was missed is not made up for."""

    def __init__(self, seconds: float) -> None:
        """Take the time between two."""
        self._seconds = seconds
        self._next = 0.0

    async def wait(self) -> None:
        """Return once the next one may go."""
        loop = asyncio.get_running_loop()
        if (rest := self._next - loop.time()) > 0:
            await asyncio.sleep(rest)
        self._next = loop.time() + self._seconds


class Replay:
    """One replay: the first run of it, or a later one that goes on."""

    def __init__(
        self, header: ReplayHeader, plan: Plan, workspace: Workspace, *, is_resumed: bool, pace: Pace
    ) -> None:
        """Take a plan whose workspace is filled; `is_resumed`: it holds what was published before, too."""
        self._header = header
        self._plan = plan
        self._workspace = workspace
        self._is_resumed = is_resumed
        self._pace = pace

    async def publish_all(
        self, publisher: ReplayPublisher, reader: ReplayReader
    ) -> AsyncGenerator[Published, None]:
        """Publish what is chosen and has not been published; yield all of it, as it is published.

        A run that was killed may have published its last request without a note of it. A later run takes that one last,
        and looks into the log once more: by then, the consumer may have noted it.
        """
        uncertain: Published | None = None
        if not self._is_resumed:
            content = self._header.model_dump(mode="json")
            await publisher.begin(REPLAY_KEY_PREFIX + self._header.replay, content)
        chosen = self._plan.chosen()
        # Sorting a large plan takes seconds, in which the connection must be served.
        while (candidate := await asyncio.to_thread(next, chosen, None)) is not None:
            request_id = request_id_of(self._header.replay, candidate)
            if self._workspace.is_published(request_id):
                yield Published(candidate, request_id, is_new=False)
            elif self._is_resumed and uncertain is None:
                uncertain = Published(candidate, request_id, is_new=True)
            else:
                yield await self._publish(publisher, Published(candidate, request_id, is_new=True))
        if uncertain is not None:
            await find_replay(reader, self._workspace, self._header.replay)
            if self._workspace.is_published(uncertain.request_id):
                yield Published(uncertain.candidate, uncertain.request_id, is_new=False)
            else:
                yield await self._publish(publisher, uncertain)

    async def _publish(self, publisher: ReplayPublisher, published: Published) -> Published:
        await self._pace.wait()
        body = body_of(published.candidate, published.request_id, self._header.force)
        await publisher.publish(published.candidate.tenant, published.request_id, body)
        return published
