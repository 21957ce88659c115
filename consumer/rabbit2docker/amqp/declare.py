"""Declares the topology in RabbitMQ, or compares it with what exists."""

from functools import partial
from typing import Final

from aiormq.exceptions import ChannelNotFoundEntity

from rabbit2docker.amqp.comparison import Report
from rabbit2docker.amqp.connection import RECONNECT_PAUSES, translated
from rabbit2docker.amqp.declarer import Declarer, Difference
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.management import Management
from rabbit2docker.amqp.topology import Topology, make_topology
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import retry, retry_forever
from rabbit2docker.settings import Settings

log = get_logger()

REDECLARE_PAUSES: Final = (0.1, 0.5, 1.0)
"""Pauses before everything is declared again because a part was deleted in the meantime."""
UNSEEN = (
    "not compared: bindings, and the policies in force. AMQP does not show them: set "
    "RABBIT2DOCKER_AMQP__MANAGEMENT_URL"
)


async def declare(settings: Settings) -> list[Difference]:
    """Declare what is missing; return the limits that existing queues and streams have instead of the settings'.

    Raises TopologyMismatch when something exists with other arguments, AccessRefused, BrokerUnavailable.
    """
    topology = make_topology(settings.tenants, settings.topology)
    endpoint = Endpoint(settings.amqp, "topology")
    async with Declarer(endpoint) as declarer:
        with translated(endpoint.url):
            return await retry(
                partial(_declare_all, declarer, topology), on=ChannelNotFoundEntity, pauses=REDECLARE_PAUSES
            )


async def _declare_all(declarer: Declarer, topology: Topology) -> list[Difference]:
    differences: list[Difference] = []
    for spec in topology.objects:
        differences += await declarer.declare(spec)
    for binding in topology.bindings:
        await declarer.bind(binding)
    for binding in topology.obsolete:
        await declarer.unbind(binding)
    return differences


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
        await declare(settings)  # the keeper logs the limits that differ
    except AccessRefused:
        # A wrong password fails again when the service connects, and is reported there.
        log.info("topology not declared: user lacks permission")


async def check(settings: Settings) -> Report:
    """Compare RabbitMQ with the topology. Raises AccessRefused, BrokerUnavailable."""
    topology = make_topology(settings.tenants, settings.topology)
    if settings.amqp.has_management:
        async with Management(settings.amqp) as management:
            return await management.compare(topology)
    endpoint = Endpoint(settings.amqp, "topology")
    async with Declarer(endpoint) as declarer:
        with translated(endpoint.url):
            return Report(await _problems(declarer, topology), [UNSEEN])


async def _problems(declarer: Declarer, topology: Topology) -> list[str]:
    problems: list[str] = []
    for spec in topology.objects:
        if not await declarer.exists(spec):
            problems.append(f"{spec.kind} {spec.name} is missing")
            continue
        try:
            problems += map(str, await declarer.declare(spec))  # it exists, so RabbitMQ only compares
        except TopologyMismatch as error:
            problems.append(str(error))
    return problems
