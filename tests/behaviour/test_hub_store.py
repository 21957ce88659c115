"""The guarantees of the hub's store, with SQLite and with a real PostgreSQL."""

import asyncio
import itertools
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import NullPool, create_engine, inspect, text

from rabbit2docker.errors import ConfigurationError, StoreFull, StoreRefused, StoreUnavailable
from rabbit2docker.hub.store.database import Database, migrate, migrate_to, parse_url
from rabbit2docker.hub.store.models import Build, BuildQuery, BuildState
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.store.tables import VERSION_TABLE, metadata
from rabbit2docker_schemas import ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    BuildOptions,
    Cancelled,
    Completed,
    Failed,
    Gap,
    Log,
    LogLine,
    Phase,
    Progress,
    ProgressDetail,
    Rejected,
    Timings,
)
from rabbit2docker_schemas.reasons import Category, FailureReason, RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from tests.support import postgresql
from tests.support.postgresql import PostgreSQL
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.docker

MORNING = datetime(2026, 1, 5, 9, tzinfo=UTC)
BUILD = ids.build_id_of("default", "r")
OTHER = ids.build_id_of("default", "joins")

BUILD_OF_VERSION_1 = (
    "INSERT INTO r2d_builds (id, tenant, state, request_id, provider, spec, requested_at, last_event_at,"
    " image, cached, attempt, message, outcome)"
    " VALUES (:build, 'default', 'completed', 'r', 'gh', 'a/b/HEAD', 1, 2, 'an-image', false, 1, '',"
    """ '{"kind": "completed", "timings": {}}')""",
    "INSERT INTO r2d_requests (tenant, id, own_id, build_id, provider, spec)"
    " VALUES ('default', 'r', :build, :build, 'gh', 'a/b/HEAD')",
)


def at(seconds: float) -> datetime:
    return MORNING + timedelta(seconds=seconds)


def event(id_: ids.EventId, data: Any, seconds: float) -> Event:
    return Event(id_, "default", at(seconds), data)


def accepted(request_id: str = "r", build_id: str = BUILD, *, seconds: float = 1, **more: Any) -> Event:
    data = Accepted(
        request_id=request_id,
        build_id=build_id,
        build_name="b",
        provider="gh",
        spec="owner/repository/HEAD",
        resolved_ref="0",
        repo_url="https://example.org/owner/repository",
        image="registry/image:0",
        attached=build_id != ids.build_id_of("default", request_id),
        **more,
    )
    return event(ids.request_event_id("default", request_id, "accepted"), data, seconds)


def rejected(request_id: str = "r", *, seconds: float = 1) -> Event:
    data = Rejected(request_id=request_id, reason=RejectReason.NOT_ALLOWED, message="No.")
    return event(ids.request_event_id("default", request_id, "rejected"), data, seconds)


def progress(about: str, *, seconds: float, phase: Phase = Phase.BUILDING, attempt: int = 1) -> Event:
    data = Progress(build_id=BUILD, attempt=attempt, phase=phase, message=about)
    return event(ids.progress_event_id(BUILD, attempt, about), data, seconds)


def lines(
    first: int, count: int, *, build_id: str = BUILD, attempt: int = 1, size: int = 0, text: str = "line"
) -> Event:
    batch = [
        LogLine(phase=Phase.BUILDING, text=f"{text} {n}".ljust(size, "."), ts=at(10 + n / 1000))
        for n in range(first, first + count)
    ]
    data = Log(build_id=build_id, attempt=attempt, n=first, lines=batch)
    return event(ids.lines_event_id(build_id, attempt, first, first + count - 1, "log"), data, 10 + first)


def gap(first: int, last: int) -> Event:
    data = Gap(build_id=BUILD, attempt=1, first=first, last=last, message="Lost.")
    return event(ids.lines_event_id(BUILD, 1, first, last, "gap"), data, 10 + first)


def completed(*, build_id: str = BUILD, seconds: float = 100, count: int | None = None) -> Event:
    data = Completed(
        build_id=build_id,
        image="registry/image:0@sha256:1",
        digest="sha256:1",
        size=12,
        resolved_ref="0",
        attempt=1,
        timings=Timings(building=3.5),
        lines=count,
    )
    return event(ids.terminal_event_id(build_id), data, seconds)


