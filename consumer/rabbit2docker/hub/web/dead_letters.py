"""Dead letters in the JSON API, for administrators: list, show, publish again and discard."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rabbit2docker.amqp.dead_letter_help import explain
from rabbit2docker.amqp.dead_letters import DeadLetter, DeadLetters, dead_letters
from rabbit2docker.amqp.endpoint import Endpoint
from rabbit2docker.amqp.senders import header_text
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.hub.store.models import Record
from rabbit2docker.hub.web.api import ApiHandler, Query
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.errors import BROKER_ERRORS, Forbidden, HttpError
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import FORGED, parse_request_key
from rabbit2docker_schemas.validation_messages import describe

MAX_IDS: Final = 200
SHOWN_BYTES: Final = 32 * 1024
"""The part of a body that is shown."""
ID_PATTERN: Final = "[0-9a-f]{10}"
NOT_ENABLED: Final = (
    "This service has no access to dead letters. The operator can give it the AMQP URL of the user "
    "rabbit2docker-dead-letters in RABBIT2DOCKER_HUB__DEAD_LETTERS_URL."
)
ADMINS_ONLY: Final = "Only administrators may handle dead letters."
_T = TypeVar("_T")
OpenLetters = Callable[[], AbstractAsyncContextManager[DeadLetters]]


class DeadLetterSummary(Record):
    """A message that could not be carried out."""

    id: str
    """Short hash of the content, stable for as long as the message exists."""
    reason: str
    """Code of the reason, such as `unavailable`."""
    message: str
    """The reason in words."""
    cause: str
    """The cause of all dead letters with this reason."""
    action: str
    """The next step for dead letters with this reason."""
    tenant: str | None = None
    """Absent if the routing key names none."""
    routing_key: str
    message_id: str | None = None
    published_at: datetime | None = None
    provider: str | None = None
    """Of the request, as far as the body can be read; as are the next two."""
    spec: str | None = None
    requester: str | None = None
    forged: bool = False
    """Another than the tenant may have sent it: it can only be discarded."""
    unverified: str | None = None
    """The reason why its sender is not certain; publishing it again then takes `unverified`."""

    @classmethod
    def fields_of(cls, letter: DeadLetter) -> dict[str, Any]:
        """Return the values of a letter."""
        key, explanation = parse_request_key(letter.routing_key), explain(letter.reason)
        return {
            "id": letter.id,
            "reason": letter.reason,
            "message": letter.message,
            "cause": explanation.cause,
            "action": explanation.action,
            "tenant": key.tenant if key else None,
            "routing_key": letter.routing_key,
            "message_id": letter.message_id,
            "published_at": letter.published_at,
            "forged": letter.reason == FORGED,
            "unverified": letter.unverified or None,
            **_request_fields(letter.body),
        }

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """Return the letter as the API has it."""
        return cls(**cls.fields_of(letter))


class DeadLetterDetail(DeadLetterSummary):
    """A dead letter with its content."""

    body: str
    """The beginning of the body, as text."""
    body_bytes: int
    """Size of the whole body."""
    headers: dict[str, str]
    """Headers set by the publisher."""
    undecodable: str | None = None
    """The properties that cannot be decoded and are missing here, and the reason."""

    @classmethod
    def fields_of(cls, letter: DeadLetter) -> dict[str, Any]:
        """Return the values of a letter."""
        return {
            **super().fields_of(letter),
            "body": letter.body[:SHOWN_BYTES].decode(errors="replace"),
            "body_bytes": len(letter.body),
            "headers": {name: header_text(value)[:1000] for name, value in letter.headers.items()},
            "undecodable": letter.undecodable or None,
        }


class DeadLetterPage(Record):
    """The oldest dead letters."""

    letters: list[DeadLetterSummary]
    more: bool
    """True if there are more than these."""


class LetterOutcome(StrEnum):
    """The result for one dead letter."""

    PUBLISHED = "published"
    KEPT = "kept"
    """It may not be published again; the message says why."""
    DISCARDED = "discarded"
    MISSING = "missing"
    """There is no such dead letter any more."""


class LetterResult(Record):
    """The result for one dead letter."""

    id: str
    outcome: LetterOutcome
    message: str = ""


class LetterResults(Record):
    """The results, in the order of the ids."""

    results: list[LetterResult]


class LetterSelection(BaseModel):
    """Dead letters that are chosen by id."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    ids: Annotated[
        list[Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]], Field(min_length=1, max_length=MAX_IDS)
    ]


