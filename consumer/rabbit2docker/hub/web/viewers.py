"""Streams builds to viewers of BinderHub's API."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from rabbit2docker import metrics
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE, BinderHubStream
from rabbit2docker.hub.web.keepalive import with_keepalive
from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker.hub.web.submissions import Builds, RateCheck, Submissions, no_rate_check
from rabbit2docker_schemas.requests import BuildRequest


class Viewers:
    """Opens streams for viewers and renders events into them."""

    def __init__(self, builds: Builds, submissions: Submissions) -> None:
        """Take the parts."""
        self._builds = builds
        self._submissions = submissions

    async def open(
        self,
        request: BuildRequest,
        resumed: BinderHubCursor | None,
        rate_check: RateCheck = no_rate_check,
    ) -> BinderHubCursor:
        """Submit the request, or resume at a viewer's position; return the position. Raises what submitting raises."""
        if resumed is not None:
            metrics.HUB_REQUESTS.labels(outcome="resumed").inc()
        return resumed or BinderHubCursor(await self._submissions.submit_shared(request, rate_check))

    def render(self, stream: BinderHubStream) -> "BuildRendering":
        """Return the rest of a stream."""
        return BuildRendering(stream, self._builds, self._submissions)


class BuildRendering:
    """The events of one request, rendered into a stream."""

    def __init__(self, stream: BinderHubStream, builds: Builds, submissions: Submissions) -> None:
        """Take the stream at its position."""
        self._stream = stream
        self._builds = builds
        self._submissions = submissions

    @property
    def result(self) -> str:
        """Return the final phase; empty until then."""
        return self._stream.result

    def position(self) -> BinderHubCursor:
        """Return the position now."""
        return replace(self._stream.cursor)

    async def chunks(self, keepalive_seconds: float | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the rest of the stream, with comments during silence.

        Without a final event it stops only if this program closes its connection to RabbitMQ; the viewer then reconnects.
        """
        stream = self._stream
        items = with_keepalive(self._builds.of_request(stream.cursor.request_id), keepalive_seconds)
        try:
            async with aclosing(items) as events:
                async for event in events:
                    chunk = KEEPALIVE if event is None else stream.render(event)
                    if stream.result:
                        self._submissions.stop_sharing(stream.cursor.request_id)
                    if chunk:
                        yield chunk
                    if stream.result:
                        return
        except BrokerUnavailable:
            return
        except TopologyMismatch as error:
            yield stream.fail(f"The builds of this hub cannot be followed: {error}", 500)
            return
        yield stream.fail("The result of this build is unknown. Please try again.", 500)
