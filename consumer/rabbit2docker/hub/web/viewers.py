"""Streams builds to viewers of BinderHub's API."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from rabbit2docker import metrics
from rabbit2docker.errors import BrokerUnavailable, TopologyMismatch
from rabbit2docker.hub.web.binderhub_stream import KEEPALIVE, BinderHubStream
from rabbit2docker.hub.web.keepalive import with_keepalive
from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker.hub.web.submissions import Builds, RateCheck, Submissions, no_rate_check
from rabbit2docker_schemas.requests import BuildRequest


class Viewers:
    """Opens streams for viewers and renders events into them."""

    def __init__(self, builds: Builds, submissions: Submissions, *, keepalive_seconds: float) -> None:
        """Take the parts; a silent stream gets a comment every `keepalive_seconds`."""
        self._builds = builds
        self._submissions = submissions
        self._keepalive_seconds = keepalive_seconds

    async def open(
        self,
        request: BuildRequest,
        resumed: BinderHubCursor | None,
        rate_check: RateCheck = no_rate_check,
    ) -> BinderHubStream:
        """Submit the request, or resume at a viewer's position. Raises what submitting raises."""
        if resumed is not None:
            metrics.HUB_REQUESTS.labels(outcome="resumed").inc()
        cursor = resumed or BinderHubCursor(await self._submissions.submit_shared(request, rate_check))
        return BinderHubStream(request.provider, request.spec, cursor)

    async def stream(self, stream: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield the rest of a stream, with comments during silence.

        Without a final event it stops only if this program closes its connection to RabbitMQ; the viewer then reconnects.
        """
        request_id = stream.cursor.request_id
        try:
            async with aclosing(self._chunks(stream)) as chunks:
                async for chunk in chunks:
                    if stream.result:
                        self._submissions.stop_sharing(request_id)
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

    async def _chunks(self, stream: BinderHubStream) -> AsyncGenerator[bytes, None]:
        """Yield events, and comments during silence."""
        items = with_keepalive(self._builds.of_request(stream.cursor.request_id), self._keepalive_seconds)
        async with aclosing(items) as events:
            async for event in events:
                yield KEEPALIVE if event is None else stream.render(event)
