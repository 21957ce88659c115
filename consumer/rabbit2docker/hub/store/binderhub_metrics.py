"""Builds counted under the names that BinderHub's dashboards know: each once, not once a viewer nor once an instance.

Events are heard repeatedly: by several instances, after restarts, when the stream is read again. What happens once is the
transaction in which the store learns that a build has ended, so it is counted by whoever made that one, and the sum over
all instances is right, whoever has asked, were it the command line or a replay.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rabbit2docker import metrics
from rabbit2docker.hub.store.models import BuildState
from rabbit2docker.hub.store.projection import BuildRow
from rabbit2docker_schemas.providers import metric_label

STATUS: Final = {BuildState.COMPLETED: "success", BuildState.CANCELLED: "cancelled"}
"""BinderHub's words for ends, and one that it has not; every other end is a failure."""


class BinderHubMetrics:
    """Counts builds that have ended."""

    def __init__(self) -> None:
        """Count whatever ends."""
        self._since: datetime | None = None

    def begin(self, since: datetime | None) -> None:
        """Leave out what ended before `since`: an empty store learns of days at once, which are no news."""
        self._since = since

    def ended(self, builds: Sequence[BuildRow]) -> None:
        """Count builds of which the store has learnt just now that they have ended."""
        for build in builds:
            # An image that existed was not built; of a build whose beginning nobody saw, the time is not known.
            if build.cached or build.started_at is None or build.ended_at is None:
                continue
            if self._since is not None and build.ended_at < self._since:
                continue
            status = STATUS.get(BuildState(build.state), "failure")
            seconds = max(0.0, (build.ended_at - build.started_at).total_seconds())
            metrics.BINDERHUB_BUILD_SECONDS.labels(status=status).observe(seconds)
            provider = metric_label(build.provider)
            metrics.BINDERHUB_BUILDS.labels(status=status, provider=provider).inc()
