"""Deletion of old builds and logs from the hub's store, and migrations of its database forward and back."""

import asyncio
import json
import pkgutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from rabbit2docker.cli import main
from rabbit2docker.errors import ConfigurationError, StoreFull, StoreUnavailable
from rabbit2docker.hub.health import DatabaseCheck
from rabbit2docker.hub.store import database
from rabbit2docker.hub.store.database import migrate, migrate_to, parse_url
from rabbit2docker.hub.store.migrations import versions
from rabbit2docker.hub.store.models import BuildQuery
from rabbit2docker.hub.store.prune import StoredBuild, plan_prune
from rabbit2docker.hub.store.sqlite_thread import Statements
from rabbit2docker.hub.store.store import Store
from rabbit2docker_schemas.events import AnyEventData, Gap
from rabbit2docker_schemas.ids import build_id_of
from tests.contract.test_binder_stream import accepted, completed, lines
from tests.support.hub_api import happened
from tests.support.hub_service import a_store

HEAD = max(module.name for module in pkgutil.iter_modules(versions.__path__))[1:5]

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def stored(name: str, days: float | None, log_bytes: int = 100, *, last: float | None = None) -> StoredBuild:
    """Return a build that ended so many days ago."""
    ended = None if days is None else NOW - timedelta(days=days)
    return StoredBuild(name, ended, NOW - timedelta(days=last if last is not None else days or 0), log_bytes)


def names(builds: list[StoredBuild]) -> list[str]:
    return [build.id for build in builds]


class TestPlan:
    def test_builds_that_ended_before_the_moment_are_deleted(self) -> None:
        builds = [stored("new", 1), stored("old", 40), stored("running", None, last=0)]
        plan = plan_prune(builds, ended_before=NOW - timedelta(days=30), max_log_bytes=0)
        assert (names(plan.builds), names(plan.logs), plan.log_bytes) == (["old"], [], 100)

    def test_a_build_that_never_reported_its_end_is_deleted_a_day_later(self) -> None:
        builds = [stored("lost", None, last=32), stored("late", None, last=30.5)]
        plan = plan_prune(builds, ended_before=NOW - timedelta(days=30), max_log_bytes=0)
        assert names(plan.builds) == ["lost"]

    @pytest.mark.parametrize(
        ("limit", "logs"),
        [(0, []), (400, []), (399, ["a"]), (300, ["a"]), (299, ["a", "b"]), (1, ["a", "b", "c"])],
    )
    def test_the_logs_of_the_builds_that_ended_first_make_room(self, limit: int, logs: list[str]) -> None:
        builds = [stored("c", 1), stored("a", 3), stored("running", None), stored("b", 2)]
        plan = plan_prune(builds, ended_before=None, max_log_bytes=limit)
        assert (names(plan.builds), names(plan.logs)) == ([], logs)

    def test_logs_of_builds_that_are_deleted_anyway_do_not_count(self) -> None:
        builds = [stored("old", 40, 1000), stored("a", 3), stored("b", 2), stored("empty", 5, 0)]
        plan = plan_prune(builds, ended_before=NOW - timedelta(days=30), max_log_bytes=150)
        assert (names(plan.builds), names(plan.logs), plan.log_bytes) == (["old"], ["a"], 1100)


async def fill(store: Store, *requests: str) -> None:
    """Record a build with a log of 20 lines for each request."""
    for request in requests:
        text = [f"line {number} of {request}" for number in range(20)]
        events: list[AnyEventData] = [accepted(), lines(0, *text), completed(attempt=1, lines=20)]
        await store.put(happened(request, *events))


async def log_of(store: Store, request: str) -> list[str]:
    return [line.text async for line in store.lines(build_id_of("default", request))]


async def pragma(store: Store, content: str) -> int:
    """Set or read a value of the connection that writes."""

    async def execute(connection: Statements) -> int:
        return int((await connection.execute(text(f"PRAGMA {content}"))).scalar_one())

    return await store._database.write("builds", work=execute)


