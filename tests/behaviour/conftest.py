"""The consumer process of the fault tests serves here, too."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.amqp.stream import Last, Page, StreamReader
from rabbit2docker.settings import AmqpSettings, Settings
from tests.faults.conftest import make_consumer
from tests.support.exported_users import ExportedUsers
from tests.support.hub_service import HubService
from tests.support.kube.replicas import Replicas
from tests.support.rabbitmq import RabbitMQ
from tests.support.repositories import skip_without_services

__all__ = ["make_consumer"]

MakeHub = Callable[..., HubService]
ImportUsers = Callable[..., ExportedUsers]


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Replicas]:
    """An API server with a node, for executors in this process, which may not block."""
    with blockbuster_ctx("rabbit2docker") as blocking:
        for function in blocking.functions.values():
            # Has a thread and a loop of its own.
            function.can_block_in("executors/kubernetes/client.py", {"_read_configuration"})
        async with Replicas(tmp_path) as replicas:
            yield replicas


@pytest.fixture
def own_amqp(rabbitmq: RabbitMQ) -> Iterator[AmqpSettings]:
    """A virtual host for a test with a consumer of its own that builds for real."""
    skip_without_services()
    with rabbitmq.own_vhost() as amqp:
        yield amqp


@pytest.fixture
def make_hub(tmp_path: Path, amqp: AmqpSettings) -> Iterator[MakeHub]:
    """Make services for a JupyterHub on the test's virtual host; nothing of them is left afterwards."""
    made: list[HubService] = []

    def make(**variables: str) -> HubService:
        directory = tmp_path / f"hub{len(made)}"
        directory.mkdir()
        made.append(HubService(directory, amqp, **variables))
        made[-1].fork = True
        return made[-1]

    yield make
    for hub in made:
        hub.end()


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[ConfirmedPublisher]:
    """A publisher as the service has it, on a declared topology."""
    await declare.declare(settings)
    async with publishing(settings, wait_seconds=180) as found:
        yield found


@pytest.fixture
def import_users(rabbitmq: RabbitMQ, vhost: str) -> Iterator[ImportUsers]:
    """Import what `topology export` prints for some tenants; the users are deleted afterwards."""
    imported: list[ExportedUsers] = []

    def import_(*tenants: str) -> ExportedUsers:
        imported.append(ExportedUsers(rabbitmq, vhost, tenants))
        return imported[-1]

    yield import_
    for users in imported:
        users.delete()


@pytest.fixture
def looked_through(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the messages of each stream that RabbitMQ looks through, whether or not it sends them."""
    counts: Counter[str] = Counter()
    original = StreamReader.page

    async def page(self: StreamReader, last: Last, *, offset: int, **others: Any) -> Page:
        found = await original(self, last, offset=offset, **others)
        counts[self._stream] += found.next - offset
        return found

    monkeypatch.setattr(StreamReader, "page", page)
    return counts
