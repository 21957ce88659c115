"""Fixtures that several kinds of tests use."""

from collections.abc import Iterator

import hypothesis
import pytest

from rabbit2docker.settings import AmqpSettings, Settings
from tests.support import postgresql
from tests.support import rabbitmq as brokers
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ

# A busy machine makes single examples slow; time is no property of the code under test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A broker for the whole run; tests do not stop it."""
    with brokers.running() as broker:
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
    return AmqpSettings.model_validate(
        {"url": rabbitmq.url(vhost), "management_url": rabbitmq.management_url, "heartbeat": 5}
    )


@pytest.fixture
def settings(amqp: AmqpSettings) -> Settings:
    """Settings of a service on that virtual host."""
    return Settings(amqp=amqp)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL for the whole run; tests do not stop it."""
    with postgresql.running() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> Iterator[str]:
    """The URL of a database of the test's own."""
    name = postgresql_server.new_database()
    yield postgresql_server.url(name)
    postgresql_server.drop_database(name)
