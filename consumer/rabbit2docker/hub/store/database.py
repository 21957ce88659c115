"""The database, SQLite or PostgreSQL: connections, transactions, migrations, translated errors."""

import asyncio
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rabbit2docker.errors import ConfigurationError, StoreFull, StoreRefused, StoreUnavailable
from rabbit2docker.hub.store.sqlite_thread import SqliteThread, Work
from rabbit2docker.hub.store.tables import VERSION_TABLE

T = TypeVar("T")

MIGRATIONS: Final = Path(__file__).parent / "migrations"
ANSWER_SECONDS: Final = 30.0
"""Longest transaction; after it the database counts as unavailable."""
CONNECT_SECONDS: Final = 5
BUSY_SECONDS: Final = 20.0
"""Seconds that SQLite waits for another writer."""
POSTGRESQL: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    # Notices a connection whose packets vanish.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "rabbit2docker hub",
    # Connection poolers cannot keep prepared statements.
    "prepare_threshold": None,
}
POSTGRESQL_DISK_FULL: Final = "53100"
READING_THREADS: Final = 4
SQLITE: Final[dict[str, Any]] = {"timeout": BUSY_SECONDS, "isolation_level": None}
_MUST_BE: Final = (
    "RABBIT2DOCKER_HUB__STORE_URL must be sqlite:///file or postgresql://user:password@host/database"
)

_one_migration = threading.Lock()
"""Alembic keeps its state in module globals."""


def parse_url(url: SecretStr | str) -> URL:
    """Return the URL for the synchronous drivers. Raises ConfigurationError."""
    try:
        parsed = make_url(url.get_secret_value() if isinstance(url, SecretStr) else url)
    except (ArgumentError, ValueError):
        # Not even as the cause: its text may contain the password.
        raise ConfigurationError(f"{_MUST_BE}.") from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:" and not parsed.host:
            return parsed.set(drivername="sqlite")
        case "postgresql" | "postgres" if parsed.database:
            return parsed.set(drivername="postgresql+psycopg")
    raise ConfigurationError(f"{_MUST_BE}; memory cannot be shared.")


def lock_key(*parts: str) -> int:
    """Return the 64-bit number of an advisory lock in PostgreSQL."""
    digest = hashlib.sha256("/".join(("rabbit2docker", *parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], signed=True)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Return whether a log entry is about more than a cancelled task, whose connection the pool closes."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _prepare_sqlite(engine: Engine, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _blocking_engine(url: URL) -> Engine:
    """Return an engine for work in a thread, which keeps no connection."""
    return create_engine(url, poolclass=NullPool, connect_args=SQLITE if _is_sqlite(url) else POSTGRESQL)


def migrate(url: URL, to: str = "head") -> None:
    """Create the tables, or migrate them to a revision, one program at a time. Blocks.

    `to`: `head`, an older revision to go back to, or `base`, which removes the tables.
    """
    is_sqlite, engine = _is_sqlite(url), _blocking_engine(url)
    if is_sqlite:
        _prepare_sqlite(engine, "BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _one_migration, engine.begin() as connection:
        if not is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key("migrations")})
        config.attributes["connection"] = connection
        is_back = to != "head" and _is_older(config, to, revision_of(connection))
        (command.downgrade if is_back else command.upgrade)(config, to)


def migrate_to(url: SecretStr | str, to: str) -> tuple[str | None, str | None]:
    """Migrate the tables; return the revisions before and after. Blocks.

    Raises ConfigurationError for an unknown revision or an invalid URL, StoreUnavailable if the database is away.
    """
    database = Database(url)
    try:
        with database.translated():
            before = database.revision()
            migrate(parse_url(url), to)
            return before, database.revision()
    except UnknownRevision as error:
        raise ConfigurationError(
            f"This version knows no revision {to!r} of the tables, or not the one they have ({error})."
        ) from None


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the tables; None if there are none."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _is_older(config: Config, to: str, current: str | None) -> bool:
    """Return whether a revision comes before the current one. Raises CommandError if there is no such revision."""
    script = ScriptDirectory.from_config(config)
    if to != "base":
        script.get_revision(to)
    if current is None or to == current:
        return False
    return to == "base" or to in {each.revision for each in script.iterate_revisions(current, "base")}


class UnknownRevision(StoreUnavailable):
    """The tables are those of another version, or a revision is asked for that this one lacks."""


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether a driver's error says that the database has no space left."""
    return (
        getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        or getattr(error, "sqlstate", "") == POSTGRESQL_DISK_FULL
    )


