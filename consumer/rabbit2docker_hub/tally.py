"""Builds counted under the names that BinderHub's dashboards know, each once and not once a viewer.

Several instances of the service hear of the same builds, but only one at a time reads the hub's durable queue, which
holds every event of the tenant: that one counts. So the sum over all instances is right, whoever has asked, were it the
command line or a replay. A build whose beginning nobody saw is not counted: neither its provider nor its time is known.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from cachetools import LRUCache

from rabbit2docker import metrics
from rabbit2docker_hub.store.records import Build
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Cancelled, Completed, Failed

NAMES: Final = {
    "gh": "GitHub",
    "gist": "Gist",
    "git": "Git",
    "gl": "GitLab",
    "zenodo": "Zenodo",
    "figshare": "Figshare",
    "dataverse": "Dataverse",
    "hydroshare": "Hydroshare",
    "ckan": "CKAN",
}
"""BinderHub's names of providers, by prefix."""
OTHER: Final = "other"
ENDED: Final = 10_000
"""Ended builds that are remembered: a repeated event of one of them counts for nothing."""


class Tally:
    """Counts builds as their events go by."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._under_way: dict[str, tuple[str, datetime]] = {}
        self._ended: LRUCache[str, None] = LRUCache(ENDED)

    def begin(self, under_way: Iterable[Build]) -> None:
        """Take over from another instance, or from before a restart: these builds have been accepted."""
        self._under_way = {
            build.id: (build.provider, build.started_at)
            for build in under_way
            if build.started_at is not None and not build.state.is_end
        }
        self._tell()

    def stop(self) -> None:
        """Another instance counts from now on."""
        self._under_way = {}
        self._tell()

    def saw(self, events: Sequence[Event]) -> None:
        """Take events in their order; repetitions count for nothing."""
        for event in events:
            match event.data:
                case Accepted() as accepted:
                    self._accepted(accepted, event.time)
                case Completed() | Failed() | Cancelled():
                    self._end(event)
                case _:
                    continue
        self._tell()

    def _accepted(self, accepted: Accepted, at: datetime) -> None:
        # An image that exists is no build; a build that was joined has been counted, or may have ended already.
        if not accepted.cached and not accepted.attached and accepted.build_id not in self._ended:
            self._under_way.setdefault(accepted.build_id, (accepted.provider, at))

    def _end(self, event: Event) -> None:
        self._ended[event.subject] = None
        begun = self._under_way.pop(event.subject, None)
        if begun is None:
            return
        provider, since = begun
        status = _status(event)
        seconds = max(0.0, (event.time - since).total_seconds())
        metrics.BINDERHUB_BUILD_SECONDS.labels(status=status).observe(seconds)
        metrics.BINDERHUB_BUILDS.labels(status=status, provider=NAMES.get(provider, OTHER)).inc()

    def _tell(self) -> None:
        metrics.BINDERHUB_IN_PROGRESS.set(len(self._under_way))


def _status(event: Event) -> str:
    match event.data:
        case Completed():
            return "success"
        case Cancelled():
            return "cancelled"
        case _:
            return "failure"