class RedriveSelection(LetterSelection):
    """Dead letters that are published again."""

    unverified: bool = False
    """Also those whose sender is not certain. For a RabbitMQ whose users are all trusted."""


class DeadLetterQuery(Query):
    """Parameters of a list of dead letters."""

    reason: Annotated[str, Field(max_length=64)] | None = None
    """Only letters with this reason."""
    limit: Annotated[int, Field(ge=1, le=MAX_IDS)] = 50
    """Most letters that are returned."""


def _request_fields(body: bytes) -> dict[str, str]:
    """Return provider, spec and requester from a body that may be anything."""
    try:
        data = json.loads(body) if len(body) <= SHOWN_BYTES else None
    except (ValueError, RecursionError):
        return {}
    found = data if isinstance(data, dict) else {}
    names = ("provider", "spec", "requester")
    return {name: found[name][:500] for name in names if isinstance(found.get(name), str)}


class DeadLetterAccess:
    """The dead letters that this service's administrators may handle. One call at a time reads the queue."""

    def __init__(self, open_letters: OpenLetters, tenant: str | None) -> None:
        """Take a function that opens the queue, and the tenant whose letters are handled; None: those of all."""
        self._open = open_letters
        self._tenant = tenant
        # Letters that one call holds would be missing for another.
        self._lock = asyncio.Lock()

    async def listed(self, reason: str | None, limit: int) -> tuple[list[DeadLetter], bool]:
        """Return the oldest letters, and whether there are more."""
        is_selected = partial(self._is_selected, lambda letter: reason in (None, letter.reason))
        found = await self._with(lambda letters: letters.listed(is_selected, limit=limit + 1))
        return found[:limit], len(found) > limit

    async def find(self, id_: str) -> DeadLetter | None:
        """Return one letter."""
        found = await self._with(lambda letters: letters.listed(self._with_ids([id_]), limit=1))
        return found[0] if found else None

    async def redrive(self, ids: list[str], *, unverified: bool) -> list[LetterResult]:
        """Publish letters again."""
        done = await self._with(lambda letters: letters.redrive(self._with_ids(ids), unverified=unverified))
        kept = {letter.id: letter.why_kept(unverified=unverified) for letter in done}
        return [_redriven(id_, kept.get(id_)) for id_ in ids]

    async def discard(self, ids: list[str]) -> list[LetterResult]:
        """Delete letters for good."""
        done = await self._with(lambda letters: letters.discard(self._with_ids(ids)))
        found = {letter.id for letter in done}
        return [
            LetterResult(id=id_, outcome=LetterOutcome.DISCARDED) if id_ in found else _missing(id_)
            for id_ in ids
        ]

    def _with_ids(self, ids: list[str]) -> Callable[[DeadLetter], bool]:
        chosen = frozenset(ids)
        return partial(self._is_selected, lambda letter: letter.id in chosen)

    def _is_selected(self, is_chosen: Callable[[DeadLetter], bool], letter: DeadLetter) -> bool:
        """Return whether a letter is chosen and this service's: others do not exist for it."""
        key = parse_request_key(letter.routing_key)
        is_own = self._tenant is None or (key is not None and key.tenant == self._tenant)
        return is_own and is_chosen(letter)

    async def _with(self, work: Callable[[DeadLetters], Awaitable[_T]]) -> _T:
        """Work on the queue. Raises HttpError with RabbitMQ's own words, which are for administrators."""
        try:
            async with self._lock, self._open() as letters:
                return await work(letters)
        except (*BROKER_ERRORS, ConfigurationError) as error:
            raise HttpError(f"The dead letters cannot be read: {error}", 503) from error


