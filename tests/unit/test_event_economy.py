"""Events in bulk cost few acknowledgements, statements and transactions, and each message is decoded once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy

from rabbit2docker.amqp.event_consumer import ACK_MESSAGES, ACK_SECONDS, Acknowledgements, decode
from rabbit2docker.hub.ingest import BATCH_EVENTS, BATCH_SECONDS, LINES_SECONDS, Ingester
from rabbit2docker.hub.store.store import Store
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Completed, Log, LogLine, Phase
from rabbit2docker_schemas.ids import build_id_of, lines_event_id, terminal_event_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lines_of(build: str, first: int, *texts: str) -> Event:
    build_id = build_id_of("default", build)
    lines = [LogLine(phase=Phase.BUILDING, text=text, ts=NOW) for text in texts]
    id_ = lines_event_id(build_id, 1, first, first + len(texts) - 1, "log")
    return Event(id_, "default", NOW, Log(build_id=build_id, attempt=1, n=first, lines=lines))


def end_of(build: str) -> Event:
    build_id = build_id_of("default", build)
    data = Completed(build_id=build_id, image="i", digest="sha256:0", resolved_ref="0")
    return Event(terminal_event_id(build_id), "default", NOW, data)


class TestDecode:
    def test_a_message_that_comes_through_two_queues_is_decoded_once(self) -> None:
        sent = lines_of("twice", 0, "one")
        first = decode(sent.headers(), sent.body())
        assert decode(sent.headers(), sent.body()) is first
        assert first.data == sent.data

    def test_another_message_under_the_same_id_is_decoded_for_itself(self) -> None:
        sent, other = lines_of("other", 0, "one"), lines_of("other", 0, "two")
        assert sent.id == other.id
        decode(sent.headers(), sent.body())
        assert decode(other.headers(), other.body()).data == other.data


class Channel:
    """A channel that records acknowledgements."""

    def __init__(self, *, is_closed: bool = False) -> None:
        self.acknowledged: list[tuple[int, bool]] = []
        self._is_closed = is_closed

    async def basic_ack(self, tag: int, multiple: bool, wait: bool) -> None:
        if self._is_closed:
            raise RuntimeError("closed")
        self.acknowledged.append((tag, multiple))

    def delivery(self, tag: int) -> Any:
        return SimpleNamespace(channel=self, delivery_tag=tag)


@pytest.mark.looptime
class TestAcknowledgements:
    async def test_deliveries_that_come_together_are_acknowledged_together(self) -> None:
        channel, acknowledgements = Channel(), Acknowledgements()
        for tag in (1, 2, 3):
            await acknowledgements.add(channel.delivery(tag))
        assert channel.acknowledged == []
        await asyncio.sleep(2 * ACK_SECONDS)
        assert channel.acknowledged == [(3, True)]
        await acknowledgements.add(channel.delivery(4))
        await asyncio.sleep(2 * ACK_SECONDS)
        assert channel.acknowledged == [(3, True), (4, True)]

    async def test_a_flood_is_acknowledged_before_rabbitmq_stops_sending(self) -> None:
        channel, acknowledgements = Channel(), Acknowledgements()
        for tag in range(1, 3 * ACK_MESSAGES + 1):
            await acknowledgements.add(channel.delivery(tag))
        assert [tag for tag, _ in channel.acknowledged] == [ACK_MESSAGES, 2 * ACK_MESSAGES, 3 * ACK_MESSAGES]
        acknowledgements.close()

    async def test_deliveries_of_a_closed_channel_do_not_spoil_those_of_the_next(self) -> None:
        closed, channel, acknowledgements = Channel(is_closed=True), Channel(), Acknowledgements()
        await acknowledgements.add(closed.delivery(7))
        await asyncio.sleep(2 * ACK_SECONDS)
        await acknowledgements.add(channel.delivery(1))
        await asyncio.sleep(2 * ACK_SECONDS)
        assert channel.acknowledged == [(1, True)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(f"sqlite:///{tmp_path / 'store.sqlite'}", "default") as opened:
        yield opened


class TestStatements:
    async def _statements(self, store: Store, events: Sequence[Event]) -> int:
        statements: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            statements.append(statement)

        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
        try:
            await store.put(events, position=NOW)
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
        return len(statements)

    async def test_lines_of_many_builds_take_as_many_statements_as_those_of_one(self, store: Store) -> None:
        names = [f"build-{number}" for number in range(20)]
        await store.put([lines_of(name, 0, "one") for name in names], position=NOW)
        alone = await self._statements(store, [lines_of(names[0], 1, "two")])
        assert await self._statements(store, [lines_of(name, 2, "three") for name in names]) == alone
        found = [line.text async for line in store.lines(build_id_of("default", names[0]))]
        assert found == ["one", "two", "three"]
        assert [line.n async for line in store.lines(build_id_of("default", names[19]))] == [0, 2]


class PutStore:
    """A store that records what is put together, and when."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, int]] = []

    async def put(self, events: Sequence[Event], *, position: datetime | None = None) -> None:
        self.batches.append((asyncio.get_running_loop().time(), len(events)))


@pytest.mark.looptime
class TestTransactions:
    async def _write(self, events: Sequence[tuple[float, Event]]) -> PutStore:
        """Have events come one after the other, each after a pause."""
        store, inbox = PutStore(), asyncio.Queue[Event](BATCH_EVENTS)
        writing = asyncio.create_task(Ingester(store, Settings())._write(inbox))  # type: ignore[arg-type]
        for pause, event in events:
            await asyncio.sleep(pause)
            await inbox.put(event)
        await asyncio.sleep(10)
        writing.cancel()
        await asyncio.wait({writing})
        return store

    async def test_lines_that_trickle_share_transactions(self) -> None:
        store = await self._write([(LINES_SECONDS / 10, lines_of("b", n, "line")) for n in range(30)])
        assert sum(count for _, count in store.batches) == 30
        assert len(store.batches) <= 5

    async def test_an_end_does_not_wait_as_long_as_lines(self) -> None:
        store = await self._write([(0, lines_of("b", 0, "line")), (0.01, end_of("b"))])
        [(at, count)] = store.batches
        assert count == 2
        assert at <= 2 * BATCH_SECONDS + 0.01 < LINES_SECONDS
