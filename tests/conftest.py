"""Fixtures that several kinds of tests use."""

import logging
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

from rabbit2docker.hub.store import database
from rabbit2docker.settings import AmqpSettings, Settings
from tests.support import parallel
from tests.support import rabbitmq as brokers
from tests.support.containers import begin_run, disconnect
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import PATIENCE

# jsonschema imports it for IRIs, which no schema has, and it compiles a grammar for two seconds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# A busy machine makes single examples slow; time is no property of the code under test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, unless this is a worker of one."""
    config.add_cleanup(disconnect)
    if not hasattr(config, "workerinput"):
        config.add_cleanup(begin_run())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait longest first."""
    parallel.sort_longest_first(items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the scheduler know which tests must not be separated, before it hears of the tests."""
    if hasattr(session.config, "workerinput"):
        parallel.write_groups(session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> parallel.GroupScheduling | None:
    """Schedule by group, unless the command line asks for another distribution."""
    return parallel.GroupScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def log_of_one_test() -> Iterator[None]:
    """Undo what a test that runs the command line in this process configures: later tests have other output streams."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root = logging.getLogger()
        for handler in root.handlers[:]:
            if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
                root.removeHandler(handler)
        root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def rabbitmq() -> RabbitMQ:
    """A broker for the whole run, shared by all workers; tests do not stop it."""
    return RabbitMQ.shared()


@pytest.fixture(scope="session")
def mortal_rabbitmq() -> Iterator[RabbitMQ]:
    """A broker that tests may kill and starve.

    Mark such tests with `xdist_group("mortal-rabbitmq")`: they run one after the other, on one worker.
    """
    with brokers.running() as broker:
        broker.settle()
        yield broker


@pytest.fixture
def vhost(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A virtual host of the test's own."""
    name = rabbitmq.new_vhost()
    yield name
    rabbitmq.delete_vhost(name)


@pytest.fixture
def amqp(rabbitmq: RabbitMQ, vhost: str) -> AmqpSettings:
    """Settings for that virtual host."""
    return rabbitmq.settings(vhost)


@pytest.fixture
def settings(amqp: AmqpSettings) -> Settings:
    """Settings of a service on that virtual host."""
    return Settings(amqp=amqp)


@pytest.fixture(scope="session")
def postgresql_server() -> PostgreSQL:
    """A PostgreSQL for the whole run, shared by all workers; tests do not stop it."""
    return PostgreSQL.shared()


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database of the test's own. It is there: connecting takes as long as it takes."""
    monkeypatch.setitem(database.POSTGRESQL, "connect_timeout", round(PATIENCE))
    name = postgresql_server.new_database()
    yield postgresql_server.url(name)
    postgresql_server.drop_database(name)
