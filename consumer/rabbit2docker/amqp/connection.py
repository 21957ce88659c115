"""One connection with one channel, restored for as long as the program runs.

aio-pika's robust connection restores what it remembers; when that fails once, the channel stays dead on a living
connection. Here nothing is restored: whichever of the two breaks, both are opened anew and `setup` runs again. A
watchdog finds a channel that died without a notice.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from rabbit2docker import metrics
from rabbit2docker.amqp.endpoint import Endpoint, address_of
from rabbit2docker.amqp.screened_transport import ScreenedTransportFactory
from rabbit2docker.errors import AccessRefused, BrokerUnavailable, ConfigurationError, TopologyMismatch
from rabbit2docker.logs import get_logger
from rabbit2docker.retry import Backoff, end_if_cancelled, is_cancelled
from rabbit2docker.settings import AmqpSettings
from rabbit2docker.tasks import TaskSet

log = get_logger()

CONNECT_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 2.0
RECONNECT_PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
BROKEN: Final = (
    aio_pika.exceptions.AMQPError,
    OSError,
    ChannelInvalidStateError,
    RuntimeError,
    TimeoutError,
    asyncio.InvalidStateError,
)
"""Raised by aio-pika when the connection or the channel is gone. RuntimeError: a transport that is closing.
InvalidStateError: the library's reader met an answer to something that was given up in the same moment.
"""

Setup = Callable[[AbstractChannel], Awaitable[None]]
Probe = Callable[[AbstractChannel], Awaitable[str | None]]


async def _no_setup(channel: AbstractChannel) -> None:
    return


async def _no_probe(channel: AbstractChannel) -> str | None:
    return None


def quiet_library_loggers() -> None:
    """Silence the libraries' tracebacks about lost connections; ManagedChannel logs one line instead."""
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Translate the library's errors of connecting and declaring."""
    try:
        yield
    except (AuthenticationError, ProbableAuthenticationError) as error:
        raise AccessRefused(_login_refused(url)) from error
    except InvalidFrameError as error:
        # A broker that is starting closes the connection in the same way, so another try is worth it.
        raise BrokerUnavailable(
            f"RabbitMQ at {address_of(url)} does not open the virtual host {url.path!r} for user {url.user!r} (yet): "
            "does it exist, and may the user use it?"
        ) from error
    except ChannelNotFoundEntity as error:
        if is_down(error):
            raise BrokerUnavailable(f"RabbitMQ at {address_of(url)}: {_reply(error)}") from error
        raise TopologyMismatch(f"{_reply(error)}. `rabbit2docker topology declare` makes it.") from error
    except ChannelAccessRefused as error:
        raise AccessRefused(f"RabbitMQ refuses: {_reply(error)}") from error
    except BROKEN as error:
        raise BrokerUnavailable(f"RabbitMQ at {address_of(url)} is not reachable: {_reply(error)}") from error


def _login_refused(url: URL) -> str:
    if url.query.get("auth", "").lower() == "external":
        return (
            f"RabbitMQ at {address_of(url)} refuses the login by client certificate: does a user have the name in it, and "
            "is the plugin rabbitmq_auth_mechanism_ssl enabled?"
        )
    return (
        f"RabbitMQ at {address_of(url)} refuses user {url.user!r}: check user and password in RABBIT2DOCKER_AMQP__URL or "
        "the files in its place."
    )


def is_down(error: ChannelNotFoundEntity) -> bool:
    """Return whether the queue exists, but not at the moment: RabbitMQ's reply for a moment after its start."""
    return "is down or inaccessible" in str(error)


def _reply(error: BaseException) -> str:
    text = str(error.args[-1] if error.args else error) or type(error).__name__
    return text.removeprefix("NOT_FOUND - ").removeprefix("ACCESS_REFUSED - ")


async def open_connection(endpoint: Endpoint) -> aio_pika.Connection:
    """Connect to the first node that answers, as the settings' files say now.

    Raises AccessRefused, or BrokerUnavailable with the reason of each node.
    """
    problems = []
    try:
        urls = await asyncio.to_thread(endpoint.urls)
    except ConfigurationError as error:  # valid at the start: a file is being replaced
        raise BrokerUnavailable(str(error)) from error
    for url in urls:
        try:
            return await _connect(url)
        except BrokerUnavailable as error:
            problems.append(error)
    raise BrokerUnavailable(" ".join(map(str, problems))) from problems[-1]


