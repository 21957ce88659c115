"""RabbitMQ's management API: what AMQP does not show, for comparisons. It changes nothing."""

import ssl
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from rabbit2docker.amqp.comparison import Policy, Present, Report, compare
from rabbit2docker.amqp.endpoint import secret_of, vhost_of
from rabbit2docker.amqp.topology import BindingSpec, Topology
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from rabbit2docker.settings import AmqpSettings

ANSWER_SECONDS: Final = 10.0


class Management:
    """A client for the few calls of the API that are needed."""

    def __init__(self, settings: AmqpSettings) -> None:
        """Take the URL and the virtual host of the settings. Raises ConfigurationError."""
        url = URL(secret_of(settings.management_url, settings.management_url_file))
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(
                "RABBIT2DOCKER_AMQP__MANAGEMENT_URL must be http(s)://user:password@host:port/"
            )
        self._vhost = quote(vhost_of(settings), safe="")
        self._url = url.with_user(None)
        tls = _tls(settings)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth(url.user or "guest", url.password or "")},
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            connector=aiohttp.TCPConnector(ssl=tls),
        )

    async def __aenter__(self) -> "Management":
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._session.close()

    async def _list(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind in the virtual host. Raises AccessRefused, BrokerUnavailable."""
        # A virtual host `/` is %2F in the path: yarl must not decode it.
        url = URL(f"{str(self._url).rstrip('/')}/api/{kind}/{self._vhost}", encoded=True)
        try:
            async with self._session.get(url) as response:
                if response.status in (401, 403):
                    raise AccessRefused(
                        f"RabbitMQ's management API refuses to list {kind}: the user needs a tag, `management` for "
                        "most, `policymaker` for policies, `administrator` for operator policies."
                    )
                if response.status != 200:
                    raise BrokerUnavailable(
                        f"RabbitMQ's management API answers {response.status} to a list of {kind}: "
                        f"{(await response.text())[:300]}"
                    )
                found: list[dict[str, Any]] = await response.json()
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BrokerUnavailable(
                f"RabbitMQ's management API at {self._url} does not answer: {str(error) or type(error).__name__}"
            ) from error

    async def bindings(self) -> frozenset[BindingSpec]:
        """Return all bindings of queues."""
        return frozenset(
            BindingSpec(item["source"], item["destination"], item["routing_key"])
            for item in await self._list("bindings")
        )

    async def compare(self, topology: Topology) -> Report:
        """Return what is missing or differs, the policies in force, and what this user could not see."""
        policies: list[Policy] = []
        unseen: list[str] = []
        for kind, path in (("policy", "policies"), ("operator policy", "operator-policies")):
            try:
                policies += [_policy(kind, item) for item in await self._list(path)]
            except AccessRefused as error:
                unseen.append(f"not compared: {kind} of any name. {error}")
        present = Present(
            exchanges={item["name"]: item for item in await self._list("exchanges")},
            queues={item["name"]: item for item in await self._list("queues")},
            bindings=await self.bindings(),
            policies=tuple(policies),
        )
        report = compare(topology, present)
        report.notes += unseen
        return report


def _tls(settings: AmqpSettings) -> ssl.SSLContext | bool:
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigurationError(f"{settings.ca_file} is no file of certificates: {error}.") from error


def _policy(kind: str, item: dict[str, Any]) -> Policy:
    return Policy(kind, item["name"], item["pattern"], item["apply-to"], item["priority"], item["definition"])
