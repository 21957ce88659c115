"""The faults. Each is a coroutine that has ended what it began when it returns, but for what recovers by itself."""

import asyncio
import os
import signal
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

import aio_pika

from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest
from rabbit2docker_schemas.routing import RESULTS_EXCHANGE, hub_bindings
from tests.chaos.world import MINE, NEIGHBOUR, World
from tests.support.consumer import a_request
from tests.support.disks import fill
from tests.support.raw_amqp import RawPublisher, short
from tests.support.waiting import eventually

Act = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    act: Act
    concerns_all: bool = True
    """False if it is a neighbour's doing, which must not delay anybody else."""


async def kill_consumer(world: World) -> None:
    await asyncio.to_thread(world.consumer.kill)
    await asyncio.sleep(world.random.uniform(0, 3))
    world.consumer.start()


async def stop_consumer(world: World) -> None:
    await asyncio.to_thread(world.consumer.stop)
    world.consumer.start()


async def freeze_consumer(world: World) -> None:
    assert world.consumer.process is not None
    world.consumer.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(world.random.uniform(0.5, 12))
    world.consumer.process.send_signal(signal.SIGCONT)


async def kill_builder(world: World) -> None:
    if builders := world.builders():
        with suppress(ProcessLookupError):
            os.kill(world.random.choice(builders), signal.SIGKILL)


async def cut_connections(world: World) -> None:
    world.proxy.cut()


async def hold_data_back(world: World) -> None:
    world.proxy.black_hole()
    await asyncio.sleep(world.random.uniform(0.5, 12))
    if world.random.random() < 0.5:
        world.proxy.cut()
    world.proxy.flow()


async def refuse_connections(world: World) -> None:
    world.proxy.refuse(True)
    world.proxy.cut()
    await asyncio.sleep(world.random.uniform(0.5, 6))
    world.proxy.refuse(False)


async def kill_broker(world: World) -> None:
    await asyncio.to_thread(world.broker.kill)
    await asyncio.sleep(world.random.uniform(0, 3))
    await asyncio.to_thread(world.broker.start_again)


async def raise_memory_alarm(world: World) -> None:
    def hold() -> None:
        with world.broker.memory_alarm():
            world.consumer.is_ready()

    await asyncio.to_thread(hold)


async def take_engine_away(world: World) -> None:
    away = world.consumer.fake_docker / "away"
    away.touch()
    await asyncio.sleep(world.random.uniform(0.5, 10))
    away.unlink()


async def delete_results_exchange(world: World) -> None:
    with suppress(OSError):
        await asyncio.to_thread(
            world.broker.api, "DELETE", f"exchanges/{quote(world.vhost, safe='')}/{RESULTS_EXCHANGE}"
        )


async def fill_disk(world: World) -> None:
    ballast = await asyncio.to_thread(fill, world.state)
    await asyncio.sleep(world.random.uniform(0.5, 10))
    ballast.unlink()


async def jump_clock(world: World) -> None:
    world.clock.write_text(f"{world.random.choice([-1, 1]) * world.random.randint(60, 90_000):+d}")
    await asyncio.sleep(world.random.uniform(0.5, 10))
    world.clock.write_text("+0")


async def fill_queue(world: World) -> None:
    """Give a neighbour's hub a queue that refuses nearly everything, and something to refuse."""
    async with await aio_pika.connect(world.amqp.url.get_secret_value()) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            f"hub.{NEIGHBOUR}.full",
            durable=True,
            arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
        )
        # An earlier fault may have deleted it, and the consumer may be about to declare it again.
        await eventually(partial(_has_exchange, connection, RESULTS_EXCHANGE))
        for key in hub_bindings(NEIGHBOUR):
            await queue.bind(RESULTS_EXCHANGE, key)
    for _ in range(3):
        await world.publish(a_request(f"neighbour-{world.random.getrandbits(64):x}", lines=50), NEIGHBOUR)


async def _has_exchange(connection: aio_pika.abc.AbstractConnection, name: str) -> bool:
    with suppress(aio_pika.exceptions.ChannelNotFoundEntity):
        async with connection.channel() as channel:
            await channel.declare_exchange(name, "topic", durable=True, passive=True)
            return True
    return False


async def repeat_request(world: World) -> None:
    if world.asked:
        await world.publish(world.random.choice(list(world.asked.values())).request)


async def cancel_build(world: World) -> None:
    if world.asked:
        name = world.random.choice(list(world.asked))
        await world.publish(CancelRequest(build_id=build_id_of(MINE, name), requester="chaos"))


async def publish_poison(world: World) -> None:
    key = f"request.{NEIGHBOUR}.interactive".encode()

    def publish() -> None:
        with RawPublisher(world.amqp.url.get_secret_value()) as raw:
            for _ in range(5):
                raw.publish(b"builds", key, b"{}", timestamp=struct.pack(">Q", 1_764_000_000_000_000))
                raw.publish(b"builds", key, b"{}", message_id=short(b"na\xefve"))

    await asyncio.to_thread(publish)


async def publish_nonsense(world: World) -> None:
    bodies = [b" ", b"[" * 5000, b'{"provider": "gh"}', b"\xff\xfe", b'{"spec": 1e999}', b"x" * 100_000]
    keys = [f"request.{NEIGHBOUR}.interactive", f"request.{NEIGHBOUR}.bulk", f"cancel.{NEIGHBOUR}", "a.b"]

    def publish() -> None:
        with RawPublisher(world.amqp.url.get_secret_value()) as raw:
            for _ in range(30):
                body, key = world.random.choice(bodies), world.random.choice(keys)
                raw.publish(b"builds", key.encode(), body)

    await asyncio.to_thread(publish)


def possible_faults(*, disk: bool, clock: bool) -> list[Fault]:
    """Return the faults that this machine allows."""
    left_out = {*(() if disk else (fill_disk,)), *(() if clock else (jump_clock,))}
    return [fault for fault in FAULTS if fault.act not in left_out]


FAULTS: Final = (
    Fault("kill the consumer", kill_consumer),
    Fault("stop the consumer", stop_consumer),
    Fault("freeze the consumer", freeze_consumer),
    Fault("kill a builder", kill_builder),
    Fault("cut connections", cut_connections),
    Fault("hold data back", hold_data_back),
    Fault("refuse connections", refuse_connections),
    Fault("kill RabbitMQ", kill_broker),
    Fault("raise a memory alarm", raise_memory_alarm),
    Fault("take the engine away", take_engine_away),
    Fault("delete the results exchange", delete_results_exchange),
    Fault("fill the disk", fill_disk),
    Fault("set the clock", jump_clock),
    Fault("fill a neighbour's queue", fill_queue, concerns_all=False),
    Fault("repeat a request", repeat_request, concerns_all=False),
    Fault("cancel a build", cancel_build, concerns_all=False),
    Fault("publish poison", publish_poison, concerns_all=False),
    Fault("publish nonsense", publish_nonsense, concerns_all=False),
)