async def _connect(url: URL) -> aio_pika.Connection:
    connection = aio_pika.Connection(url)
    # aio-pika hands these on to aiormq; its constructor leaves out the ones that it does not know.
    connection.kwargs["transport_factory"] = ScreenedTransportFactory()
    with translated(url):
        try:
            await connection.connect(timeout=CONNECT_SECONDS)
        except BaseException:
            # A connection that is only dropped closes itself when it is collected, perhaps without a loop by then.
            await connection.close()
            raise
    _close_with_a_reason(connection)
    return connection


def _close_with_a_reason(connection: AbstractConnection) -> None:
    """Have everything that waits for the connection get an AMQPError when it closes.

    aiormq closes without a reason when its reader ends regularly, which races with any close from here; whatever waits
    then gets a bare `Exception`, indistinguishable from a defect.
    """
    assert connection.transport is not None
    underlay: Any = connection.transport.connection
    close_underlay = underlay.close

    async def close_with_reason(exc: Any = ConnectionClosed, timeout: float | None = None) -> None:
        await close_underlay(exc or ConnectionClosed, timeout)

    underlay.close = close_with_reason


async def close(opened: AbstractConnection | AbstractChannel) -> None:
    """Close a connection or channel, or abandon it if it is stuck."""
    try:
        async with asyncio.timeout(3.0):
            await asyncio.shield(opened.close())
    except (*BROKEN, asyncio.CancelledError):
        if is_cancelled():
            raise


