"""Messages that are written together get the answers that are theirs, on a real RabbitMQ and through the client library."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from unittest.mock import patch

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.common import FieldValue
from pamqp.heartbeat import Heartbeat

from rabbit2docker.amqp.confirmed_channel import ConfirmedChannel, confirmed_channel
from rabbit2docker.amqp.connection import close, open_connection
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.outgoing import make_message
from rabbit2docker.settings import Settings

pytestmark = pytest.mark.broker

PATIENCE = 120.0


@asynccontextmanager
async def publishing_channel(settings: Settings) -> AsyncIterator[tuple[ConfirmedChannel, aiormq.Channel]]:
    """Give a channel, and what the library has of it."""
    connection = await open_connection(Endpoint(settings.amqp, "test"))
    try:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, aiormq.Channel)
        yield await confirmed_channel(channel), underlay
    finally:
        await close(connection)


@pytest.fixture
async def channel(settings: Settings) -> AsyncIterator[ConfirmedChannel]:
    """A channel with a queue `there` that takes everything, and a queue `full` that takes nothing."""
    async with publishing_channel(settings) as (found, underlay):
        await underlay.queue_declare("there", exclusive=True)
        full: dict[str, FieldValue] = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await underlay.queue_declare("full", exclusive=True, arguments=full)
        yield found


@pytest.fixture
def writes() -> Iterator[list[int]]:
    """Sizes of what is written to sockets."""
    sizes: list[int] = []
    write = asyncio.StreamWriter.write

    def noted(self: asyncio.StreamWriter, data: bytes) -> None:
        sizes.append(len(data))
        write(self, data)

    with patch.object(asyncio.StreamWriter, "write", noted):
        yield sizes


async def publish(channel: ConfirmedChannel, key: str, size: int = 10, exchange: str = "") -> None:
    await channel.publish(exchange, key, make_message(b"x" * size, {}), timeout=PATIENCE)


async def test_each_message_of_a_write_gets_its_own_answer(
    channel: ConfirmedChannel, writes: list[int]
) -> None:
    keys = ["there", "nowhere", "full", "there", "full", "nowhere"] * 20
    found = await asyncio.gather(*[publish(channel, key) for key in keys], return_exceptions=True)
    expected = {"there": type(None), "nowhere": PublishError, "full": DeliveryError}
    assert [type(answer) for answer in found] == [expected[key] for key in keys]
    assert len(writes) == 1


async def test_a_body_larger_than_a_frame_arrives_whole(settings: Settings) -> None:
    async with publishing_channel(settings) as (channel, underlay):
        await underlay.queue_declare("there", exclusive=True)
        sizes = [0, 1, underlay.max_content_size, 3 * underlay.max_content_size + 1]
        await asyncio.gather(*[publish(channel, "there", size) for size in sizes])
        assert [len((await underlay.basic_get("there", no_ack=True)).body) for _ in sizes] == sizes


async def test_the_end_of_the_channel_fails_everything_that_was_not_confirmed(
    channel: ConfirmedChannel,
) -> None:
    doomed = [publish(channel, "there", exchange="missing") for _ in range(5)]
    found = await asyncio.gather(*doomed, return_exceptions=True)
    assert {type(answer) for answer in found} == {ChannelNotFoundEntity}
    with pytest.raises(ChannelInvalidStateError):
        await publish(channel, "there")


async def test_a_message_that_could_not_be_written_in_time_is_never_sent(settings: Settings) -> None:
    async with publishing_channel(settings) as (channel, underlay):
        await underlay.queue_declare("there", exclusive=True)
        drain, may_go_on = asyncio.StreamWriter.drain, asyncio.Event()

        async def stuck(writer: asyncio.StreamWriter) -> None:
            await may_go_on.wait()
            await drain(writer)

        with patch.object(asyncio.StreamWriter, "drain", stuck):
            await publish(channel, "there")  # written, and the socket is full from now on
            with pytest.raises(TimeoutError):
                await channel.publish("", "there", make_message(b"late", {}), timeout=0.05)
            waiting = asyncio.create_task(publish(channel, "there", 3))
            await asyncio.sleep(0)
            may_go_on.set()
            await asyncio.wait_for(waiting, PATIENCE)
        bodies = [(await underlay.basic_get("there", no_ack=True)).body for _ in range(3)]
        assert bodies == [b"x" * 10, b"xxx", b""]


async def test_nothing_is_kept_of_messages_that_were_answered(settings: Settings) -> None:
    async with publishing_channel(settings) as (channel, underlay):
        await underlay.queue_declare("there", exclusive=True)
        keys = ["there", "nowhere"] * 50
        await asyncio.gather(*[publish(channel, key) for key in keys], return_exceptions=True)
        await publish(channel, "there")  # confirmed after everything before it
        assert not underlay.message_id_delivery_tag
        assert not underlay.confirmations


@pytest.mark.parametrize("key", ["there", "nowhere", "full"])
async def test_an_answer_in_the_moment_of_giving_up_does_no_harm_to_the_channel(
    channel: ConfirmedChannel, key: str
) -> None:
    answer, gives_up = aiormq.Channel._get_frame, True

    async def late(underlay: aiormq.Channel) -> object:
        """Have every publisher give up when an answer has come, but before it is looked at."""
        frame = await answer(underlay)
        for confirmation in channel._unconfirmed if gives_up else ():
            confirmation.cancel()
        return frame

    with patch.object(aiormq.Channel, "_get_frame", late):
        for _ in range(2):  # the library waits already for the first answer
            with suppress(asyncio.CancelledError, PublishError, DeliveryError):
                await publish(channel, key)
        gives_up = False
        await publish(channel, "there")


async def test_frames_of_the_library_go_first_where_there_are_many(settings: Settings) -> None:
    async with publishing_channel(settings) as (channel, underlay):
        await underlay.queue_declare("there", exclusive=True)
        while not underlay.write_queue.full():
            underlay.write_queue.put_nowait(ChannelFrame.marshall(0, [Heartbeat()]))
        await publish(channel, "there")
