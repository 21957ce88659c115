"""Whole transactions of SQLite in threads: each statement of the asynchronous driver wakes its thread four times."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Executable

T = TypeVar("T")


class Statements(Protocol):
    """A transaction as its work sees it, whichever driver is behind it."""

    async def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """Execute a statement, once for each row of parameters, and return SQLAlchemy's result."""


Work = Callable[[Statements], Coroutine[Any, Any, T]]
"""The statements of a transaction. Awaits nothing else."""


class _Blocking:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        return self._connection.execute(statement, parameters)


class SqliteThread:
    """Runs transactions one after the other, or as many at once as it has threads."""

    def __init__(self, make_engine: Callable[[], Engine], *, threads: int) -> None:
        """Take what makes an engine with a connection for each thread; it is called in one of them, as it may block."""
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._making = Lock()
        self._new_threads = partial(ThreadPoolExecutor, threads, thread_name_prefix="sqlite")
        self._threads = self._new_threads()

    def run(self, work: Work[T]) -> Awaitable[T]:
        """Run a transaction and return what its work returns. Once it has begun, it is carried through, even if cancelled."""
        return asyncio.get_running_loop().run_in_executor(self._threads, self._transact, work)

    def _transact(self, work: Work[T]) -> T:
        with self._making:
            engine = self._engine = self._engine or self._make_engine()
        with engine.begin() as connection:
            return _run_through(work(_Blocking(connection)))

    def close(self) -> None:
        """Close the connections that are not in use; transactions under way end by themselves, and later ones connect anew."""
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()
        if self._engine is not None:
            self._engine.dispose()


def _run_through(steps: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing."""
    try:
        steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    raise RuntimeError("a transaction has waited for something else than its database")
