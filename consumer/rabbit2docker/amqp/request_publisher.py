"""Build requests and cancel messages of one tenant, as any AMQP client could publish them."""

import uuid
from datetime import UTC, datetime
from typing import Final

from aiormq.exceptions import ChannelPreconditionFailed

from rabbit2docker.amqp.outgoing import OutgoingMessage, make_message
from rabbit2docker.amqp.publisher import ConfirmedPublisher
from rabbit2docker.errors import AccessRefused, BrokerUnavailable
from rabbit2docker.settings import AmqpSettings
from rabbit2docker.settings.constants import DEFAULT_TENANTS
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE, BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import (
    REQUESTS_EXCHANGE,
    Priority,
    cancel_key,
    entry_exchange,
    request_key,
)

SOURCE: Final = "/rabbit2docker/cli"


def request_exchange(settings: AmqpSettings, tenant: str) -> str:
    """Return the exchange that a tenant's requests and cancel messages are published to."""
    is_own = tenant not in DEFAULT_TENANTS if settings.entry_exchange is None else settings.entry_exchange
    return entry_exchange(tenant) if is_own else REQUESTS_EXCHANGE


def message_headers(id_: str, type_: str, source: str, moment: datetime) -> dict[str, str]:
    """Return the attributes of CloudEvents of a request or cancel message."""
    return {
        "ce-specversion": "1.0",
        "ce-id": id_,
        "ce-type": type_,
        "ce-source": source,
        "ce-time": moment.isoformat(),
    }


class RequestPublisher:
    """Publishes for one tenant. Methods raise BrokerUnavailable, TopologyMismatch or AccessRefused."""

    def __init__(self, publisher: ConfirmedPublisher, tenant: str) -> None:
        """Publish with `publisher`."""
        self._publisher = publisher
        self._tenant = tenant
        self._exchange = request_exchange(publisher.settings, tenant)

    async def request(self, request: BuildRequest, priority: Priority = Priority.INTERACTIVE) -> RequestId:
        """Request a build and return the request's id, a new one if the request has none."""
        request_id = RequestId(request.request_id or uuid.uuid4().hex)
        named = request.model_copy(update={"request_id": request_id})
        body = named.model_dump_json(exclude_defaults=True).encode()
        await self._send(request_key(self._tenant, priority), body, REQUEST_TYPE, request_id)
        return request_id

    async def cancel(self, cancel: CancelRequest) -> None:
        """Request the end of a build."""
        body = cancel.model_dump_json(exclude_defaults=True).encode()
        await self._send(cancel_key(self._tenant), body, CANCEL_TYPE, uuid.uuid4().hex)

    async def _send(self, key: str, body: bytes, type_: str, event_id: str) -> None:
        moment = datetime.now(UTC)
        headers = message_headers(event_id, type_, SOURCE, moment)

        def message() -> OutgoingMessage:
            user_id = self._publisher.user if self._publisher.settings.send_user_id else None
            return make_message(body, headers, type_=type_, timestamp=moment, user_id=user_id)

        try:
            await self._publisher.send(self._exchange, key, message, until_confirmed=False)
        except AccessRefused as error:
            if self._exchange != REQUESTS_EXCHANGE:
                raise
            raise AccessRefused(
                f"{error} A user of one of several tenants publishes to the tenant's own exchange: "
                "set RABBIT2DOCKER_AMQP__ENTRY_EXCHANGE=true."
            ) from error
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ChannelPreconditionFailed) and "user_id" in str(error):
                raise AccessRefused(
                    f"{error}. RabbitMQ knows the URL's user by another name: "
                    "set RABBIT2DOCKER_AMQP__SEND_USER_ID=false."
                ) from error
            raise