class ManagedChannel:
    """A channel that is opened again after every failure. `setup` runs on each new one, `probe` every few seconds."""

    def __init__(
        self, role: str, settings: AmqpSettings, *, setup: Setup = _no_setup, probe: Probe = _no_probe
    ) -> None:
        """Take the `role` for logs and metrics; `probe` returns what the channel has silently lost, if anything.

        Raises ConfigurationError for an invalid URL.
        """
        quiet_library_loggers()
        self.role = role
        self._endpoint = Endpoint(settings, role)
        self.url = self._endpoint.url
        """The address of the present connection or the last one."""
        self.generation = 0
        """Grows with each channel: what belongs to an older one is stale."""
        self.problem = "not connected yet"
        """The reason why there is no channel, as a text; empty while there is one."""
        self._settings = settings
        self._setup = setup
        self._probe = probe
        self._channel: AbstractChannel | None = None
        self._newest: AbstractChannel | None = None
        self._connection: AbstractConnection | None = None
        self._connected_event = asyncio.Event()
        self._reconnect_requested = asyncio.Event()
        self._closing = False
        self._was_connected = False

    @property
    def is_closing(self) -> bool:
        """Return whether it will not connect again."""
        return self._closing

    @property
    def is_connected(self) -> bool:
        """Return whether there is a channel now."""
        return self._channel is not None and not self._channel.is_closed

    @property
    def is_channel_open(self) -> bool:
        """Return whether the channel of this generation is open, even if its setup has not finished."""
        return self._newest is not None and not self._newest.is_closed

    def current(self) -> AbstractChannel | None:
        """Return the channel, if there is one now."""
        return self._channel if self.is_connected else None

    async def channel(self) -> AbstractChannel:
        """Wait for a channel; raises BrokerUnavailable once the connection is closed for good."""
        while (channel := self.current()) is None:
            if self._closing:
                raise BrokerUnavailable(f"The connection to RabbitMQ is closed ({self.problem}).")
            self._connected_event.clear()
            await self._connected_event.wait()
        return channel

    @asynccontextmanager
    async def further_channel(self) -> AsyncIterator[AbstractChannel]:
        """Open one more channel on the connection, which is not opened again. Raises BrokerUnavailable, AccessRefused.

        On it, several messages can be acknowledged at once, and a refusal closes nothing that others use.
        """
        await self.channel()
        assert self._connection is not None
        with translated(self.url):
            channel = await self._connection.channel(publisher_confirms=False)
            try:
                yield channel
            finally:
                await close(channel)

    def request_reconnect(self) -> None:
        """Have connection and channel opened anew, because they turned out not to work."""
        self._reconnect_requested.set()

    async def run(self) -> None:
        """Stay connected until cancelled. Raises AccessRefused if RabbitMQ denies the first connection."""
        backoff = Backoff(RECONNECT_PAUSES)
        logged = ""
        try:
            while True:
                try:
                    async with self._open_channel():
                        end_if_cancelled()
                        backoff.reset()
                        logged = ""
                        await self._watch()
                except AccessRefused as error:
                    end_if_cancelled()
                    if not self._was_connected:
                        raise
                    self.problem = str(error)
                except (BrokerUnavailable, TopologyMismatch) as error:
                    self.problem = str(error)
                if self.problem != logged:  # once per reason: another program may hold the queue for days
                    log.warning("RabbitMQ unavailable, reconnecting", reason=self.problem, role=self.role)
                    logged = self.problem
                await backoff.sleep()
        finally:
            self._closing = True
            self._connected_event.set()

    @asynccontextmanager
    async def _open_channel(self) -> AsyncIterator[None]:
        self._reconnect_requested.clear()
        connection = await open_connection(self._endpoint)
        self.url, self._connection = connection.url, connection
        try:
            with translated(self.url):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                self._on_close_reconnect(connection, channel)
                self.generation += 1
                self._newest = channel
                await self._setup(channel)
            await self._on_consumer_cancel_reconnect(channel)
            self._channel = channel
            self._report_connected()
            yield
        finally:
            self._channel = None
            metrics.AMQP_CONNECTED.labels(role=self.role).set(0)
            await close(connection)

    def _report_connected(self) -> None:
        if self._was_connected:
            metrics.AMQP_RECONNECTS.labels(role=self.role).inc()
        log.info("connected to RabbitMQ", role=self.role, address=address_of(self.url))
        metrics.AMQP_CONNECTED.labels(role=self.role).set(1)
        self._was_connected = True
        self.problem = ""
        self._connected_event.set()

    def _on_close_reconnect(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        def on_close(sender: Any, error: BaseException | None) -> None:
            if (
                not self._reconnect_requested.is_set()
            ):  # else it is closed from here, for a reason already noted
                self.problem = _reply(error) if error else "closed"
                self._reconnect_requested.set()

        connection.close_callbacks.add(on_close)
        channel.close_callbacks.add(on_close)

    async def _on_consumer_cancel_reconnect(self, channel: AbstractChannel) -> None:
        def on_cancel(frame: Any) -> None:
            self.problem = "RabbitMQ ended a consumer: was its queue deleted?"
            self._reconnect_requested.set()

        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(on_cancel)

    async def _watch(self) -> None:
        """Return once the channel is dead, whether it was reported or found by the watchdog."""
        bad_since: float | None = None
        loop = asyncio.get_running_loop()
        while not self._reconnect_requested.is_set():
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._reconnect_requested.wait()
            except TimeoutError:
                loss = await self._silent_loss()
                bad_since = None if loss is None else (bad_since or loop.time())
                if bad_since is not None and loop.time() - bad_since >= self._settings.watchdog_after:
                    self.problem = f"silently dead: {loss}"
                    metrics.WATCHDOG_RECONNECTS.inc()
                    return

    async def _silent_loss(self) -> str | None:
        channel = self._channel
        if channel is None or channel.is_closed:
            return "the channel is closed"
        return await self._probe(channel)


@asynccontextmanager
async def connected(
    connection: ManagedChannel, seconds: float | None, *refusals: "asyncio.Future[TopologyMismatch]"
) -> AsyncIterator[None]:
    """Run a ManagedChannel for as long as the context lasts; the body starts once it is connected.

    Raises AccessRefused, the error in one of `refusals`, or BrokerUnavailable after `seconds`; without `seconds` it
    waits indefinitely.
    """
    tasks = TaskSet()
    try:
        task = tasks.run_in_background(connection.run(), connection.role)
        await _until_connected(connection, task, seconds, refusals)
        yield
    finally:
        await tasks.close()


async def _until_connected(
    connection: ManagedChannel,
    running: "asyncio.Task[None]",
    seconds: float | None,
    refusals: "tuple[asyncio.Future[TopologyMismatch], ...]",
) -> None:
    ready = asyncio.create_task(connection.channel())
    try:
        awaited: set[asyncio.Future[Any]] = {ready, running, *refusals}
        done, _ = await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
    for refusal in refusals:
        if refusal in done:
            raise refusal.result()
    if running in done:
        await running
    if ready not in done:
        raise BrokerUnavailable(connection.problem)
