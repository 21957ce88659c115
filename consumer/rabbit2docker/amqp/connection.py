"""One connection with one channel, kept up for as long as the program runs.

aio-pika's robust connection restores what it remembers, and when that fails once the channel stays dead while the
connection lives on. Here nothing is restored: whatever breaks, connection or channel, both are made anew and `setup`
runs again. A channel that is dead without anybody having said so is found by the watchdog.
"""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from rabbit2docker import metrics
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, ConfigurationError, TopologyMismatch
from rabbit2docker.settings import AmqpSettings

log = structlog.get_logger()

CONNECT_SECONDS: Final = 10.0
WATCH_SECONDS: Final = 2.0
PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before connecting again, each varied by half so that replicas do not come all at once."""
BROKEN: Final = (aio_pika.exceptions.AMQPError, OSError, ChannelInvalidStateError, RuntimeError, TimeoutError)
"""What aio-pika raises when connection or channel are gone. RuntimeError: a transport that is closing."""

Setup = Callable[[AbstractChannel], Awaitable[None]]
Missing = Callable[[AbstractChannel], Awaitable[str | None]]


async def _no_setup(channel: AbstractChannel) -> None:
    return


async def _nothing_missing(channel: AbstractChannel) -> str | None:
    return None


def quiet_library_loggers() -> None:
    """Silence what the libraries say about lost connections, with tracebacks: the link says it in one line."""
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def is_cancelled() -> bool:
    """Tell whether this task was really cancelled. aiormq lets waiters of a stuck connection see a CancelledError too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def address_of(url: URL) -> str:
    """Return the address for people: no user, no password."""
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"


def parse_url(settings: AmqpSettings, role: str) -> URL:
    """Return the URL to connect to; raises ConfigurationError."""
    try:
        url = URL(settings.url.get_secret_value())
    except ValueError:
        url = URL()
    if url.scheme not in ("amqp", "amqps") or not url.host:
        raise ConfigurationError(
            "RABBIT2DOCKER_AMQP__URL must be amqp://user:password@host:port/vhost or amqps://…"
        )
    return url.update_query(heartbeat=settings.heartbeat, name=f"rabbit2docker {role} {socket.gethostname()}")


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Translate the library's errors of connecting and declaring."""
    try:
        yield
    except (AuthenticationError, ProbableAuthenticationError) as error:
        raise AccessRefused(
            f"RabbitMQ at {address_of(url)} refuses user {url.user!r}: check user and password "
            "in RABBIT2DOCKER_AMQP__URL."
        ) from error
    except InvalidFrameError as error:
        # A broker that starts closes so, too: worth another try.
        raise BrokerUnavailable(
            f"RabbitMQ at {address_of(url)} does not open the virtual host {url.path!r} for user {url.user!r} (yet): "
            "does it exist, and may the user use it?"
        ) from error
    except ChannelNotFoundEntity as error:
        if "is down or inaccessible" in str(error):
            # What RabbitMQ says of its own queues for a moment after it has started.
            raise BrokerUnavailable(f"RabbitMQ at {address_of(url)}: {_reply(error)}") from error
        raise TopologyMismatch(f"{_reply(error)}. `rabbit2docker topology declare` makes it.") from error
    except ChannelAccessRefused as error:
        raise AccessRefused(f"RabbitMQ refuses: {_reply(error)}") from error
    except BROKEN as error:
        raise BrokerUnavailable(f"RabbitMQ at {address_of(url)} is not reachable: {_reply(error)}") from error


def _reply(error: BaseException) -> str:
    text = str(error.args[-1] if error.args else error) or type(error).__name__
    return text.removeprefix("NOT_FOUND - ").removeprefix("ACCESS_REFUSED - ")


async def open_connection(url: URL) -> AbstractConnection:
    """Connect once; raises AccessRefused or BrokerUnavailable."""
    connection = aio_pika.Connection(url)
    with translated(url):
        try:
            await connection.connect(timeout=CONNECT_SECONDS)
        except BaseException:
            # One that is only dropped closes itself when it is collected, by then perhaps without a loop, and complains.
            await connection.close()
            raise
    return connection


async def close(connection: AbstractConnection) -> None:
    """Close it, or leave it to itself where it is stuck."""
    try:
        async with asyncio.timeout(3.0):
            await asyncio.shield(connection.close())
    except (*BROKEN, asyncio.CancelledError):
        if is_cancelled():
            raise


