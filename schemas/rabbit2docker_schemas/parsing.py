"""Parsing of untrusted messages to the service.

Any input leads to a valid message or to InvalidMessage; nothing else is raised.
"""

import base64
import json
import re
from typing import Any, Final, NoReturn, TypeVar

from pydantic import ValidationError

from rabbit2docker_schemas.ids import routable_request_id
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import (
    CANCEL_TYPE,
    REQUEST_TYPE,
    BuildRequest,
    CancelRequest,
    Message,
    with_unknown_fields,
)
from rabbit2docker_schemas.validation_messages import describe, kind_of, shown

MAX_BYTES: Final = 65_536
"""Default limit of a body, in bytes."""
MAX_DEPTH: Final = 16
"""Limit of nested objects and arrays; valid messages need three levels."""
STRUCTURED: Final = "application/cloudevents+json"
"""Content type of a CloudEvent in structured mode: attributes and data in the body."""

_MAX_DIGITS: Final = 20
# The last two are the defaults of client libraries and say nothing about the body.
_PLAIN_TYPES: Final = frozenset({"application/json", "text/json", "text/plain", "application/octet-stream"})
_REQUEST_ID: Final = re.compile(rb'"request_id"\s*:\s*"([A-Za-z0-9_-]{1,128})"')
_MessageT = TypeVar("_MessageT", bound=Message)


class InvalidMessage(ValueError):
    """A message that cannot be carried out and is never worth a retry.

    `reason` is for programs, `message` for people. `request_id` is the id that the message appears to have, in its own
    spelling; None if it has none that can be recognised.
    """

    def __init__(self, reason: RejectReason, message: str, request_id: str | None = None) -> None:
        """Keep what the `rejected` event reports."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.request_id = request_id


def read_request(
    body: bytes, *, content_type: str | None = None, ce_type: str | None = None, max_bytes: int = MAX_BYTES
) -> BuildRequest:
    """Parse a build request, alone or inside a structured CloudEvent, whose id is the default for request_id.

    `content_type` and `ce_type` are the AMQP property and the `ce-type` header, None where absent.
    Raises InvalidMessage.
    """
    value, event_id = _content(body, content_type, ce_type, max_bytes, expected=REQUEST_TYPE)
    request = _validated(BuildRequest, value, event_id)
    if request.request_id is None and event_id:
        return request.model_copy(update={"request_id": routable_request_id(event_id)})
    return request


def read_cancel(
    body: bytes, *, content_type: str | None = None, ce_type: str | None = None, max_bytes: int = MAX_BYTES
) -> CancelRequest:
    """Parse a cancel message, alone or inside a structured CloudEvent. Raises InvalidMessage."""
    value, _ = _content(body, content_type, ce_type, max_bytes, expected=CANCEL_TYPE)
    return _validated(CancelRequest, value, None)


def _content(
    body: bytes, content_type: str | None, ce_type: str | None, max_bytes: int, *, expected: str
) -> tuple[dict[str, Any], str | None]:
    """Return the message as an object, and the id of the structured CloudEvent around it, None without one."""
    try:
        _check_size(body, max_bytes)
        is_structured = _check_content_type(content_type)
        if ce_type:
            _check_type(ce_type, expected)
        value = _object(body)
        return _unwrapped(value, expected) if is_structured else (value, None)
    except InvalidMessage as error:
        error.request_id = error.request_id or _apparent_id(body[:max_bytes])
        raise


def _check_size(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise InvalidMessage(
            RejectReason.TOO_LARGE,
            f"The body has {len(body):,} bytes; at most {max_bytes:,} are allowed. "
            "Keep large files in the repository.",
        )


def _check_content_type(content_type: str | None) -> bool:
    """Return whether the body is a structured CloudEvent. Raises InvalidMessage for an unsupported type."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type == STRUCTURED:
        return True
    is_batch = media_type == "application/cloudevents-batch+json"
    if not is_batch and (media_type in _PLAIN_TYPES or media_type.endswith("+json")):
        return False
    raise InvalidMessage(
        RejectReason.UNSUPPORTED_TYPE,
        f"The content type `{shown(media_type)}` is not supported; use application/json or {STRUCTURED}"
        + (", with one event per message." if is_batch else "."),
    )


