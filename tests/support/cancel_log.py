"""A log of cancels in memory, which any number of replicas may share."""

from collections.abc import Callable


class MemoryCancelLog:
    """Implements `CancelLog`."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str, str]] = []
        self._listeners: list[Callable[[str, str, str], None]] = []

    def subscribe(self, on_cancel: Callable[[str, str, str], None]) -> None:
        self._listeners.append(on_cancel)
        for cancel in self.recorded:
            on_cancel(*cancel)

    async def record(self, tenant: str, build_id: str, by: str) -> None:
        self.recorded.append((tenant, build_id, by))
        for listener in self._listeners:
            listener(tenant, build_id, by)
