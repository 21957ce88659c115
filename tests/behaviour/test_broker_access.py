"""Several addresses, TLS, client certificates and credentials in files, on a real RabbitMQ."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rabbit2docker.amqp import connection, declare
from rabbit2docker.amqp.broker import Broker
from rabbit2docker.amqp.connection import ManagedChannel, connected
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from rabbit2docker.settings import AmqpSettings, Settings
from tests.support.broker import completed, running, with_amqp
from tests.support.certificates import CLIENT
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ, certificates
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

WithTls = Callable[..., Settings]


@pytest.fixture
def with_tls(settings: Settings, rabbitmq: RabbitMQ, vhost: str) -> WithTls:
    """Settings for the TLS port, with changes."""

    def make(user: str = "guest:guest@", ca: str = "ca.pem", **changes: object) -> Settings:
        port = rabbitmq.container.ports[5671]
        url = f"amqps://{user}127.0.0.1:{port}/{vhost}"
        return with_amqp(settings, url=url, ca_file=certificates() / ca, management_url=None, **changes)

    return make


class TestTls:
    async def test_everything_works_over_tls_with_an_authority_of_ones_own(
        self, with_tls: WithTls, rabbitmq: RabbitMQ
    ) -> None:
        management = f"https://guest:guest@127.0.0.1:{rabbitmq.container.ports[15671]}/"
        settings = with_amqp(with_tls(), management_url=management)
        async with running(settings) as broker:
            await broker.publisher.publish(completed())
        assert (await declare.check(settings)).problems == []

    async def test_a_server_of_another_authority_is_not_trusted(self, with_tls: WithTls) -> None:
        with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
            await declare.declare(with_tls(ca="other-ca.pem"))

    async def test_a_client_certificate_is_a_login(
        self, with_tls: WithTls, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        rabbitmq.api("PUT", f"users/{CLIENT}", {"password": "unused", "tags": ""})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        rabbitmq.api("PUT", f"permissions/{vhost}/{CLIENT}", everything)
        settings = with_tls(
            user="",
            external=True,
            certificate_file=certificates() / "client.pem",
            key_file=certificates() / "client-key.pem",
        )
        async with running(settings) as broker:
            await broker.publisher.publish(completed())

            def users() -> set[str]:
                return {
                    each["user"] for each in rabbitmq.api("GET", "connections") if each.get("vhost") == vhost
                }

            await eventually(lambda: users() == {CLIENT})

    async def test_a_login_without_a_client_certificate_is_refused_in_words(self, with_tls: WithTls) -> None:
        with pytest.raises(AccessRefused, match="refuses the login by client certificate"):
            await declare.declare(with_tls(user="", external=True))


class TestNodes:
    async def test_two_of_three_nodes_alive_is_alive(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str
    ) -> None:
        async with Proxy(rabbitmq.port) as one, Proxy(rabbitmq.port) as two:
            nodes = [f"127.0.0.1:{port}" for port in (one.port, two.port, free_port())]
            url = rabbitmq.url(vhost).replace("127.0.0.1", "is-not-asked.invalid")
            async with running(with_amqp(settings, url=url, nodes=nodes)) as broker:
                for dead, alive in ((one, two), (two, one)):
                    alive.refuse(False)
                    dead.refuse(True)
                    dead.cut()
                    await broker.publisher.publish(completed())
                    await eventually(lambda: not any(broker.problems().values()))

    async def test_every_node_that_is_away_is_named(self, settings: Settings) -> None:
        nodes = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        with pytest.raises(BrokerUnavailable) as raised:
            await declare.declare(with_amqp(settings, nodes=nodes))
        assert all(node in str(raised.value) for node in nodes)


class TestFiles:
    async def test_a_new_password_is_used_at_the_next_connect(
        self,
        settings: Settings,
        rabbitmq: RabbitMQ,
        vhost: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(connection, "RECONNECT_PAUSES", (0.05,))
        user = f"rotating-{vhost}"
        rabbitmq.add_user(user, vhost, configure=".*", write=".*", read=".*")
        password = tmp_path / "password"
        password.write_text(f"{user}\n")
        async with Proxy(rabbitmq.port) as proxy:
            changed = with_amqp(
                settings, url=rabbitmq.url(vhost, user=user, port=proxy.port), password_file=password
            )
            channel = ManagedChannel("rotating", changed.amqp)
            async with connected(channel, 180):
                rabbitmq.api("PUT", f"users/{user}", {"password": "new: p@ss/word", "tags": ""})
                proxy.cut()
                await eventually(lambda: "refuses user" in channel.problem)
                password.unlink()
                await eventually(lambda: "cannot be read" in channel.problem)
                password.write_text("new: p@ss/word")
                await eventually(lambda: channel.is_connected)

    async def test_the_urls_of_all_connections_can_be_files(
        self, settings: Settings, rabbitmq: RabbitMQ, vhost: str, tmp_path: Path
    ) -> None:
        (tmp_path / "url").write_text(rabbitmq.url(vhost) + "\n")
        (tmp_path / "management-url").write_text(rabbitmq.management_url + "\n")
        amqp = AmqpSettings(
            url_file=tmp_path / "url", management_url_file=tmp_path / "management-url", heartbeat=5
        )
        changed = settings.model_copy(update={"amqp": amqp})
        async with running(changed):
            assert (await declare.check(changed)).problems == []


def test_the_name_of_a_file_that_is_no_url_is_in_the_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("nonsense")
    with pytest.raises(ConfigurationError, match=str(tmp_path / "url")):
        Broker(with_amqp(settings, url_file=tmp_path / "url"))
    with pytest.raises(ConfigurationError, match="NODES"):
        Broker(with_amqp(settings, nodes=["rabbit/vhost"]))
