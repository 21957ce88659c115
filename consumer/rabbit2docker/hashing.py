"""Rendezvous hashing: all replicas that know the members agree on their order for a key, without communicating.

When a member leaves, only its keys move, each to the next member in the key's order.
"""

import hashlib
from collections.abc import Iterable


def ranked(key: str, members: Iterable[str]) -> list[str]:
    """Return the members in their order of precedence for `key`."""
    return sorted(members, key=lambda member: hashlib.sha256(f"{key} {member}".encode()).digest())
