"""Declares the topology in RabbitMQ, or compares it with what exists."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from yarl import URL

from rabbit2docker.amqp.connection import RECONNECT_PAUSES, open_connection, parse_url, translated
from rabbit2docker.amqp.topology import (
    BindingSpec,
    ExchangeSpec,
    PolicySpec,
    QueueSpec,
    Topology,
    make_topology,
)
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, ConfigurationError, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import retry_forever
from rabbit2docker.settings import AmqpSettings, Settings

log = get_logger()

MANAGEMENT_SECONDS: Final = 10.0


def vhost_of(settings: AmqpSettings) -> str:
    """Return the virtual host of the AMQP URL, `/` where it names none."""
    return parse_url(settings, "topology").path.removeprefix("/") or "/"


@asynccontextmanager
async def _connection(settings: AmqpSettings) -> AsyncIterator[AbstractConnection]:
    url = parse_url(settings, "topology")
    connection = await open_connection(url)
    try:
        with translated(url):
            yield connection
    finally:
        await connection.close()


async def declare(settings: Settings) -> list[str]:
    """Declare what is missing, and set the policies if there is a management URL; return a report, line by line.

    Raises TopologyMismatch when something exists with other arguments, AccessRefused, BrokerUnavailable.
    """
    topology = make_topology(settings.tenants)
    async with _connection(settings.amqp) as connection:
        for exchange in topology.exchanges:
            await _declare_exchange(connection, exchange)
        for queue in topology.queues:
            await _declare_queue(connection, queue)
        async with await connection.channel() as channel:
            for binding in topology.bindings:
                target = await channel.get_queue(binding.queue, ensure=False)
                await target.bind(binding.exchange, binding.key)
            for binding in topology.obsolete:
                target = await channel.get_queue(binding.queue, ensure=False)
                await target.unbind(binding.exchange, binding.key)
    done = [
        f"{len(topology.exchanges)} exchanges, {len(topology.queues)} queues and streams, "
        f"{len(topology.bindings)} bindings exist"
    ]
    if settings.amqp.management_url is None:
        done.append(
            "policies were not set: RABBIT2DOCKER_AMQP__MANAGEMENT_URL is unset (`topology export` prints them)"
        )
        return done
    async with Management(settings.amqp) as management:
        for policy in topology.policies:
            await management.set_policy(policy)
    return [*done, f"{len(topology.policies)} policies are set"]


async def declare_if_allowed(settings: Settings) -> None:
    """Declare at the start of a service: wait for RabbitMQ, and accept a user without the right to declare.

    Raises TopologyMismatch when something exists with other arguments.
    """
    await retry_forever(
        partial(_declare_if_allowed, settings),
        on=BrokerUnavailable,
        pauses=RECONNECT_PAUSES,
        report=lambda error, pause: log.warning(
            "RabbitMQ unavailable, retrying", reason=str(error), delay_seconds=round(pause, 1)
        ),
    )


async def _declare_if_allowed(settings: Settings) -> None:
    try:
        await declare(settings)
    except AccessRefused:
        # A wrong password fails again when the service connects, and is reported there.
        log.info("topology not declared: user lacks permission")


async def check(settings: Settings) -> list[str]:
    """Return what is missing or differs, one sentence each; empty if the topology is complete.

    Raises AccessRefused, BrokerUnavailable.
    """
    topology = make_topology(settings.tenants)
    if settings.amqp.management_url is not None:
        async with Management(settings.amqp) as management:
            return await management.compare(topology)
    async with _connection(settings.amqp) as connection:
        found = [await _problem_of_exchange(connection, exchange) for exchange in topology.exchanges]
        found += [await _problem_of_queue(connection, queue) for queue in topology.queues]
    return [problem for problem in found if problem]


async def _declare_exchange(
    connection: AbstractConnection, spec: ExchangeSpec, *, passive: bool = False
) -> None:
    async with await connection.channel() as channel:
        try:
            await channel.declare_exchange(
                spec.name, spec.type, durable=True, arguments=spec.arguments, passive=passive
            )
        except ChannelPreconditionFailed as error:
            raise mismatch("Exchange", spec.name, error) from error


async def _declare_queue(connection: AbstractConnection, spec: QueueSpec, *, passive: bool = False) -> None:
    async with await connection.channel() as channel:
        try:
            await channel.declare_queue(spec.name, durable=True, arguments=spec.arguments, passive=passive)
        except ChannelPreconditionFailed as error:
            raise mismatch("Queue", spec.name, error) from error


def mismatch(kind: str, name: str, error: Exception) -> TopologyMismatch:
    """Return the error for an exchange or queue that exists with other arguments."""
    text = str(error.args[-1]).removeprefix("PRECONDITION_FAILED - ")
    return TopologyMismatch(
        f"{kind} {name} exists with other arguments: {text}. Arguments cannot be changed: empty it, delete it and "
        "declare again."
    )


async def _problem(
    kind: str,
    name: str,
    declare_passively: Callable[[], Awaitable[None]],
    declare: Callable[[], Awaitable[None]],
) -> str | None:
    try:
        await declare_passively()
    except ChannelNotFoundEntity:
        return f"{kind} {name} is missing"
    try:
        await declare()  # it exists, so RabbitMQ only compares the arguments
    except TopologyMismatch as error:
        return str(error)
    return None


async def _problem_of_exchange(connection: AbstractConnection, spec: ExchangeSpec) -> str | None:
    return await _problem(
        "exchange",
        spec.name,
        lambda: _declare_exchange(connection, spec, passive=True),
        lambda: _declare_exchange(connection, spec),
    )


async def _problem_of_queue(connection: AbstractConnection, spec: QueueSpec) -> str | None:
    return await _problem(
        "queue",
        spec.name,
        lambda: _declare_queue(connection, spec, passive=True),
        lambda: _declare_queue(connection, spec),
    )


class Management:
    """A client for the few calls of RabbitMQ's management API that are needed."""

    def __init__(self, settings: AmqpSettings) -> None:
        assert settings.management_url is not None
        url = URL(settings.management_url.get_secret_value())
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(
                "RABBIT2DOCKER_AMQP__MANAGEMENT_URL must be http(s)://user:password@host:port/"
            )
        self._url = url.with_user(None)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth(url.user or "guest", url.password or "")},
            timeout=aiohttp.ClientTimeout(total=MANAGEMENT_SECONDS),
        )
        self._vhost = quote(vhost_of(settings), safe="")

    async def __aenter__(self) -> "Management":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        # A virtual host `/` is %2F in the path: yarl must not decode it.
        url = URL(f"{str(self._url).rstrip('/')}/api/{path}", encoded=True)
        try:
            async with self._session.request(method, url, json=body) as response:
                if response.status in (401, 403):
                    raise AccessRefused(
                        f"RabbitMQ's management API refuses {method} {path}: the user needs a management tag "
                        "and, for policies, the policymaker tag."
                    )
                if response.status == 404:
                    return None
                if response.status >= 400:
                    raise TopologyMismatch(
                        f"RabbitMQ's management API answers {response.status} to {method} {path}: "
                        f"{(await response.text())[:300]}"
                    )
                return await response.json() if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BrokerUnavailable(
                f"RabbitMQ's management API at {self._url} does not answer: {str(error) or type(error).__name__}"
            ) from error

    async def set_policy(self, policy: PolicySpec) -> None:
        """Create or update a policy."""
        body = {
            "pattern": policy.pattern,
            "definition": policy.definition,
            "apply-to": policy.apply_to,
            "priority": 0,
        }
        await self._call("PUT", f"policies/{self._vhost}/{policy.name}", body)

    async def bindings(self) -> set[BindingSpec]:
        """Return all bindings of queues."""
        found = await self._call("GET", f"bindings/{self._vhost}") or []
        return {BindingSpec(item["source"], item["destination"], item["routing_key"]) for item in found}

    async def compare(self, topology: Topology) -> list[str]:
        """Return what is missing or differs."""
        problems: list[str] = []
        for kind, specs in (("exchange", topology.exchanges), ("queue", topology.queues)):
            existing = {
                item["name"]: item for item in await self._call("GET", f"{kind}s/{self._vhost}") or []
            }
            for spec in specs:
                problems += _differences(kind, spec, existing.get(spec.name))
        bound = await self.bindings()
        problems += [f"{binding} is missing" for binding in topology.bindings if binding not in bound]
        problems += [
            f"{binding} is of an earlier version and must be removed"
            for binding in topology.obsolete
            if binding in bound
        ]
        policies = await self._call("GET", f"policies/{self._vhost}") or []
        set_ = {item["name"]: item for item in policies}
        for policy in topology.policies:
            if policy.name not in set_:
                problems.append(f"policy {policy.name} is missing")
        return problems


def _differences(kind: str, spec: ExchangeSpec | QueueSpec, found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [f"{kind} {spec.name} is missing"]
    problems = []
    if isinstance(spec, ExchangeSpec) and found["type"] != spec.type:
        problems.append(f"exchange {spec.name} is of type {found['type']}, not {spec.type}")
    actual = {name: value for name, value in found.get("arguments", {}).items() if name != "x-queue-type"}
    expected = {name: value for name, value in spec.arguments.items() if name != "x-queue-type"}
    problems += [
        f"{kind} {spec.name} has {name}={actual.get(name)!r}, it should be {expected.get(name)!r}"
        for name in sorted(actual.keys() | expected.keys())
        if actual.get(name) != expected.get(name)
    ]
    type_ = spec.arguments.get("x-queue-type")
    if type_ and found.get("type", type_) != type_:
        problems.append(f"queue {spec.name} is of type {found['type']}, not {type_}")
    return problems