def _redriven(id_: str, why_kept: str | None) -> LetterResult:
    if why_kept is None:
        return _missing(id_)
    outcome = LetterOutcome.KEPT if why_kept else LetterOutcome.PUBLISHED
    return LetterResult(id=id_, outcome=outcome, message=why_kept)


def _missing(id_: str) -> LetterResult:
    return LetterResult(
        id=id_, outcome=LetterOutcome.MISSING, message="There is no such dead letter any more."
    )


def dead_letter_access(settings: Settings) -> DeadLetterAccess | None:
    """Return the access that the settings grant; None without credentials for it. Raises ConfigurationError."""
    hub = settings.hub
    if hub.dead_letters_url is None and hub.dead_letters_url_file is None:
        return None
    own = {"url_file": hub.dead_letters_url_file, "password_file": None, "external": False}
    url = {"url": hub.dead_letters_url} if hub.dead_letters_url else {}
    amqp = settings.amqp.model_copy(update={**own, **url})
    try:
        Endpoint(amqp, "dead letters")
    except ConfigurationError as error:
        raise ConfigurationError(f"RABBIT2DOCKER_HUB__DEAD_LETTERS_URL cannot be used. {error}") from error
    return DeadLetterAccess(
        partial(dead_letters, amqp), None if hub.dead_letters_of_all_tenants else settings.tenant
    )


def check_admin(user: User) -> None:
    """Raise Forbidden unless the user is an administrator."""
    if not user.admin:
        raise Forbidden(ADMINS_ONLY, 403)


class DeadLetterHandler(ApiHandler):
    """The base of the handlers of dead letters."""

    async def prepare(self) -> None:
        """Admit administrators only. Raises HttpError."""
        await super().prepare()
        if self.request.method != "OPTIONS":
            check_admin(self.user)

    @property
    def access(self) -> DeadLetterAccess:
        """Return the dead letters. Raises HttpError if the operator has not given the service access to them."""
        if self.context.dead_letters is None:
            raise HttpError(NOT_ENABLED, 404)
        return self.context.dead_letters


class DeadLettersHandler(DeadLetterHandler):
    """The dead letters."""

    async def get(self) -> None:
        """List the oldest ones."""
        query = self.parse_query(DeadLetterQuery)
        letters, more = await self.access.listed(query.reason, query.limit)
        self.write_model(DeadLetterPage(letters=[DeadLetterSummary.of(each) for each in letters], more=more))


class SingleDeadLetterHandler(DeadLetterHandler):
    """One dead letter."""

    async def get(self, id_: str) -> None:
        """Answer with the letter and its content."""
        letter = await self.access.find(id_)
        if letter is None:
            raise HttpError("There is no such dead letter any more.", 404)
        self.write_model(DeadLetterDetail.of(letter))


class RedriveHandler(DeadLetterHandler):
    """Publishing dead letters again."""

    async def post(self) -> None:
        """Publish the chosen letters again, under their original routing key."""
        chosen = _parse(RedriveSelection, self.request.body)
        results = await self.access.redrive(chosen.ids, unverified=chosen.unverified)
        self.write_model(LetterResults(results=results))


class DiscardHandler(DeadLetterHandler):
    """Deleting dead letters."""

    async def post(self) -> None:
        """Delete the chosen letters for good."""
        chosen = _parse(LetterSelection, self.request.body)
        self.write_model(LetterResults(results=await self.access.discard(chosen.ids)))


_M = TypeVar("_M", bound=BaseModel)


def _parse(model: type[_M], body: bytes) -> _M:
    """Return the body. Raises HttpError."""
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise HttpError(describe(error, model.model_fields), 400) from error


DEAD_LETTER_ROUTES: Final[list[tuple[str, type[ApiHandler]]]] = [
    (r"api/dead-letters", DeadLettersHandler),
    (r"api/dead-letters/redrive", RedriveHandler),
    (r"api/dead-letters/discard", DiscardHandler),
    (r"api/dead-letters/([^/]+)", SingleDeadLetterHandler),
]