class ManagedChannel:
    """Keeps a channel. `setup` runs on each new one, `missing` is asked every few seconds what is silently gone."""

    def __init__(
        self,
        role: str,
        settings: AmqpSettings,
        *,
        setup: Setup = _no_setup,
        missing: Missing = _nothing_missing,
    ) -> None:
        """Take the `role` for logs and metrics. Raises ConfigurationError for a URL that cannot be one."""
        quiet_library_loggers()
        self.role = role
        self.url = parse_url(settings, role)
        self.generation = 0
        """Grows with each channel: what belongs to an older one is stale."""
        self.problem = "not connected yet"
        """Why it is not up, for people; empty while it is."""
        self._settings = settings
        self._setup = setup
        self._missing = missing
        self._channel: AbstractChannel | None = None
        self._newest: AbstractChannel | None = None
        self._up = asyncio.Event()
        self._broken = asyncio.Event()
        self._closing = False
        self._was_up = False

    @property
    def is_closing(self) -> bool:
        """Tell whether it will not come up again."""
        return self._closing

    @property
    def is_up(self) -> bool:
        """Tell whether there is a channel now."""
        return self._channel is not None and not self._channel.is_closed

    @property
    def is_channel_open(self) -> bool:
        """Tell whether the channel of this generation is open, be it that its setup still runs."""
        return self._newest is not None and not self._newest.is_closed

    def current(self) -> AbstractChannel | None:
        """Return the channel, if there is one now."""
        return self._channel if self.is_up else None

    async def channel(self) -> AbstractChannel:
        """Wait for a channel; raises BrokerUnavailable when the link is closed for good."""
        while (channel := self.current()) is None:
            if self._closing:
                raise BrokerUnavailable(f"The connection to RabbitMQ is closed ({self.problem}).")
            self._up.clear()
            await self._up.wait()
        return channel

    def request_reconnect(self) -> None:
        """Have connection and channel made anew: somebody found that they do not work."""
        self._broken.set()

    async def run(self) -> None:
        """Keep it up until cancelled. Raises AccessRefused when RabbitMQ refuses us from the beginning."""
        tries, told = 0, ""
        try:
            while True:
                try:
                    async with self._connected():
                        tries, told = 0, ""
                        await self._watch()
                except AccessRefused as error:
                    if not self._was_up:
                        raise
                    self.problem = str(error)
                except (BrokerUnavailable, TopologyMismatch) as error:
                    self.problem = str(error)
                pause = PAUSES[min(tries, len(PAUSES) - 1)] * random.uniform(0.5, 1.5)
                tries += 1
                if self.problem != told:  # it may be for days: another program may have what we wait for
                    log.warning("RabbitMQ is away, waiting for it", why=self.problem, role=self.role)
                    told = self.problem
                await asyncio.sleep(pause)
        finally:
            self._closing = True
            self._up.set()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        self._broken.clear()
        connection = await open_connection(self.url)
        try:
            with translated(self.url):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                self._listen(connection, channel)
                self.generation += 1
                self._newest = channel
                await self._setup(channel)
            await self._listen_for_cancels(channel)
            self._channel = channel
            self._tell_up()
            yield
        finally:
            self._channel = None
            metrics.AMQP_CONNECTED.labels(role=self.role).set(0)
            await close(connection)

    def _tell_up(self) -> None:
        if self._was_up:
            metrics.AMQP_RECONNECTS.labels(role=self.role).inc()
        log.info("connected to RabbitMQ", role=self.role, address=address_of(self.url))
        metrics.AMQP_CONNECTED.labels(role=self.role).set(1)
        self._was_up = True
        self.problem = ""
        self._up.set()

    def _listen(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        def on_close(sender: Any, error: BaseException | None) -> None:
            if not self._broken.is_set():  # else it is we who close it, for the reason noted already
                self.problem = _reply(error) if error else "closed"
                self._broken.set()

        connection.close_callbacks.add(on_close)
        channel.close_callbacks.add(on_close)

    async def _listen_for_cancels(self, channel: AbstractChannel) -> None:
        def on_cancel(frame: Any) -> None:
            self.problem = "RabbitMQ ended a consumer: was its queue deleted?"
            self._broken.set()

        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(on_cancel)

    async def _watch(self) -> None:
        """Return when the channel is dead, whether or not anybody said so."""
        bad_since: float | None = None
        loop = asyncio.get_running_loop()
        while not self._broken.is_set():
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._broken.wait()
            except TimeoutError:
                missing = await self._what_is_missing()
                bad_since = None if missing is None else (bad_since or loop.time())
                if bad_since is not None and loop.time() - bad_since >= self._settings.watchdog_after:
                    self.problem = f"silently dead: {missing}"
                    metrics.WATCHDOG_REBUILDS.inc()
                    return

    async def _what_is_missing(self) -> str | None:
        channel = self._channel
        if channel is None or channel.is_closed:
            return "the channel is closed"
        return await self._missing(channel)


@asynccontextmanager
async def connected(
    link: ManagedChannel, seconds: float | None, *refusals: "asyncio.Future[TopologyMismatch]"
) -> AsyncIterator[None]:
    """Run a link for as long as the context lasts, and begin when it is up.

    Raises AccessRefused, what one of `refusals` holds, or BrokerUnavailable when it is not up within `seconds`;
    without `seconds` it waits for ever.
    """
    running = asyncio.create_task(link.run(), name=link.role)
    try:
        await _until_up(link, running, seconds, refusals)
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, AccessRefused):
            await running


async def _until_up(
    link: ManagedChannel,
    running: "asyncio.Task[None]",
    seconds: float | None,
    refusals: "tuple[asyncio.Future[TopologyMismatch], ...]",
) -> None:
    up = asyncio.create_task(link.channel())
    try:
        waited_for: set[asyncio.Future[Any]] = {up, running, *refusals}
        done, _ = await asyncio.wait(waited_for, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        up.cancel()
    for refusal in refusals:
        if refusal in done:
            raise refusal.result()
    if running in done:
        await running
    if up not in done:
        raise BrokerUnavailable(link.problem)
