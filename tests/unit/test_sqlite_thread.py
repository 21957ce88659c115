"""Transactions in threads: carried through or left out, and nothing but statements in them."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from rabbit2docker.hub.store.database import Database
from rabbit2docker.hub.store.sqlite_thread import Statements


@pytest.fixture
async def database(tmp_path: Path) -> Any:
    """A database with a table `names`."""
    found = Database(f"sqlite:///{tmp_path}/hub.sqlite")
    await found.write("x", work=statement("CREATE TABLE names (name TEXT)"))
    yield found
    await found.close()


def statement(sql: str) -> Any:
    async def execute(connection: Statements) -> None:
        await connection.execute(text(sql))

    return execute


async def names(connection: Statements) -> list[str]:
    return [name for (name,) in await connection.execute(text("SELECT name FROM names ORDER BY name"))]


async def test_a_transaction_is_undone_if_its_work_fails(database: Database) -> None:
    async def fail(connection: Statements) -> None:
        await connection.execute(text("INSERT INTO names VALUES ('half')"))
        raise ValueError("the other half is missing")

    with pytest.raises(ValueError, match="other half"):
        await database.write("x", work=fail)
    assert await database.read(names) == []


async def test_a_transaction_that_waits_for_something_else_is_an_error_and_undone(database: Database) -> None:
    async def wait(connection: Statements) -> None:
        await connection.execute(text("INSERT INTO names VALUES ('half')"))
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="something else"):
        await database.write("x", work=wait)
    assert await database.read(names) == []


async def test_a_transaction_that_has_begun_is_carried_through_when_its_task_is_cancelled(
    database: Database,
) -> None:
    has_begun, may_go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def slow(connection: Statements) -> None:
        await connection.execute(text("INSERT INTO names VALUES ('first')"))
        loop.call_soon_threadsafe(has_begun.set)
        may_go_on.wait()

    writing = asyncio.create_task(database.write("x", work=slow))
    await has_begun.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    second = asyncio.create_task(database.write("x", work=statement("INSERT INTO names VALUES ('second')")))
    assert await database.read(names) == []  # readers do not wait for a writer
    may_go_on.set()
    await second
    assert await database.read(names) == ["first", "second"]


async def test_many_readers_and_writers_get_through(database: Database) -> None:
    writes = [database.write("x", work=statement(f"INSERT INTO names VALUES ('{n:02}')")) for n in range(30)]
    await asyncio.gather(*writes, *[database.read(names) for _ in range(30)])
    assert await database.read(names) == [f"{n:02}" for n in range(30)]


async def test_a_database_that_was_closed_is_opened_again(database: Database) -> None:
    await database.close()
    await database.write("x", work=statement("INSERT INTO names VALUES ('later')"))
    assert await database.read(names) == ["later"]
