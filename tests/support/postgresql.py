"""A real PostgreSQL in a container, with a database of its own for each test."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from testcontainers.core.container import DockerContainer

from tests.support.rabbitmq import free_port
from tests.support.waiting import eventually_blocking

IMAGE = os.environ.get("RABBIT2DOCKER_TEST_POSTGRES_IMAGE", "postgres:17")
PASSWORD = "not-a-secret"


class PostgreSQL:
    """One server. Its port is fixed, so that it is found again after a restart."""

    def __init__(self) -> None:
        self.port = free_port()
        self.container = DockerContainer(IMAGE).with_bind_ports(5432, self.port)
        self.container.with_env("POSTGRES_PASSWORD", PASSWORD)
        # What a test writes need not survive this machine.
        self.container.with_command("postgres -c fsync=off -c max_connections=200")

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
        self.container.get_wrapped_container().kill()

    def start_again(self) -> None:
        self.container.get_wrapped_container().start()
        eventually_blocking(self.is_ready, seconds=60)


@contextmanager
def running() -> Iterator[PostgreSQL]:
    """Run a server."""
    server = PostgreSQL()
    with server.container:
        eventually_blocking(server.is_ready, seconds=120)
        yield server