class TestStore:
    async def test_logs_beyond_the_limit_are_deleted_and_read_as_a_gap(self, tmp_path: Path) -> None:
        async with a_store(tmp_path) as store:
            await fill(store, "first", "second")
            whole = sum(
                build.log_bytes
                for build in (
                    await store.prune(
                        ended_before=datetime.now(UTC) + timedelta(days=1), max_log_bytes=0, dry_run=True
                    )
                ).builds
            )
            plan = await store.limit_logs(whole - 1)
            assert names(plan.logs) == [build_id_of("default", "first")]
            assert (await log_of(store, "first"), len(await log_of(store, "second"))) == ([], 20)
            events = [event async for event in store.events(build_id_of("default", "first"))]
            assert [event.kind for event in events] == ["accepted", "gap", "completed"]
            gap = events[1].data
            assert isinstance(gap, Gap)
            assert (gap.first, gap.last) == (0, 19)
            # Lines that RabbitMQ delivers again do not come back.
            await fill(store, "first")
            assert await log_of(store, "first") == []
            assert not (await store.limit_logs(whole - 1)).logs

    async def test_a_dry_run_deletes_nothing(self, tmp_path: Path) -> None:
        async with a_store(tmp_path) as store:
            await fill(store, "one")
            tomorrow = datetime.now(UTC) + timedelta(days=1)
            plan = await store.prune(ended_before=tomorrow, max_log_bytes=1, dry_run=True)
            assert len(plan.builds) == len((await store.builds(BuildQuery())).builds) == 1
            await store.prune(ended_before=tomorrow, max_log_bytes=1)
            assert not (await store.builds(BuildQuery())).builds

    async def test_a_file_that_is_in_use_cannot_be_compacted_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(database.SQLITE, "timeout", 0.05)
        async with a_store(tmp_path) as store:
            await fill(store, "one")
            with sqlite3.connect(tmp_path / "hub.sqlite", isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="locked"):
                    store.compact()
                other.execute("ROLLBACK")
            store.compact()

    async def test_a_full_disk_is_said_in_words_until_there_is_space(self, tmp_path: Path) -> None:
        async with a_store(tmp_path) as store:
            check = DatabaseCheck(store)
            check._cache_seconds = 0.0
            await fill(store, "one")
            assert (await check.check()).ok
            # SQLite's own limit ends in the same error as a disk without space.
            pages = await pragma(store, "page_count")
            await pragma(store, f"max_page_count = {pages}")
            with pytest.raises(StoreFull, match="is full"):
                await fill(store, *map(str, range(200)))
            found = await check.check()
            assert not found.ok
            assert "disk is full" in found.detail
            await pragma(store, "max_page_count = 1000000")
            await fill(store, "another")
            assert (await check.check()).ok


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'hub.sqlite'}"
    monkeypatch.setenv("RABBIT2DOCKER_HUB__STORE_URL", url)
    return url


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    """Run a command in this process; return its exit code and output."""
    monkeypatch.setattr("sys.argv", ["rabbit2docker", "store", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


class TestMigrate:
    def test_the_tables_go_back_and_forward(self, url: str, tmp_path: Path) -> None:
        assert migrate_to(url, "head") == (None, HEAD)
        assert migrate_to(url, "head") == (HEAD, HEAD)
        assert migrate_to(url, "base") == (HEAD, None)
        with sqlite3.connect(tmp_path / "hub.sqlite") as connection:
            left = {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
        assert {name for name in left if name.startswith("r2d_")} == {"r2d_version"}
        assert migrate_to(url, "0001") == (None, "0001")

    def test_an_unknown_revision_changes_nothing(self, url: str) -> None:
        migrate(parse_url(url))
        with pytest.raises(ConfigurationError, match="'0099'"):
            migrate_to(url, "0099")
        assert migrate_to(url, "head") == (HEAD, HEAD)


class TestCommands:
    def test_migrate_reports_where_the_tables_were_and_are(
        self, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code, printed = command(capsys, monkeypatch, "migrate", "--json")
        assert (code, json.loads(printed)) == (0, {"from": None, "to": HEAD})
        code, printed = command(capsys, monkeypatch, "migrate", "--to", "base", "--yes")
        assert (code, f"were at {HEAD} and are at base" in printed) == (0, True)
        code, printed = command(capsys, monkeypatch, "migrate", "--to", "0099")
        assert (code, "Error" in printed) == (78, True)

    def test_prune_deletes_and_reports(
        self,
        url: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def filled() -> None:
            async with a_store(tmp_path) as store:
                await fill(store, *map(str, range(30)))

        asyncio.run(filled())
        size = (tmp_path / "hub.sqlite").stat().st_size
        code, printed = command(capsys, monkeypatch, "prune", "--older-than", "0s", "--dry-run", "--json")
        said = json.loads(printed)
        assert (code, said["builds"], said["logs"], said["dry_run"]) == (0, 30, 0, True)
        assert said["log_bytes"] > 0
        code, printed = command(capsys, monkeypatch, "prune", "--max-log-bytes", "1")
        assert (code, "0 builds and the logs of 30 others deleted" in printed) == (0, True)
        code, printed = command(capsys, monkeypatch, "prune", "--older-than", "0s", "--json")
        assert (code, json.loads(printed)["builds"]) == (0, 30)
        assert (tmp_path / "hub.sqlite").stat().st_size < size

        def is_full(store: Store) -> None:
            raise StoreFull("no space for a copy")

        monkeypatch.setattr(Store, "compact", is_full)
        code, printed = command(capsys, monkeypatch, "prune")
        assert (code, "The file keeps its size" in printed) == (0, True)
        code, printed = command(capsys, monkeypatch, "prune", "--older-than", "soon")
        assert (code, "--older-than" in printed) == (64, True)
