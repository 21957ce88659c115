"""The mark in a log that replicas share."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from rabbit2docker.amqp import shared_log
from rabbit2docker.amqp.cancel_log import CancelLog
from rabbit2docker.amqp.shared_log import SharedLog
from rabbit2docker.amqp.waiting_log import WaitingLog
from rabbit2docker.errors import MessageRefused
from rabbit2docker.settings import Settings
from tests.support.waiting import eventually


class Publisher:
    """A publisher of which each message is confirmed, and may never be read."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refuses = False

    async def send(
        self, exchange: str, key: str, message: Any, *, patience: float | None, **_: object
    ) -> None:
        self.sent.append(message().body)
        if self.refuses and patience is not None:
            raise MessageRefused("The stream has no majority.")


@pytest.mark.parametrize("kind", [CancelLog, WaitingLog])
async def test_a_mark_that_is_not_read_is_written_again(
    monkeypatch: pytest.MonkeyPatch, kind: type[CancelLog | WaitingLog]
) -> None:
    monkeypatch.setattr(shared_log, "READ_PAUSES", (0.01,))
    publisher = Publisher()
    log: SharedLog = kind(Settings(), publisher, lambda: None)  # type: ignore[arg-type]
    writing = asyncio.create_task(log._write_mark())
    await eventually(lambda: len(publisher.sent) >= 3)
    assert not writing.done()
    await log._on_message(SimpleNamespace(headers={}, body=publisher.sent[0]))  # type: ignore[arg-type]
    await writing
    assert log.problem == ""
    assert {json.loads(body)["mark"] for body in publisher.sent} == {log._mark}


async def test_a_stream_that_refuses_entries_delays_no_request() -> None:
    publisher = Publisher()
    publisher.refuses = True
    log = WaitingLog(Settings(), publisher, lambda: None)  # type: ignore[arg-type]
    for _ in range(5):
        await log.record({"taken": "build"})
    assert len(publisher.sent) == 1, "further tries come after a pause"
