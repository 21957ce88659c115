"""Things that are made for a login, and kept for the next use of it."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

from rabbit2docker.consumer.credentials import Login

MAX_LOGINS: Final = 256
P = TypeVar("P")


class ByLogin(Generic[P]):
    """Things that are made for a login, such as clients with caches; the most recent ones are kept."""

    def __init__(self, make: Callable[[Login], P]) -> None:
        """Make one with `make`."""
        self._make = make
        self._made: LRUCache[Login, P] = LRUCache(MAX_LOGINS)

    def get(self, login: Login) -> P:
        """Return that of a login."""
        if login not in self._made:
            self._made[login] = self._make(login)
        return self._made[login]
