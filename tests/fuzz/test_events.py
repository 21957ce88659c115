"""Events as hub, command line and subscribers read them: whatever a message holds, its reader goes on."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rabbit2docker.cli.overview import as_table, rows
from rabbit2docker.cli.rendering import JsonView, PlainView, RichView, View
from rabbit2docker.client.resequencer import Resequencer, SeenFilter
from rabbit2docker.hub.store.models import BuildQuery
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.binderhub_stream import BinderHubStream
from rabbit2docker.hub.web.resume import BinderHubCursor
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event
from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.examples import EVENTS, TENANT
from tests.fuzz.inputs import VALUES, fuzzed, json_variants

MESSAGES = {
    kind: {"headers": event.headers(), "body": json.loads(event.body())} for kind, event in EVENTS.items()
}
HEADERS = st.sampled_from(["ce-id", "ce-time", "ce-tenant", "ce-subject", "ce-source", "ce-type"])


@st.composite
def messages(draw: st.DrawFn) -> Event | None:
    """Draw a message and read it; None if that is refused."""
    kind = draw(st.sampled_from(list(Kind)))
    message: Any = draw(json_variants([MESSAGES[kind]["body"]]))
    headers: dict[str, Any] = dict(MESSAGES[kind]["headers"])
    if draw(st.integers(0, 3)) == 0:
        headers[draw(HEADERS)] = draw(VALUES | st.binary(max_size=9))
    try:
        return read_event(headers, json.dumps(message).encode())
    except UnreadableEvent:
        return None


sequences = st.lists(messages(), max_size=5).map(lambda found: [event for event in found if event])


@fuzzed()
@given(sequences)
def test_subscribers_go_on_after_any_event(events: list[Event]) -> None:
    resequencer, seen = Resequencer(), SeenFilter()
    for event in events:
        for ready in (*resequencer.push(event), *seen.push(event)):
            assert ready.body()
            assert ready.headers()
    resequencer.flush()


@fuzzed()
@given(sequences)
def test_the_command_line_shows_any_event(events: list[Event]) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80)
    views: list[View] = [JsonView(), PlainView(), RichView(console)]
    for view in views:
        with view:
            for event in events:
                view.show(event)
    console.print(as_table(rows(events), 80))
    for row in rows(events):
        json.dumps(row.as_dict())


@fuzzed()
@given(sequences)
def test_clients_of_binderhub_get_whole_frames_for_any_event(events: list[Event]) -> None:
    stream = BinderHubStream("gh", "a/b/HEAD", BinderHubCursor("r"))
    for event in events:
        for line in stream.render(event).decode().split("\n"):
            name, _, value = line.partition(": ")
            assert name in ("", "id", "data", "event", "retry") or line.startswith(":")
            if name == "data":
                json.loads(value)


@pytest.fixture(scope="module")
def store(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that all inputs share, as a bad one must not spoil it for the next."""
    path: Path = tmp_path_factory.mktemp("store") / "hub.sqlite"
    store = Store(f"sqlite:///{path}", TENANT)
    runner.run(store.__aenter__())
    yield store
    runner.run(store.__aexit__(None, None, None))


@fuzzed(0.5)
@given(sequences)
def test_the_store_takes_any_event_and_shows_its_build(
    runner: asyncio.Runner, store: Store, events: list[Event]
) -> None:
    async def put_and_read() -> None:
        await store.put(events)
        for event in events:
            if event.tenant == TENANT and (build := await store.build(event.subject)):
                assert build.model_dump_json()
                async for stored in store.events(build.id):
                    assert stored.body()
        await store.builds(BuildQuery())
        await store.running_count()
        await store.delete_expired(ended_before=datetime(1990, 1, 1, tzinfo=UTC), now=datetime.now(UTC))

    runner.run(put_and_read())