class Database:
    """Transactions on one database. The first one that gets through creates or migrates the tables."""

    def __init__(self, url: SecretStr | str) -> None:
        """Take the URL. Raises ConfigurationError if it is not one that the store supports."""
        self._url = parse_url(url)
        self.is_sqlite = _is_sqlite(self._url)
        self._reader, self._writer = self._engines()
        for engine in (self._reader, self._writer):
            # The pool reports a task that is cancelled at the wrong moment as an error, although nothing is lost.
            if isinstance(engine.pool.logger, logging.Logger):
                engine.pool.logger.addFilter(_is_no_cancellation)
        self._threads = self._thread_engines() if self.is_sqlite else None
        self._writing = asyncio.Lock()
        self._preparing = asyncio.Lock()
        self._is_prepared = False
        self.is_full = False
        """True after a transaction that found the disk full, until another one has been written."""

    def _engines(self) -> tuple[AsyncEngine, AsyncEngine]:
        if not self.is_sqlite:
            engine = create_async_engine(
                self._url, connect_args=POSTGRESQL, pool_pre_ping=True, pool_size=4, max_overflow=4
            )
            return engine, engine
        url = self._url.set(drivername="sqlite+aiosqlite")
        reader = create_async_engine(url, connect_args=SQLITE, pool_size=4, max_overflow=0)
        writer = create_async_engine(url, connect_args=SQLITE, pool_size=1, max_overflow=0)
        _prepare_sqlite(reader.sync_engine, "BEGIN")
        # A transaction that reads before it writes fails if another one has written in between.
        _prepare_sqlite(writer.sync_engine, "BEGIN IMMEDIATE")
        return reader, writer

    def _thread_engines(self) -> tuple[SqliteThread, SqliteThread]:
        def make(begin: str, threads: int) -> Engine:
            engine = create_engine(self._url, connect_args=SQLITE, pool_size=threads, max_overflow=0)
            _prepare_sqlite(engine, begin)
            return engine

        reader = SqliteThread(partial(make, "BEGIN", READING_THREADS), threads=READING_THREADS)
        return reader, SqliteThread(partial(make, "BEGIN IMMEDIATE", 1), threads=1)

    @property
    def address(self) -> str:
        """Address without user and password, as text for people."""
        if self.is_sqlite:
            return str(self._url.database)
        host = self._url.host or self._url.query.get("host") or "its socket"
        return f"{host}:{self._url.port or 5432}/{self._url.database}"

    def revision(self) -> str | None:
        """Return the revision of the tables; None if there are none. Blocks. Raises StoreUnavailable."""
        with self.translated(), _blocking_engine(self._url).connect() as connection:
            return revision_of(connection)

    def compact(self) -> None:
        """Return the space of deleted rows to the disk; PostgreSQL does so by itself. Blocks. Raises StoreUnavailable."""
        if not self.is_sqlite:
            return
        with self.translated(), _blocking_engine(self._url).connect() as connection:
            # VACUUM runs outside of transactions only.
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                alone.exec_driver_sql(statement)

    async def close(self) -> None:
        """Close all connections."""
        for thread in self._threads or ():
            thread.close()
        for engine in {self._reader, self._writer}:
            await engine.dispose()

    async def prepare(self) -> None:
        """Create or migrate the tables. Raises StoreUnavailable."""
        with self.translated():
            await self._prepare()

    async def _prepare(self) -> None:
        if not self._is_prepared:
            async with self._preparing:
                if not self._is_prepared:
                    await asyncio.to_thread(migrate, self._url)
                    self._is_prepared = True

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for reading. Raises StoreUnavailable."""
        with self.translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._prepare()
                async with self._reader.begin() as connection:
                    yield connection

    @asynccontextmanager
    async def writing(self, *lock: str) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for writing. Transactions with the same lock exclude each other, in this program and others.

        SQLite has one at a time anyway. Raises StoreUnavailable, or StoreRefused for values that can never be written.
        """
        with self.translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._prepare()
                if self.is_sqlite:
                    async with self._writing, self._writer.begin() as connection:
                        yield connection
                else:
                    async with self._writer.begin() as connection:
                        taking = text("SELECT pg_advisory_xact_lock(:key)")
                        await connection.execute(taking, {"key": lock_key(*lock)})
                        yield connection
            self.is_full = False

    async def read(self, work: Work[T]) -> T:
        """Return the result of a transaction that reads. Raises StoreUnavailable."""
        if self._threads is None:
            async with self.reading() as connection:
                return await work(connection)
        with self.translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._prepare()
                return await self._threads[0].run(work)

    async def write(self, *lock: str, work: Work[T]) -> T:
        """Return the result of a transaction as of `writing`, after which nothing is left to be done."""
        if self._threads is None:
            async with self.writing(*lock) as connection:
                return await work(connection)
        with self.translated():
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._prepare()
                async with self._writing:
                    result = await self._threads[1].run(work)
            self.is_full = False
        return result

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the errors of libraries as the store's own."""
        try:
            yield
        except (DataError, IntegrityError, OverflowError) as error:
            raise StoreRefused(f"The database {self.address} refuses: {self._words(error)}") from None
        except TimeoutError:
            raise StoreUnavailable(f"The database {self.address} does not answer.") from None
        except CommandError as error:
            raise UnknownRevision(
                f"The tables of the database {self.address} are those of another version: {error}"
            ) from None
        except StatementError as error:
            if not isinstance(error, DBAPIError):  # a value that the driver cannot send
                raise StoreRefused(f"The database {self.address} refuses: {self._words(error)}") from None
            if disk_is_full(error.orig):
                self.is_full = True
                raise StoreFull(
                    f"The disk of the database {self.address} is full: {self._words(error)}. Free some space there, then "
                    "delete old builds with `rabbit2docker store prune`."
                ) from None
            raise StoreUnavailable(f"The database {self.address} is away: {self._words(error)}") from None
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(f"The database {self.address} is away: {self._words(error)}") from None

    def _words(self, error: BaseException) -> str:
        """Return the driver's message without the statement, its values and the password."""
        cause = error.orig if isinstance(error, StatementError) and error.orig else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        words = lines[0] if lines else type(cause).__name__
        password = str(self._url.password or "")
        return words.replace(password, "…") if password else words
