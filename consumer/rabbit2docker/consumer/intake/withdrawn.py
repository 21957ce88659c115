"""Requests that were cancelled before they became builds, in bounded memory."""

import os
from hashlib import blake2b
from typing import Final

from cachetools import LRUCache

MAX_WITHDRAWN: Final = 1_000_000
"""Requests that are remembered. A million take about 70 MB."""
MAX_NAMES: Final = 10_000
UNNAMED_REQUESTER: Final = "an unnamed requester"


class WithdrawnRequests:
    """A set of requests that forgets the oldest ones beyond its limit, and the cancelling requesters earlier."""

    def __init__(self, limit: int = MAX_WITHDRAWN) -> None:
        """Start empty."""
        self._limit = limit
        # Digests of 64 bits fit many into memory; with a secret key, none can be made to collide.
        self._key = os.urandom(16)
        self._recent: set[int] = set()
        self._older: set[int] = set()
        self._names: LRUCache[int, str] = LRUCache(MAX_NAMES)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self._recent) + len(self._older)

    def add(self, tenant: str, build_id: str, by: str) -> None:
        """Remember the request that would start this build, and its cancelling requester."""
        digest = self._digest(tenant, build_id)
        if digest in self._recent or digest in self._older:
            return
        if len(self._recent) >= self._limit // 2:
            self._older, self._recent = self._recent, set()
        self._recent.add(digest)
        self._names[digest] = by

    def by(self, tenant: str, build_id: str) -> str | None:
        """Return the requester that cancelled it; None if no one did."""
        digest = self._digest(tenant, build_id)
        if digest not in self._recent and digest not in self._older:
            return None
        return self._names.get(digest, UNNAMED_REQUESTER)

    def _digest(self, tenant: str, build_id: str) -> int:
        text = f"{tenant}/{build_id}".encode(errors="surrogatepass")
        return int.from_bytes(blake2b(text, digest_size=8, key=self._key).digest())
