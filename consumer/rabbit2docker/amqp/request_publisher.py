"""Build requests and cancel messages of one tenant, as any AMQP client could publish them."""

import uuid
from datetime import UTC, datetime
from typing import Final

import aio_pika

from rabbit2docker.amqp.publisher import ConfirmedPublisher, make_message
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE, BuildRequest, CancelRequest
from rabbit2docker_schemas.routing import REQUESTS_EXCHANGE, Priority, cancel_key, request_key

SOURCE: Final = "/rabbit2docker/cli"


class RequestPublisher:
    """Publishes for one tenant. Methods raise BrokerUnavailable, TopologyMismatch or AccessRefused."""

    def __init__(self, publisher: ConfirmedPublisher, tenant: str) -> None:
        """Publish with `publisher`."""
        self._publisher = publisher
        self._tenant = tenant

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
        headers = {
            "ce-specversion": "1.0",
            "ce-id": event_id,
            "ce-type": type_,
            "ce-source": SOURCE,
            "ce-time": moment.isoformat(),
        }

        def message() -> aio_pika.Message:
            return make_message(body, headers, type_=type_, timestamp=moment)

        await self._publisher.send(REQUESTS_EXCHANGE, key, message, until_confirmed=False)
