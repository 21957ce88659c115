"""The system under chaos: a broker of its own, a proxy before it, the consumer with fake builds, and their requests."""

import asyncio
import json
import os
import random
import shutil
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Accepted, Completed, Rejected
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from tests.chaos.clock import clock_variables
from tests.support.consumer import Consumer, a_request
from tests.support.disks import mounted
from tests.support.promises import captured, ends_of, lines_of
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ, running

MINE: Final = "default"
NEIGHBOUR: Final = "neighbour"
ANSWER_SECONDS: Final = 60.0
"""Longest time in which a request is answered while nothing but a neighbour misbehaves."""
RECOVERY: Final = timedelta(seconds=20)
"""What a fault may delay even when it is over, such as by a pause before the next try."""
END_SECONDS: Final = 600.0
"""Longest time that it takes everything to end once all faults are over."""


@dataclass
class Asked:
    """A request, and how many lines its build writes."""

    request: BuildRequest
    lines: int
    confirmed_at: datetime


@dataclass
class World:
    """Everything that faults act on."""

    broker: RabbitMQ
    vhost: str
    amqp: AmqpSettings
    proxy: Proxy
    consumer: Consumer
    random: random.Random
    clock: Path
    """A file that says by how many seconds the consumer's clock is wrong."""
    asked: dict[str, Asked] = field(default_factory=dict)
    disturbances: list[tuple[datetime, datetime]] = field(default_factory=list)
    """When faults that may delay everybody began and ended."""

    @property
    def settings(self) -> Settings:
        """Return the settings of a requester, who does not pass through the proxy."""
        return Settings(amqp=self.amqp)

    async def ask(self) -> None:
        """Publish a request, confirmed. One in ten fails, one in five waits for a person, the rest are quick."""
        name, lines = f"chaos-{len(self.asked)}", self.random.randint(1, 200)
        options: dict[str, object] = {"lines": lines, "every": self.random.choice([0, 0, 0.005, 0.02])}
        if self.random.random() < 0.1:
            options["fail"] = 3
        request = a_request(name, **options)
        await self.publish(request)
        self.asked[name] = Asked(request, lines, datetime.now(UTC))

    @property
    def state(self) -> Path:
        """Return the consumer's state directory, a small disk where that is possible."""
        return self.consumer.directory / "state"

    async def publish(self, message: BuildRequest | CancelRequest, tenant: str = MINE) -> None:
        """Publish a request or a cancel message."""
        async with publishing(self.settings, wait_seconds=END_SECONDS) as publisher:
            requester = RequestPublisher(publisher, tenant)
            if isinstance(message, BuildRequest):
                await requester.request(message)
            else:
                await requester.cancel(message)

    @contextmanager
    def disturbing(self) -> Iterator[None]:
        """Note that a fault that may delay everybody is going on."""
        began = datetime.now(UTC)
        try:
            yield
        finally:
            self.disturbances.append((began, datetime.now(UTC) + RECOVERY))

    def builders(self) -> list[int]:
        """Return the process ids of running builders."""
        found = []
        for path in (self.consumer.directory / "state" / "attempts").glob("[!.]*/process.json"):
            with suppress(OSError, ValueError):
                pid = json.loads(path.read_text())["pid"]
                if str(self.consumer.directory) in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return sorted(found)

    async def heal(self) -> None:
        """End all faults."""
        self.clock.write_text("+0")
        (self.state / "ballast").unlink(missing_ok=True)
        (self.consumer.fake_docker / "away").unlink(missing_ok=True)
        self.proxy.refuse(False)
        self.proxy.flow()
        if self.consumer.process is not None and not self.consumer.has_ended():
            self.consumer.process.send_signal(signal.SIGCONT)
        else:
            self.consumer.start()
        await asyncio.to_thread(self.broker.wait_until_ready)

    async def check(self) -> str:
        """Wait until everything has ended, check the promises, and return a summary. Raises AssertionError."""
        with suppress(TimeoutError):  # what is missing is named below
            await self._until_ended()
        events = await captured(self.amqp)
        answers = self._answers(events)
        lost = sorted(set(self.asked) - set(answers))
        assert not lost, f"{len(lost)} requests were never answered: {lost[:5]}"
        ends = ends_of(events)
        accepted = {name: found.data for name, found in answers.items() if isinstance(found.data, Accepted)}
        unended = sorted(name for name, data in accepted.items() if data.build_id not in ends)
        assert not unended, f"{len(unended)} builds never ended: {unended[:5]}"
        ends_of(await captured(self.amqp, NEIGHBOUR))
        self._check_lines(events, {name: ends[data.build_id] for name, data in accepted.items()})
        return f"{len(self.asked)} requests, {len(ends)} builds ended once, {self._delay(answers)}"

    async def keep(self) -> None:
        """Write the events of both tenants and copy the records to beside the log: the disk and the broker end now."""
        directory = self.consumer.directory
        for tenant in (MINE, NEIGHBOUR):
            lines = [event.body() for event in await captured(self.amqp, tenant)]
            (directory / f"events-of-{tenant}.jsonl").write_bytes(b"\n".join(lines))
        with suppress(shutil.Error):  # of files that go while they are copied
            shutil.copytree(directory / "state", directory / "records")

    async def _until_ended(self) -> None:
        async with asyncio.timeout(END_SECONDS):
            while True:
                events = await captured(self.amqp)
                accepted = {event.data.build_id for event in events if isinstance(event.data, Accepted)}
                if set(self.asked) <= set(self._answers(events)) and accepted <= set(ends_of(events)):
                    return
                await asyncio.sleep(1)

    def _answers(self, events: list[Event]) -> dict[str, Event]:
        answers: dict[str, Event] = {}
        for event in events:
            if isinstance(event.data, Accepted | Rejected):
                answers.setdefault(event.data.request_id, event)
        return answers

    def _check_lines(self, events: list[Event], ends: dict[str, Event]) -> None:
        logs = lines_of(events)
        texts: dict[str, list[list[str]]] = defaultdict(list)
        for (build_id, _), lines in sorted(logs.items()):
            texts[build_id].append([line for line in lines if line.endswith(" of the build")])
        for name, end in ends.items():
            if isinstance(end.data, Completed):
                wanted = [f"line {n} of the build" for n in range(self.asked[name].lines)]
                assert texts[end.data.build_id][-1] == wanted, f"{name} lacks lines, or has some twice"

    def _delay(self, answers: dict[str, Event]) -> str:
        """Return the longest wait for an answer where only the neighbour misbehaved. Raises AssertionError."""
        waits = {
            name: (answers[name].time - asked.confirmed_at).total_seconds()
            for name, asked in self.asked.items()
            if not self._was_disturbed(asked.confirmed_at, answers[name].time)
        }
        if not waits:
            return "all of them beside faults that concern everybody"
        name, longest = max(waits.items(), key=lambda item: item[1])
        assert longest < ANSWER_SECONDS, f"{name} waited {longest:.0f} s for an answer beside a bad neighbour"
        return f"longest wait beside a bad neighbour alone {max(0.0, longest):.1f} s"

    def _was_disturbed(self, since: datetime, until: datetime) -> bool:
        return any(began <= until and since <= ended for began, ended in self.disturbances)


