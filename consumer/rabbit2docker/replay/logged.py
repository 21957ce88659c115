"""Requests as the stream `builds.requests.log` has them. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from rabbit2docker.amqp.stream_scan import StreamMessage
from rabbit2docker_schemas.ids import routable_request_id
from rabbit2docker_schemas.parsing import STRUCTURED, InvalidMessage, read_request
from rabbit2docker_schemas.requests import REQUEST_TYPE, BuildRequest, with_unknown_fields
from rabbit2docker_schemas.routing import MESSAGE_ID_HEADER, Priority, RequestKey, parse_request_key

OF_ONE_REQUEST: Final = frozenset(
    {"request_id", "requester", "replay_of", "not_after", "timeout_seconds", "force", "credentials"}
)
"""Fields that may differ between requests for the same image."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
parse_key = lru_cache(maxsize=1024)(parse_request_key)


class UnreadableRequest(ValueError):
    """A message in the log that is no request of this version; the text says why."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request of the log."""

    tenant: str
    request_id: str
    time: datetime
    """Time of its publication."""
    content: Mapping[str, Any]
    """Its body, with fields that this version does not know."""

    @property
    def requester(self) -> str | None:
        """Return the requester's name, if there is one."""
        return _text(self.content.get("requester"))

    @property
    def replay_of(self) -> str | None:
        """Return the id of the request that this one replays, if it does."""
        return _text(self.content.get("replay_of"))

    @property
    def group(self) -> bytes:
        """Return a digest that requests for the same image have in common: provider, spec and options."""
        same = {name: value for name, value in self.content.items() if name not in OF_ONE_REQUEST}
        return hashlib.blake2b(json.dumps(same, sort_keys=True).encode(), digest_size=16).digest()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def key_of(message: StreamMessage) -> RequestKey:
    """Return the routing key of a request. Raises UnreadableRequest."""
    key = parse_key(message.routing_key)
    if key is None or key.action not in set(Priority):
        raise UnreadableRequest(f"the routing key {message.routing_key!r} is not a request's")
    return key


def read_logged(message: StreamMessage) -> LoggedRequest:
    """Read a request without checking all of it, which takes long: see `checked`. Raises UnreadableRequest."""
    key, type_ = key_of(message), _header(message, "ce-type")
    if type_ not in (None, REQUEST_TYPE):
        raise UnreadableRequest(f"the type {type_!r} is not that of a request of this version")
    is_structured = message.content_type is not None and message.content_type.startswith(STRUCTURED)
    content = _structured(message) if is_structured else _plain(message.body)
    own = content.get("request_id") or _header(message, "ce-id") or _header(message, MESSAGE_ID_HEADER)
    id_ = routable_request_id(str(own or message.message_id or ""))
    return LoggedRequest(key.tenant, id_, message.timestamp or _EPOCH, content)


def _plain(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableRequest(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableRequest("the body is not a JSON object")
    if not isinstance(content.get("provider"), str) or not isinstance(content.get("spec"), str):
        raise UnreadableRequest("the body has no `provider` or no `spec`")
    return content


def _structured(message: StreamMessage) -> dict[str, Any]:
    try:
        request = read_request(message.body, content_type=message.content_type)
    except InvalidMessage as error:
        raise UnreadableRequest(error.message) from error
    return request.model_dump(mode="json", exclude_defaults=True)


def _header(message: StreamMessage, name: str) -> str | None:
    value = message.headers.get(name)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value) if value else None


def checked(content: Mapping[str, Any]) -> BuildRequest:
    """Return the content as a request, with its unknown fields. Raises UnreadableRequest."""
    try:
        # As the consumer will read it.
        read_request(json.dumps(dict(content)).encode())
        return with_unknown_fields(BuildRequest, dict(content))
    except InvalidMessage as error:
        raise UnreadableRequest(error.message) from error


@lru_cache(maxsize=65_536)
def repository_names(provider: str, spec: str) -> tuple[str, ...]:
    """Return the names by which people know a repository, in lower case: for a URL also without its scheme."""
    if provider == "gh":
        return ("/".join(spec.split("/")[:2]).lower(),)
    name = unquote(spec.rpartition("/")[0] if provider != "git" else spec.partition("/")[0]).lower()
    bare = name.partition("://")[2] or name
    names = (name, bare, name.removesuffix(".git"), bare.removesuffix(".git"))
    return tuple(dict.fromkeys(names))
