"""Build counts under the metric names of BinderHub's dashboards: each build once, whatever the number of instances.

Events arrive repeatedly: at several instances, after restarts, when the stream is read again. The transaction in which
the store learns that a build has ended happens once. The instance that commits it counts the build, so the sum over all
instances is right for every requester, the command line and replays included.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rabbit2docker import metrics
from rabbit2docker.hub.store.models import BuildState
from rabbit2docker.hub.store.projection import BuildRow
from rabbit2docker_schemas.providers import metric_label

STATUS: Final = {BuildState.COMPLETED: "success", BuildState.CANCELLED: "cancelled"}
"""Label values for ends; `cancelled` is not BinderHub's. Every other end is a failure."""


class BinderHubMetrics:
    """Counts builds that have ended."""

    def __init__(self) -> None:
        """Count every build from the start."""
        self._since: datetime | None = None

    def begin(self, since: datetime | None) -> None:
        """Leave out builds that ended before `since`: an empty store reads days of history at once."""
        self._since = since

    def ended(self, builds: Sequence[BuildRow]) -> None:
        """Count builds whose end was stored just now."""
        for build in builds:
            # A cached image was not built, and a build without a known beginning has no duration.
            if build.cached or build.started_at is None or build.ended_at is None:
                continue
            if self._since is not None and build.ended_at < self._since:
                continue
            status = STATUS.get(BuildState(build.state), "failure")
            seconds = max(0.0, (build.ended_at - build.started_at).total_seconds())
            metrics.BINDERHUB_BUILD_SECONDS.labels(status=status).observe(seconds)
            provider = metric_label(build.provider)
            metrics.BINDERHUB_BUILDS.labels(status=status, provider=provider).inc()