@contextmanager
def _a_disk(directory: Path) -> Iterator[None]:
    with mounted(directory, "64m") if os.geteuid() == 0 else nullcontext():
        yield


@asynccontextmanager
async def a_world(directory: Path, seed: str, clock_library: Path | None) -> AsyncIterator[World]:
    """Make a world; nothing of it is left afterwards."""
    clock = directory / "clock"
    clock.write_text("+0")
    with running() as broker, _a_disk(directory / "state"):
        broker.settle()
        vhost = broker.new_vhost()
        common = {"management_url": broker.management_url, "heartbeat": 5, "publish_timeout": 5}
        amqp = AmqpSettings.model_validate({"url": broker.url(vhost), **common})
        async with Proxy(broker.port) as proxy:
            through = AmqpSettings.model_validate({"url": broker.url(vhost, port=proxy.port), **common})
            consumer = Consumer(
                directory,
                through,
                RABBIT2DOCKER_AMQP__PUBLISH_TIMEOUT="5",
                RABBIT2DOCKER_TENANTS=json.dumps([MINE, NEIGHBOUR]),
                RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="8",
            )
            consumer.variables |= clock_variables(clock_library, clock) if clock_library else {}
            try:
                await asyncio.to_thread(consumer.start_and_wait)
                yield World(broker, vhost, amqp, proxy, consumer, random.Random(seed), clock)
            finally:
                if consumer.process is not None and not consumer.has_ended():
                    os.kill(consumer.process.pid, signal.SIGCONT)
                consumer.end_everything()
