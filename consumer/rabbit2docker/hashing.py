"""Rendezvous hashing: everybody who knows the members agrees on their order for a key, without talking.

When a member leaves, only its keys move, each to the next in its own order.
"""

import hashlib
from collections.abc import Iterable


def ranked(key: str, members: Iterable[str]) -> list[str]:
    """Return the members in the order in which they should have `key`."""
    return sorted(members, key=lambda member: hashlib.sha256(f"{key} {member}".encode()).digest())