def _check_type(found: object, expected: str) -> None:
    if found != expected:
        raise InvalidMessage(
            RejectReason.UNSUPPORTED_TYPE,
            f"The message type `{shown(str(found))}` is not supported here; it must be `{expected}`.",
        )


def _object(body: bytes) -> dict[str, Any]:
    value = _json(body)
    if not isinstance(value, dict):
        raise InvalidMessage(
            RejectReason.INVALID_REQUEST, f"The body must be a JSON object, not {kind_of(value)}."
        )
    return value


def _json(body: bytes) -> Any:
    """Parse JSON strictly: also refuse duplicate names, deep nesting, huge numbers and lone surrogates."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start + 1} is not UTF-8") from error
    if not text.strip():
        raise InvalidMessage(RejectReason.INVALID_JSON, "The body is empty; it must be a JSON object.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        raise _not_json(f"{what[:1].lower()}{what[1:]} at character {error.pos + 1}") from error
    except UnicodeEncodeError as error:
        raise _not_json("a \\u escape stands for half a character") from error
    except RecursionError as error:
        raise _too_deep() from error
    if _is_deep(value):
        raise _too_deep()
    return value


def _not_json(why: str) -> InvalidMessage:
    return InvalidMessage(RejectReason.INVALID_JSON, f"The body is not JSON: {why}.")


def _too_deep() -> InvalidMessage:
    return InvalidMessage(
        RejectReason.INVALID_JSON,
        f"The body is nested more than {MAX_DEPTH} levels deep. No message needs that.",
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            # Parsers disagree on which value counts, so the checked value might not be the one that is used.
            raise InvalidMessage(RejectReason.INVALID_JSON, f"The body has the name `{shown(name)}` twice.")
        seen[name] = value
    return seen


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a JSON value")


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise InvalidMessage(
            RejectReason.INVALID_JSON,
            f"The body contains a number of {len(digits):,} digits. No field needs that.",
        )
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise InvalidMessage(
            RejectReason.INVALID_JSON, f"The number {shown(digits)} in the body is too large."
        )
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


def _unwrapped(event: dict[str, Any], expected: str) -> tuple[dict[str, Any], str | None]:
    """Return data and id of a structured CloudEvent. Raises InvalidMessage."""
    event_id = event.get("id")
    if event.get("specversion") != "1.0" or not isinstance(event_id, str) or not event_id:
        raise InvalidMessage(
            RejectReason.INVALID_REQUEST,
            'A structured CloudEvent needs `"specversion": "1.0"`, `id`, `type`, `source` and `data`.',
        )
    try:
        _check_type(event.get("type"), expected)
        return _data(event), event_id
    except InvalidMessage as error:
        error.request_id = error.request_id or _named_id(event.get("data")) or event_id
        raise


def _data(event: dict[str, Any]) -> dict[str, Any]:
    if isinstance(encoded := event.get("data_base64"), str):
        try:
            return _object(base64.b64decode(encoded, validate=True))
        except ValueError as error:
            if isinstance(error, InvalidMessage):
                raise
            raise InvalidMessage(
                RejectReason.INVALID_REQUEST, "`data_base64` of the CloudEvent is not valid base64."
            ) from error
    data = event.get("data")
    if not isinstance(data, dict):
        raise InvalidMessage(
            RejectReason.INVALID_REQUEST, f"`data` of the CloudEvent must be an object, not {kind_of(data)}."
        )
    return data


def _validated(model: type[_MessageT], value: dict[str, Any], event_id: str | None) -> _MessageT:
    try:
        return with_unknown_fields(model, value, strict=True)
    except ValidationError as error:
        problem = describe(_with_unknown_names(model, value) or error, model.model_fields)
        raise InvalidMessage(RejectReason.INVALID_REQUEST, problem, _named_id(value) or event_id) from error


def _with_unknown_names(model: type[Message], value: dict[str, Any]) -> ValidationError | None:
    """Return all problems of an invalid message, unknown names among them: one may be a missing field, misspelt."""
    try:
        model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return error
    return None


def _named_id(value: object) -> str | None:
    found = value.get("request_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None


def _apparent_id(body: bytes) -> str | None:
    """Search a body that is not JSON for its request_id; return None unless there is exactly one."""
    found = set(_REQUEST_ID.findall(body))
    return found.pop().decode() if len(found) == 1 else None
