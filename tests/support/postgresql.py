"""A real PostgreSQL in a container, with a database of its own for each test."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.containers import Container, shared
from tests.support.waiting import eventually_blocking

IMAGE = os.environ.get("RABBIT2DOCKER_TEST_POSTGRES_IMAGE", "postgres:17")
PASSWORD = "not-a-secret"


class PostgreSQL:
    """One server in a container."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.port = container.ports[5432]

    @classmethod
    def start(cls) -> "PostgreSQL":
        """Start one and wait until it is ready."""
        # What a test writes need not survive this machine.
        command = "postgres -c fsync=off -c max_connections=400"
        server = cls(
            Container.start(IMAGE, [5432], command=command, environment={"POSTGRES_PASSWORD": PASSWORD})
        )
        eventually_blocking(server.is_ready, seconds=180)
        return server

    @classmethod
    def shared(cls) -> "PostgreSQL":
        """Return the server that all tests of a run share."""
        return cls(shared("postgresql", lambda: cls.start().container))

    def url(self, database: str, *, password: str = PASSWORD, port: int | None = None) -> str:
        return f"postgresql://postgres:{password}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def is_ready(self) -> bool:
        try:
            return bool(self.execute("SELECT 1"))
        except psycopg.OperationalError:
            return False

    def new_database(self) -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def kill(self) -> None:
        self.container.kill()

    def start_again(self) -> None:
        self.container.restart()
        eventually_blocking(self.is_ready, seconds=60)


@contextmanager
def running() -> Iterator[PostgreSQL]:
    """Run a server of one's own."""
    server = PostgreSQL.start()
    try:
        yield server
    finally:
        server.container.remove()