def failed(*, seconds: float = 100, attempt: int = 1) -> Event:
    data = Failed(
        build_id=BUILD,
        reason=FailureReason.BUILD_STEP_FAILED,
        category=Category.USER,
        message="It failed.",
        hint="Look.",
        exit_code=1,
        tail=["the last line"],
        attempt=attempt,
    )
    return event(ids.terminal_event_id(BUILD), data, seconds)


def request(request_id: str = "r", requester: str | None = "ada", **more: Any) -> BuildRequest:
    return BuildRequest(
        provider="gh", spec="owner/repository/HEAD", request_id=request_id, requester=requester, **more
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store that is empty, in this process, which may not block."""
    with blockbuster_ctx("rabbit2docker.hub") as blocking:
        for function in blocking.functions.values():
            function.can_block_in("store/database.py", {"_engines"})  # once, and not for the database
        async with Store(url, "default", log_bytes=16_384) as found:
            yield found


@dataclass(frozen=True)
class Replayed:
    """Everything that a store returns for a build, in a form that does not depend on how lines were batched."""

    build: Build | None
    others: list[tuple[str, str]]
    lines: list[tuple[int, str]]
    gaps: list[tuple[int, int]]


async def replayed(store: Store, build_id: str = BUILD) -> Replayed:
    events = [event async for event in store.events(build_id)]
    return Replayed(
        await store.build(build_id),
        [(event.kind.value, event.id) for event in events if not isinstance(event.data, Log | Gap)],
        numbered(events),
        [(event.data.first, event.data.last) for event in events if isinstance(event.data, Gap)],
    )


def numbered(events: Sequence[Event]) -> list[tuple[int, str]]:
    return [
        (number, line.text)
        for event in events
        if isinstance(event.data, Log)
        for number, line in enumerate(event.data.lines, event.data.n)
    ]


async def state(store: Store, id_: str = BUILD) -> BuildState | None:
    build = await store.build(id_)
    return None if build is None else build.state


class TestOneBuild:
    async def test_a_request_is_found_from_its_submission_to_the_end_of_its_build(self, store: Store) -> None:
        await store.record_request(request(force=True), at=at(0))
        queued = await store.build("r")
        assert queued is not None
        assert (queued.id, queued.state, queued.requester) == (BUILD, BuildState.QUEUED, "ada")
        assert (queued.requested_at, queued.options) == (at(0), BuildOptions(force=True))
        states = []
        for each in (
            accepted(),
            progress("clone", seconds=2, phase=Phase.FETCHING),
            progress("build", seconds=3),
            lines(0, 3),
            progress("push", seconds=20, phase=Phase.PUSHING),
            completed(),
        ):
            await store.put([each])
            states.append(await state(store))
        assert states == ["waiting", "fetching", "building", "building", "pushing", "completed"]
        build = await store.build(BUILD)
        assert build is not None
        assert build == await store.build("r")
        assert (build.image, build.digest, build.size) == ("registry/image:0@sha256:1", "sha256:1", 12)
        assert (build.requested_at, build.started_at, build.ended_at) == (at(0), at(1), at(100))
        assert (build.timings.building, build.message, build.attempt) == (3.5, "push", 1)
        assert [(log.attempt, log.lines, log.kept, log.cut_first) for log in build.logs] == [(1, 3, 3, None)]

    async def test_what_a_build_waits_for_and_what_its_image_lacks_is_known(self, store: Store) -> None:
        wait = progress("limited", seconds=1, phase=Phase.WAITING, attempt=0)
        assert isinstance(wait.data, Progress)
        limited = wait.data.model_copy(update={"detail": ProgressDetail(retry_at=at(600))})
        await store.put([replace(wait, data=limited)])
        await store.record_request(request(), at=at(0))
        waiting = await store.build("r")
        await store.put([accepted(seconds=601, notice="The default branch."), progress("b", seconds=602)])
        building = await store.build("r")
        end = completed(seconds=700)
        assert isinstance(end.data, Completed)
        await store.put([replace(end, data=end.data.model_copy(update={"warnings": ["No LFS."]}))])
        ended = await store.build("r")
        found = [each and (each.retry_at, each.notice, each.warnings) for each in (waiting, building, ended)]
        assert found == [
            (at(600), None, []),
            (None, "The default branch.", []),
            (None, "The default branch.", ["No LFS."]),
        ]

    async def test_a_failed_build_has_the_reason_of_its_failure(self, store: Store) -> None:
        await store.put([accepted(), failed()])
        build = await store.build(BUILD)
        assert build is not None
        assert build.problem is not None
        assert (build.state, build.problem.reason, build.problem.hint) == (
            "failed",
            "build_step_failed",
            "Look.",
        )
        assert (build.problem.category, build.problem.tail) == ("user", ["the last line"])

    async def test_a_cancelled_build_names_who_cancelled_it(self, store: Store) -> None:
        cancelled = Cancelled(build_id=BUILD, by="ada", attempt=0)
        await store.put([accepted(), event(ids.terminal_event_id(BUILD), cancelled, 5)])
        build = await store.build(BUILD)
        assert build is not None
        assert (build.state, build.cancelled_by) == ("cancelled", "ada")

    async def test_a_rejected_request_has_ended_with_a_reason(self, store: Store) -> None:
        await store.record_request(request(), at=at(0))
        await store.put([rejected()])
        build = await store.build("r")
        assert build is not None
        assert build.problem is not None
        assert (build.state, build.problem.message, build.ended_at) == ("rejected", "No.", at(1))
        assert (await replayed(store)).others == [("rejected", rejected().id)]

    async def test_a_build_that_has_ended_does_not_change_its_state(self, store: Store) -> None:
        await store.put([accepted(), completed()])
        await store.put([progress("late", seconds=200), lines(0, 1), rejected(seconds=300)])
        await store.record_request(request(), at=at(400))
        assert await state(store) == "completed"

    @pytest.mark.parametrize("is_late", [False, True])
    async def test_of_two_ends_of_a_build_the_later_one_counts_in_any_order(
        self, store: Store, is_late: bool
    ) -> None:
        again = replace(completed(seconds=200), id=ids.terminal_event_id(BUILD, "again"))
        ends = [failed(), again]
        for end in reversed(ends) if is_late else ends:
            await store.put([accepted(), end])
        build = await store.build(BUILD)
        assert build is not None
        assert (build.state, build.ended_at) == ("completed", at(200))

    @pytest.mark.parametrize("order", ["ask share join", "ask join share", "join ask share"])
    async def test_a_request_that_joins_another_build_is_found_there_with_its_requesters(
        self, store: Store, order: str
    ) -> None:
        await store.put([accepted(requester="ada")])

        async def share() -> None:
            await store.record_share("joins", "eve")

        async def join() -> None:
            await store.put([accepted("joins", BUILD, seconds=3)])

        async def ask() -> None:
            await store.record_request(request("joins", "bob"), at=at(2))

        for step in order.split():
            await {"ask": ask, "share": share, "join": join}[step]()
        for id_ in ("r", "joins", BUILD, OTHER):
            build = await store.build(id_)
            assert build is not None
            assert (build.id, build.request_id, build.requester) == (BUILD, "r", "ada")
            assert build.requesters == ["ada", "bob", "eve"]
        assert len((await store.builds(BuildQuery())).builds) == 1
        assert len((await store.builds(BuildQuery(visible_to="eve"))).builds) == 1

    async def test_a_build_requested_elsewhere_appears_with_its_acceptance(self, store: Store) -> None:
        await store.put([lines(0, 2), progress("build", seconds=2)])
        assert await store.build(BUILD) is None
        assert (await store.builds(BuildQuery())).builds == []
        await store.put([accepted(requester="ada")])
        build = await store.build(BUILD)
        assert build is not None
        assert (build.state, build.spec, build.requesters) == ("building", "owner/repository/HEAD", ["ada"])
        assert [n for n, _ in (await replayed(store)).lines] == [0, 1]

    async def test_two_requests_with_the_same_id_do_not_end_each_other(self, store: Store) -> None:
        await store.put([rejected()])
        await store.record_request(request(), at=at(0))
        assert await state(store) == "rejected"
        await store.put([accepted()])
        assert await state(store) == "waiting"
        assert [kind for kind, _ in (await replayed(store)).others] == ["accepted"]

    async def test_events_of_other_tenants_are_neither_stored_nor_shown(self, url: str, store: Store) -> None:
        await store.put([replace(accepted("elsewhere", "elsewhere"), tenant="one")])
        await store.put([accepted(), lines(0, 1)])
        async with Store(url, "one") as other:
            assert await other.build(BUILD) is None
            assert await other.build("r") is None
            assert (await other.builds(BuildQuery())).builds == []
            assert [event async for event in other.events(BUILD)] == []
            assert [line async for line in other.lines(BUILD)] == []
        assert len((await store.builds(BuildQuery())).builds) == 1

    async def test_text_that_databases_refuse_is_cleaned_and_stored(self, store: Store) -> None:
        odd = "null \0 half \ud800 whole \U0001f600 \x1b[31m"
        half = {"requester": "a\ud800da", "labels": {"label": "x\ud800y"}}
        await store.record_request(request().model_copy(update=half), at=at(0))
        await store.record_share("r", "b\0b")
        working = progress("odd", seconds=2).data.model_copy(update={"message": odd})
        failing = failed().data.model_copy(update={"message": odd, "tail": [odd]})
        await store.put(
            [
                accepted(),
                event(ids.progress_event_id(BUILD, 1, "odd"), working, 2),
                lines(0, 2, text=odd),
                event(ids.terminal_event_id(BUILD), failing, 100),
            ]
        )
        build = await store.build(BUILD)
        assert build is not None
        assert build.problem is not None
        clean = "null \ufffd half \ufffd whole \U0001f600 \x1b[31m"
        assert (build.problem.message, build.problem.tail, build.message) == (clean, [clean], clean)
        assert [text for _, text in (await replayed(store)).lines] == [f"{clean} 0", f"{clean} 1"]
        assert build.requesters == ["a\ufffdda", "b\ufffdb"]
        assert build.model_dump_json()
        assert (await store.builds(BuildQuery(text="\0", requester="\ud800"))).builds == []
        assert await store.build("\0") is None


class TestAnyOrder:
    STORY = (
        accepted(requester="ada", options=BuildOptions(subdir="docs")),
        accepted("joins", BUILD, seconds=4, requester="bob"),
        progress("clone", seconds=2, phase=Phase.FETCHING),
        progress("build", seconds=3),
        progress("again", seconds=50, attempt=2),
        lines(0, 30, size=300),
        lines(30, 30, size=300),
        lines(20, 25, size=300),
        lines(70, 30, size=300),
        gap(60, 69),
        lines(95, 20, size=300),
        lines(0, 2, attempt=2),
        failed(attempt=2),
    )

    @pytest.fixture
    async def expected(self, tmp_path: Path) -> Replayed:
        async with Store(f"sqlite:///{tmp_path / 'expected.sqlite'}", "default", log_bytes=16_384) as store:
            await store.record_request(request(), at=at(0))
            for each in self.STORY:
                await store.put([each])
            found = await replayed(store)
        assert found.build is not None
        assert found.build.state == "failed"
        assert found.build.logs[0].cut_first is not None
        return found

    @given(data=st.data())
    @with_settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    async def test_any_order_and_repetition_of_events_makes_the_same_build(
        self, tmp_path: Path, postgresql_server: PostgreSQL, expected: Replayed, data: st.DataObject
    ) -> None:
        number = len(self.STORY)
        order = data.draw(st.permutations(range(number)))
        again = data.draw(st.lists(st.integers(0, number - 1), max_size=10))
        places = data.draw(st.lists(st.integers(0, number), min_size=len(again), max_size=len(again)))
        sequence = [self.STORY[index] for index in order]
        for index, place in zip(again, places, strict=True):
            sequence.insert(place, self.STORY[index])
        sizes = data.draw(st.lists(st.integers(1, 6), min_size=1))
        asked_after = data.draw(st.integers(0, len(sequence)))
        name = postgresql_server.new_database() if data.draw(st.booleans()) else None
        file = tmp_path / "any.sqlite"
        for old in tmp_path.glob("any.sqlite*"):
            old.unlink()
        try:
            url = postgresql_server.url(name) if name else f"sqlite:///{file}"
            async with Store(url, "default", log_bytes=16_384) as store:
                taken, batches = 0, itertools.cycle(sizes)
                is_asked = False
                while taken < len(sequence):
                    if taken >= asked_after and not is_asked:
                        await store.record_request(request(), at=at(0))
                        is_asked = True
                    size = next(batches)
                    await store.put(sequence[taken : taken + size])
                    taken += size
                await store.record_request(request(), at=at(0))
                assert await replayed(store) == expected
        finally:
            if name:
                postgresql_server.drop_database(name)


class TestLogs:
    async def test_overlapping_batches_of_lines_are_stored_once(self, store: Store) -> None:
        await store.put([accepted(), lines(0, 3), lines(1, 4)])
        await store.put([lines(0, 5), lines(4, 2), lines(9, 1), lines(7, 5)])
        found = await replayed(store)
        assert found.lines == [(n, f"line {n}") for n in [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]]
        assert found.gaps == [(6, 6)]

    async def test_lines_are_read_by_number_and_attempt(self, store: Store) -> None:
        await store.put([accepted(), *(lines(n, 10) for n in range(0, 100, 10)), lines(0, 2, attempt=2)])
        assert [line.n async for line in store.lines(BUILD, attempt=1, first=15, last=32)] == list(
            range(15, 33)
        )
        assert [line.text async for line in store.lines(BUILD)] == ["line 0", "line 1"]
        assert [line async for line in store.lines(BUILD, attempt=1, first=100)] == []
        assert [line async for line in store.lines("unknown")] == []
        assert [line.ts async for line in store.lines(BUILD, attempt=1, first=3, last=3)] == [at(10.003)]

    async def test_a_place_where_the_engine_dropped_lines_stays_marked(self, store: Store) -> None:
        marked = LogLine(phase=Phase.BUILDING, text="dropped", ts=at(11), clipped=True)
        data = Log(build_id=BUILD, attempt=1, n=2, lines=[marked])
        await store.put([accepted(), lines(0, 2), event(ids.lines_event_id(BUILD, 1, 2, 2, "log"), data, 11)])
        assert [line.clipped async for line in store.lines(BUILD)] == [None, None, True]

    @pytest.mark.parametrize("batch", [1, 7, 40, 500])
    async def test_head_and_tail_of_a_log_that_is_too_long_are_kept(self, store: Store, batch: int) -> None:
        number = 500
        events = [lines(n, min(batch, number - n), size=100) for n in range(0, number, batch)]
        await store.put([accepted()])
        for start in range(0, len(events), 50):
            await store.put(events[start : start + 50])
        await store.put([completed(count=number)])
        build = await store.build(BUILD)
        assert build is not None
        [log] = build.logs
        assert log.cut_first is not None
        assert log.cut_last is not None
        found = await replayed(store)
        kept = [n for n, _ in found.lines]
        assert kept == [*range(log.cut_first), *range(log.cut_last + 1, number)]
        assert (log.lines, log.kept) == (number, len(kept))
        assert found.gaps == [(log.cut_first, log.cut_last)]
        # Of these lines each takes between 150 and 170 bytes with its time and phase.
        assert 8192 // 170 <= log.cut_first <= 8192 // 150
        assert 8192 // 170 <= number - 1 - log.cut_last <= 8192 // 150
        assert [n async for n in _numbers(store, log.cut_first - 2, log.cut_last + 2)] == [
            log.cut_first - 2,
            log.cut_first - 1,
            log.cut_last + 1,
            log.cut_last + 2,
        ]

    async def test_lines_that_were_cut_stay_cut_when_they_arrive_again(self, store: Store) -> None:
        events = [lines(n, 50, size=100) for n in range(0, 500, 50)]
        await store.put([accepted(), *events])
        before = await replayed(store)
        await store.put(events)
        for each in reversed(events):
            await store.put([each])
        assert await replayed(store) == before

    async def test_missing_lines_are_replayed_as_a_gap(self, store: Store) -> None:
        await store.put([accepted(), lines(0, 2), lines(5, 1), gap(6, 7)])
        assert (await replayed(store)).gaps == [(2, 4), (6, 7)]
        await store.put([completed(count=12)])
        assert (await replayed(store)).gaps == [(2, 4), (6, 11)]

    async def test_a_build_is_replayed_in_the_order_in_which_it_happened(self, store: Store) -> None:
        whole = [
            accepted(),
            progress("clone", seconds=2),
            lines(0, 2),
            progress("push", seconds=20),
            progress("again", seconds=30, attempt=2),
            lines(0, 1, attempt=2),
            completed(),
        ]
        await store.put(whole)
        events = [event async for event in store.events(BUILD)]
        assert [event.kind.value for event in events] == [
            "accepted",
            "progress",
            "log",
            "progress",
            "log",
            "progress",
            "completed",
        ]
        by_id = {event.id: event for event in whole}
        assert [event.data for event in events] == [by_id[event.id].data for event in events]


async def _numbers(store: Store, first: int, last: int) -> AsyncIterator[int]:
    async for line in store.lines(BUILD, first=first, last=last):
        yield line.n


class TestLists:
    @pytest.fixture
    async def many(self, store: Store) -> list[str]:
        """Requests of two people, newest first; every third has ended; all of a moment's have come together."""
        names = [f"r{number:02d}" for number in range(25)]
        for number, name in enumerate(names):
            who = "ada" if number % 2 else "bob"
            asked = BuildRequest(
                provider="gh", spec=f"owner/{name}_100%/HEAD", request_id=name, requester=who
            )
            await store.record_request(asked, at=at(number // 5))
        ended = [ids.build_id_of("default", name) for name in names[::3]]
        await store.put([completed(build_id=build_id) for build_id in ended])
        whole = (await store.builds(BuildQuery(limit=200))).builds
        assert [build.requested_at for build in whole] == sorted(
            (build.requested_at for build in whole), reverse=True
        )
        return [build.request_id for build in whole]

    @pytest.mark.parametrize("limit", [1, 4, 5, 24, 25, 26])
    async def test_pages_list_each_build_once_even_if_builds_are_added_in_between(
        self, store: Store, many: list[str], limit: int
    ) -> None:
        found: list[str] = []
        before: str | None = None
        while True:
            page = await store.builds(BuildQuery(limit=limit, before=before))
            assert len(page.builds) <= limit
            found += [build.request_id for build in page.builds]
            await store.record_request(request(f"new-{len(found)}"), at=at(1000))
            if (before := page.next) is None:
                break
        assert found == many

    async def test_a_list_leaves_out_builds_that_do_not_match_the_query(
        self, store: Store, many: list[str]
    ) -> None:
        async def found(**query: Any) -> set[str]:
            return {build.request_id for build in (await store.builds(BuildQuery(**query))).builds}

        assert await found(visible_to="ada") == {f"r{n:02d}" for n in range(1, 25, 2)}
        assert await found(visible_to="ada", requester="bob") == set()
        await store.record_share("r00", "ada")
        assert await found(visible_to="ada", requester="bob") == {"r00"}
        assert await found(state=(BuildState.COMPLETED,)) == {f"r{n:02d}" for n in range(0, 25, 3)}
        assert await found(state=(BuildState.COMPLETED, BuildState.QUEUED)) == set(many)
        assert await found(text="OWNER/R1") == {f"r{n}" for n in range(10, 20)}
        assert await found(text="r12_100%") == {"r12"}
        assert await found(text="r_2") == set()

    async def test_a_page_token_that_the_store_never_issued_is_refused(self, store: Store) -> None:
        for before in ("", "x", "x.y", "1", "99999999999999999999.x"):
            with pytest.raises(ValueError, match="before"):
                await store.builds(BuildQuery(before=before))


class TestRateLimits:
    async def test_requests_are_counted_in_a_sliding_window(self, store: Store) -> None:
        async def ask(seconds: float, who: str = "ada") -> tuple[bool, int, datetime]:
            found = await store.check_rate(who, limit=2, seconds=60, at=at(seconds))
            return found.allowed, found.remaining, found.reset_at

        assert await ask(0) == (True, 1, at(60))
        assert await ask(10) == (True, 0, at(60))
        assert await ask(20) == (False, 0, at(60))
        assert await ask(59) == (False, 0, at(60))
        assert await ask(59, "bob") == (True, 1, at(119))
        assert await ask(61) == (True, 0, at(70))
        assert await ask(62) == (False, 0, at(70))
        assert await ask(200) == (True, 1, at(260))

    async def test_two_services_together_never_exceed_the_rate_limit(self, url: str, store: Store) -> None:
        async with Store(url, "default") as other:
            answers = await asyncio.gather(
                *(
                    each.check_rate("ada", limit=5, seconds=60, at=at(0))
                    for _ in range(10)
                    for each in (store, other)
                )
            )
        assert sum(answer.allowed for answer in answers) == 5
        assert sorted(answer.remaining for answer in answers if answer.allowed) == [0, 1, 2, 3, 4]


class TestExpiry:
    async def test_expired_builds_are_deleted_with_everything_that_belongs_to_them(
        self, url: str, store: Store
    ) -> None:
        for number in range(45):
            name = f"old-{number}"
            build_id = ids.build_id_of("default", name)
            await store.record_request(request(name), at=at(0))
            await store.put(
                [accepted(name, build_id), lines(0, 1, build_id=build_id), completed(build_id=build_id)]
            )
        await store.put([accepted(), lines(0, 1)])  # never ended
        await store.put([accepted("joins", OTHER), completed(build_id=OTHER, seconds=1000)])
        assert await store.delete_expired(ended_before=at(500), now=at(0)) == 45
        left = {build.request_id for build in (await store.builds(BuildQuery())).builds}
        assert left == {"r", "joins"}
        assert await store.delete_expired(ended_before=at(500 + 2 * 86_400), now=at(0)) == 2
        await store.check_rate("ada", limit=1, seconds=60, at=at(0))
        await store.delete_expired(ended_before=at(0), now=at(100))
        assert await _rows_left(url) == {"r2d_positions": 0}

    async def test_the_oldest_logs_make_room_and_are_read_as_a_gap(self, store: Store) -> None:
        await store.put([accepted(), lines(0, 20), completed(count=20)])
        await store.put([accepted("joins", OTHER), lines(0, 20, build_id=OTHER)])
        both = await store.prune(ended_before=at(10 * 86_400), max_log_bytes=0, dry_run=True)
        assert len(both.builds) == 2
        deleted = await store.limit_logs(both.log_bytes - 1)
        assert [build.id for build in deleted.logs] == [BUILD]
        assert (await replayed(store)).gaps == [(0, 19)]
        assert len((await replayed(store, OTHER)).lines) == 20
        await store.put([lines(0, 20)])
        assert (await replayed(store)).lines == []


async def _rows_left(url: str) -> dict[str, int]:
    """Return how many rows tables have that are not empty, of positions in any case."""

    def count() -> dict[str, int]:
        engine = create_engine(parse_url(url), poolclass=NullPool)
        with engine.connect() as connection:
            return {
                name: number
                for name, table in metadata.tables.items()
                for number in [len(connection.execute(table.select()).all())]
                if number or name == "r2d_positions"
            }

    return await asyncio.to_thread(count)


class TestDatabases:
    def test_migrations_create_the_tables_that_the_program_declares(self, url: str) -> None:
        for _ in range(2):
            migrate(parse_url(url))
        engine = create_engine(parse_url(url), poolclass=NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "compare_type": False}
            )
            assert compare_metadata(context, metadata) == []

    def test_each_migration_goes_back_to_no_tables_and_forward_again(self, url: str) -> None:
        assert migrate_to(url, "head")[0] is None
        head = migrate_to(url, "head")[0]
        assert head is not None
        assert migrate_to(url, "base") == (head, None)
        engine = create_engine(parse_url(url), poolclass=NullPool)
        with engine.connect() as connection:
            assert set(inspect(connection).get_table_names()) <= {VERSION_TABLE}
        assert migrate_to(url, "head") == (None, head)

    async def test_a_build_of_an_older_version_is_shown_after_its_migration(self, url: str) -> None:
        migrate_to(url, "0001")
        engine = create_engine(parse_url(url), poolclass=NullPool)
        with engine.begin() as connection:
            for statement in BUILD_OF_VERSION_1:
                connection.execute(text(statement), {"build": BUILD})
        async with Store(url, "default") as store:
            build = await store.build("r")
        assert build is not None
        assert (build.state, build.image, build.notice, build.warnings) == ("completed", "an-image", None, [])

    async def test_a_full_disk_of_postgresql_is_distinguished_from_an_outage(
        self, postgresql_url: str, postgresql_server: PostgreSQL
    ) -> None:
        name = postgresql_url.rpartition("/")[2]
        async with Store(postgresql_url, "default") as store:
            await store.put([accepted()])
            # The server's own error for a file that cannot be extended.
            postgresql_server.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$",
                database=name,
            )
            postgresql_server.execute(
                "CREATE TRIGGER full_disk BEFORE INSERT ON r2d_chunks EXECUTE FUNCTION full_disk()",
                database=name,
            )
            with pytest.raises(StoreFull, match="could not extend file"):
                await store.put([lines(0, 1)])
            with pytest.raises(StoreFull):
                await store.check()
            postgresql_server.execute("DROP TRIGGER full_disk ON r2d_chunks", database=name)
            await store.put([lines(0, 1)])
            await store.check()

    def test_services_that_start_at_the_same_moment_migrate_once(self, url: str) -> None:
        program = (
            "import sys; from rabbit2docker.hub.store.database import Database, migrate, parse_url; "
            "migrate(parse_url(sys.argv[1]))"
        )
        running = [
            subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for each in running:
            _, errors = each.communicate(timeout=60)
            assert each.returncode == 0, errors

    async def test_tables_of_another_program_in_the_same_database_are_left_alone(
        self, postgresql_url: str, postgresql_server: PostgreSQL
    ) -> None:
        name = postgresql_url.rpartition("/")[2]
        postgresql_server.execute("CREATE TABLE alembic_version (version_num text)", database=name)
        postgresql_server.execute("INSERT INTO alembic_version VALUES ('theirs')", database=name)
        async with Store(postgresql_url, "default") as store:
            await store.put([accepted()])
        assert postgresql_server.execute("SELECT version_num FROM alembic_version", database=name) == [
            ("theirs",)
        ]

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "nothing",
            "sqlite://",
            "sqlite:///:memory:",
            "mysql://u:secret@host/database",
            "postgresql://u:secret@host",
            "postgresql://u:secret@host:port/database",
        ],
    )
    def test_an_invalid_database_url_is_refused_without_showing_its_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="RABBIT2DOCKER_HUB__STORE_URL") as caught:
            Store(SecretStr(url), "default")
        assert "secret" not in str(caught.value)

    async def test_a_database_that_refuses_the_login_counts_as_away_and_the_password_is_not_shown(
        self, postgresql_server: PostgreSQL, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async with Store(postgresql_server.url("postgres", password="hush-hush"), "default") as store:
            with pytest.raises(StoreUnavailable, match="password authentication failed") as caught:
                await store.builds(BuildQuery())
        assert "hush" not in str(caught.value)
        assert "hush" not in capsys.readouterr().out

    async def test_a_missing_directory_is_named_in_the_error(self, tmp_path: Path) -> None:
        async with Store(f"sqlite:///{tmp_path / 'no' / 'store.sqlite'}", "default") as store:
            with pytest.raises(StoreUnavailable, match="unable to open"):
                await store.check()
            (tmp_path / "no").mkdir()
            await store.put([accepted()])
            assert await state(store) == "waiting"

    async def test_a_value_that_no_database_accepts_is_distinguished_from_a_database_that_is_away(
        self, store: Store
    ) -> None:
        too_big = completed().data.model_copy(update={"size": 2**70})
        with pytest.raises(StoreRefused):
            await store.put([accepted(), event(ids.terminal_event_id(BUILD), too_big, 5)])
        assert await store.build(BUILD) is None
        await store.put([accepted()])
        assert await state(store) == "waiting"

    async def test_the_store_reconnects_after_a_restart_of_postgresql(self) -> None:
        with postgresql.running() as postgresql_server:
            async with Store(postgresql_server.url("postgres"), "default") as store:
                await store.put([accepted()])
                await asyncio.to_thread(postgresql_server.kill)
                with pytest.raises(StoreUnavailable):
                    await store.put([completed()])
                with pytest.raises(StoreUnavailable):
                    await store.check()
                await asyncio.to_thread(postgresql_server.start_again)
                await store.put([completed()])
                assert await state(store) == "completed"

    async def test_a_cancelled_transaction_leaves_nothing_locked(self, store: Store) -> None:
        for pause in (0, 0.001, 0.003, 0.01):
            tasks = [asyncio.create_task(store.put([accepted(), lines(0, 50)])) for _ in range(5)]
            await asyncio.sleep(pause)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            await store.put([accepted(), lines(0, 50)])
            assert len((await replayed(store)).lines) == 50

    @pytest.mark.parametrize(("error", "reported"), [(asyncio.CancelledError(), 0), (OSError("gone"), 1)])
    async def test_a_connection_that_cannot_be_reset_is_an_error_unless_its_user_was_cancelled(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException, reported: int
    ) -> None:
        database = Database(f"sqlite:///{tmp_path}/hub.sqlite")
        async with database.reading() as connection:
            pool = connection.engine.pool
        pool.logger.error("Exception during reset or similar", exc_info=error)
        await database.close()
        assert (
            len([entry for entry in caplog.records if entry.name.startswith("sqlalchemy.pool")]) == reported
        )

    async def test_readers_and_writers_do_not_wait_for_each_other(self, tmp_path: Path) -> None:
        file = tmp_path / "store.sqlite"
        async with Store(f"sqlite:///{file}", "default") as store:
            await store.put([accepted(), *(lines(n, 10) for n in range(0, 1000, 10))])
            reading = store.events(BUILD)
            await anext(reading)
            await anext(reading)
            with sqlite3.connect(file, isolation_level=None) as writer:
                writer.execute("BEGIN IMMEDIATE")
                assert await state(store) == "waiting"
                writer.execute("ROLLBACK")
            await store.put([completed()])
            assert [event.kind async for event in reading][-1] == "log"
