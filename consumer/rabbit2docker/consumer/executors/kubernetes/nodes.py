"""The nodes of the cluster, read now and then where tenants have nodes of their own: which of them may run a build."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

import structlog
from pydantic import ValidationError

from rabbit2docker.consumer.executors.kubernetes.client import ApiClient, ApiStatusError
from rabbit2docker.consumer.executors.kubernetes.models import Manifest, Node, NodeList, Taint
from rabbit2docker.consumer.executors.kubernetes.placement import node_labels, tolerations
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.errors import ExecutorUnavailable
from rabbit2docker.settings import Settings
from rabbit2docker.settings.tenants import TenantSettings

log = structlog.get_logger()

READ_SECONDS: Final = 60.0
"""Labels and taints change seldom, and all that follows from them is which caches are preferred."""
_PAGE_NODES: Final = 100
_CLOSED: Final = frozenset(("NoSchedule", "NoExecute"))
"""Effects of taints that keep pods away; others only make the node a worse choice."""


class Nodes:
    """Knows which nodes a tenant's builds may run on, as far as the cluster lets the service read that."""

    def __init__(self, api: ApiClient, settings: Settings) -> None:
        """Prepare; `run` reads."""
        self._api = api
        self._settings = settings
        self._known: dict[str, Node] | None = None
        self._failed = False

    @property
    def is_needed(self) -> bool:
        """Return whether a tenant has nodes of its own: otherwise builds may run wherever there is an engine."""
        tenants = self._settings.tenants.values()
        return any(tenant.node_selector or tenant.tolerations for tenant in tenants)

    async def run(self) -> None:
        """Read until cancelled. A problem costs no build: the nodes known before count, or all of them."""
        while True:
            try:
                await self._read()
                self._failed = False
            except (ExecutorUnavailable, ApiStatusError, ValidationError) as error:
                if not self._failed:
                    log.warning("nodes not read: caches outside of a tenant's nodes count", error=str(error))
                self._failed = True
            await asyncio.sleep(READ_SECONDS)

    async def _read(self) -> None:
        listing = self._api.pages(
            "/api/v1/nodes",
            NodeList.model_validate_json,
            priority=CallPriority.READ,
            size=_PAGE_NODES,
            # Answered from the API server's cache; what is a little old serves as well.
            query={"resourceVersion": "0"},
        )
        async with aclosing(listing) as pages:
            self._known = {node.metadata.name: node async for page in pages for node in page.items}

    def where(self, tenant: str, names: Iterable[str]) -> list[str]:
        """Return those of the nodes that a tenant's builds may run on; all of them where that is not known."""
        if self._known is None:
            return list(names)
        kubernetes = self._settings.kubernetes
        chosen = self._settings.tenants.get(tenant, TenantSettings())
        labels, tolerated = node_labels(kubernetes, chosen), tolerations(kubernetes, chosen)
        return [
            name
            for name in names
            if (node := self._known.get(name)) is not None and admits(node, labels, tolerated)
        ]


def admits(node: Node, labels: dict[str, str], tolerated: Iterable[Manifest]) -> bool:
    """Return whether the scheduler may put a pod on a node, by its labels and taints."""
    tolerated = list(tolerated)
    has_labels = labels.items() <= node.metadata.labels.items()
    closed = [taint for taint in node.spec.taints if taint.effect in _CLOSED]
    return has_labels and all(any(_tolerates(each, taint) for each in tolerated) for taint in closed)


def _tolerates(toleration: Manifest, taint: Taint) -> bool:
    """Follow the rules of the API: no key and `Exists` is every taint, no effect is every effect."""
    key, effect = toleration.get("key"), toleration.get("effect")
    if effect and effect != taint.effect:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return not key or key == taint.key
    return bool(key == taint.key and (toleration.get("value") or "") == taint.value)
