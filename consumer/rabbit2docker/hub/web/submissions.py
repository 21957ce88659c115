"""Submits requests for builds; viewers that want the same build at the same moment share one request."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol
from weakref import WeakValueDictionary

import structlog

from rabbit2docker import metrics
from rabbit2docker.errors import BrokerUnavailable, Rabbit2DockerError, StoreRefused, StoreUnavailable
from rabbit2docker.hub.store.models import BuildRecords
from rabbit2docker.hub.web.resume import new_request_id
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Rejected
from rabbit2docker_schemas.ids import RequestId, request_event_id
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority

log = structlog.get_logger()

RECORD_SECONDS: Final = 5.0
"""A build is requested without a record if the database takes longer than this."""
CONFIRM_SECONDS: Final = 20.0
"""RabbitMQ may take this long to confirm a request."""

RateCheck = Callable[[], Awaitable[None]]
"""Raises HttpError if the client must not make another request."""


async def no_rate_check() -> None:
    """Allow the request."""


class Builds(Protocol):
    """The part of `BuildEvents` that the web side uses; tests have one in memory."""

    async def submit(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Publish a request for a build. Raises BrokerUnavailable."""

    async def cancel(self, id_: str, *, by: str, spare_joined: bool = False) -> None:
        """Cancel a build, or withdraw a request, by the id of either. Raises BrokerUnavailable.

        `spare_joined`: if the request has joined a build of others, that build continues.
        """

    def of_request(self, request_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a request, made at `since`, and of its build, to the end."""

    def of_build(self, build_id: str, *, since: datetime | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a build, requested at `since`, from its beginning to its end."""


@dataclass(slots=True)
class _SharedRequest:
    request_id: str
    expires_at: float
    submitting: "asyncio.Task[RequestId]"
    requesters: set[str | None]


class Submissions:
    """Publishes requests and records them."""

    def __init__(
        self,
        builds: Builds,
        records: BuildRecords,
        *,
        tenant: str,
        share_seconds: float,
    ) -> None:
        """Take the parts; requests for the same spec within `share_seconds` become one."""
        self._builds = builds
        self._records = records
        self._tenant = tenant
        self._share_seconds = share_seconds
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._shared: dict[tuple[str, str], _SharedRequest] = {}

    async def submit_shared(self, request: BuildRequest, rate_check: RateCheck = no_rate_check) -> str:
        """Return the id of a recent request for the same spec, or of a new one if `rate_check` allows it.

        Raises BrokerUnavailable, AccessRefused, TopologyMismatch, or what `rate_check` raises.
        """
        key = (request.provider, request.spec)
        # One at a time: of many concurrent viewers, the first one that is allowed submits, and the others share.
        async with self._locks.setdefault(key, asyncio.Lock()):
            self._drop_expired(asyncio.get_running_loop().time())
            shared = self._shared.get(key)
            if shared is None:
                await rate_check()
                shared = self._shared[key] = self._start(request)
            else:
                metrics.HUB_REQUESTS.labels(outcome="shared").inc()
        try:
            # The viewer that submitted may disconnect while others wait for the same confirmation.
            await asyncio.shield(shared.submitting)
        except Rabbit2DockerError:
            self.stop_sharing(shared.request_id)
            raise
        if request.requester is not None and request.requester not in shared.requesters:
            shared.requesters.add(request.requester)
            await self._record(self._records.record_share(shared.request_id, request.requester))
        return shared.request_id

    def _start(self, request: BuildRequest) -> _SharedRequest:
        request_id = new_request_id(request.provider, request.spec)
        named = request.model_copy(update={"request_id": request_id})
        submitting = asyncio.create_task(self.submit(named), name=f"submit {request_id}")
        submitting.add_done_callback(lambda task: task.cancelled() or task.exception())
        expires_at = asyncio.get_running_loop().time() + self._share_seconds
        return _SharedRequest(request_id, expires_at, submitting, {request.requester})

    async def submit(
        self,
        request: BuildRequest,
        *,
        at: datetime | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> RequestId:
        """Record a request and publish it under its own id. Raises BrokerUnavailable and what publishing raises."""
        await self._record(self._records.record_request(request, at=at or datetime.now(UTC)))
        outcome = "unavailable"
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                confirmed = await self._builds.submit(request, priority)
            outcome = "asked"
            return confirmed
        except TimeoutError as error:
            await self._record_unconfirmed(request)
            raise BrokerUnavailable("RabbitMQ does not answer.") from error
        except Rabbit2DockerError:
            await self._record_unconfirmed(request)
            raise
        finally:
            metrics.HUB_REQUESTS.labels(outcome=outcome).inc()

    async def _record_unconfirmed(self, request: BuildRequest) -> None:
        """Record that RabbitMQ did not confirm a request, so that it does not look queued indefinitely.

        If RabbitMQ took it nevertheless, the later `accepted` event supersedes this record.
        """
        rejected = Rejected(
            request_id=str(request.request_id),
            reason=RejectReason.UNAVAILABLE,
            message="RabbitMQ did not confirm the request. Try again in a minute.",
            retryable=True,
        )
        event_id = request_event_id(self._tenant, rejected.request_id, rejected.kind)
        event = Event(event_id, self._tenant, datetime.now(UTC), rejected)
        await self._record(self._records.put([event]))

    async def _record(self, recording: Awaitable[None]) -> None:
        """Wait for a record to be written, but do not let an unavailable database prevent a build.

        The build's events wait in the hub's queue until the database is back, and `accepted` names the requester.
        """
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                await recording
        except (StoreUnavailable, StoreRefused, TimeoutError) as error:
            log.warning("request not recorded", reason=str(error) or "timeout")

    def _drop_expired(self, now: float) -> None:
        for key in [key for key, shared in self._shared.items() if shared.expires_at <= now]:
            del self._shared[key]

    def stop_sharing(self, request_id: str) -> None:
        """Let the next viewer of the same spec make a new request, since this one has ended."""
        for key in [key for key, shared in self._shared.items() if shared.request_id == request_id]:
            del self._shared[key]
