"""Settings of the queues and streams in RabbitMQ."""

from typing import Annotated

from pydantic import Field, field_validator

from rabbit2docker.settings.base import Group
from rabbit2docker_schemas.routing import RETRY_PAUSES


class TopologySettings(Group):
    """Limits of the queues and streams in RabbitMQ. They apply to what is declared from now on; what exists keeps its own."""

    requests_length: int = Field(default=10_000, ge=1)
    """Messages that may wait in each of `builds.requests`, `builds.requests.bulk`, `builds.cancels`, `builds.unrouted` and
    the `builds.waiting.<tenant>.…`. RabbitMQ does not confirm more."""
    retry_length: int = Field(default=100_000, ge=1)
    """Messages that may wait on each rung of the retry ladder."""
    retry_pauses: list[Annotated[int, Field(ge=1, le=86_400)]] = Field(
        default=list(RETRY_PAUSES), min_length=1, max_length=8
    )
    """Seconds of the pauses on the retry ladder, one rung each. Each rung has queues of its own, named by the pause: other
    pauses need other queues, and what waits in the former ones returns by itself. Delete those once they are empty."""
    delivery_limit: int = Field(default=20, ge=3)
    """Deliveries of one message that end without an answer, as by a crash, before it becomes a dead letter."""
    dead_letters_length: int = Field(default=100_000, ge=1)
    """Messages that `builds.dead` may hold."""
    dead_letters_days: int = Field(default=14, ge=1, le=3650)
    """Days after which a dead letter is deleted."""
    request_log_days: int = Field(default=30, ge=1)
    """Days for which `builds.requests.log` keeps requests for replay."""
    request_log_bytes: int = Field(default=1_000_000_000, ge=1_000_000)
    """Bytes that this stream may have; the oldest requests are deleted first."""
    cancel_log_days: int = Field(default=7, ge=1)
    """Days for which a cancel of a request that waits is known, in `builds.cancels.log`."""
    cancel_log_bytes: int = Field(default=200_000_000, ge=1_000_000)
    """Bytes that this stream may have, almost a million cancels by default; the oldest are deleted first."""
    events_days: int = Field(default=7, ge=1)
    """Days for which the stream of each tenant, `builds.results.log.<tenant>`, keeps events."""
    events_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    """Bytes that each of these streams may have; the oldest events are deleted first."""
    segment_bytes: int = Field(default=20_000_000, ge=1_000_000, le=500_000_000)
    """Bytes of one segment of a stream. Age and size limits delete whole segments, and never the last one."""
    quorum_replicas: int | None = Field(default=None, ge=1)
    """Nodes of a RabbitMQ cluster that hold a copy of each queue; unset: RabbitMQ's default, which is three."""
    stream_replicas: int | None = Field(default=None, ge=1)
    """The same for each stream."""

    @field_validator("retry_pauses")
    @classmethod
    def _check_pauses(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("the shortest pause comes first, and none twice")
        return value
