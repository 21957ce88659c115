"""Push webhooks of GitHub and GitLab: a push to a registered repository becomes a bulk request for its commit.

A delivery that comes again, or that was recorded and is sent again by another party, is the same request: its id follows
from the signed content, and it names a commit, whose image exists by then.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import quote

import structlog
from cachetools import TTLCache
from pydantic import ValidationError
from tornado.web import stream_request_body

from rabbit2docker import metrics
from rabbit2docker.errors import StoreUnavailable
from rabbit2docker.hub.commit_status import status_token
from rabbit2docker.hub.store.models import CommitStatus
from rabbit2docker.hub.web.base import Handler
from rabbit2docker.hub.web.errors import BROKER_ERRORS, BUILDS_UNAVAILABLE, HttpError
from rabbit2docker.settings.hub import WebhookSettings
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import Priority

log = structlog.get_logger()

MAX_WEBHOOK_BYTES: Final = 1024 * 1024
MAX_KNOWN: Final = 10_000
KNOWN_SECONDS: Final = 86_400.0
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GITHUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Push:
    """A push, as both hosts describe it."""

    repository: str
    ref: str
    """Full name, such as refs/heads/main."""
    default_branch: str
    commit: str
    """Empty if the ref was deleted."""

    @property
    def branch(self) -> str:
        """Return the name of the branch or tag."""
        return self.ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


class Ignored(Exception):
    """A delivery that is in order, and that nothing follows from."""


class GitHub:
    """Deliveries as https://docs.github.com/webhooks describes them."""

    provider = "gh"
    title = "GitHub"

    def is_signed(self, headers: Mapping[str, str], body: bytes, secret: bytes) -> bool:
        """Return whether the body has the signature that this secret gives it."""
        expected = f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
        return _is_equal(headers.get("X-Hub-Signature-256", ""), expected)

    def repository(self, payload: Mapping[str, Any]) -> str:
        """Return owner and name."""
        name = _text(payload.get("repository"), "full_name")
        return name if _GITHUB_NAME.fullmatch(name) else ""

    def push(self, headers: Mapping[str, str], payload: Mapping[str, Any]) -> Push:
        """Return the push. Raises Ignored for other events."""
        event = headers.get("X-GitHub-Event", "")
        if event == "ping":
            raise Ignored("The webhook is set up: pushes will be built.")
        if event != "push":
            raise Ignored(f"The event {event[:40]!r} is not a push. Let the webhook send pushes alone.")
        commit = _text(payload.get("head_commit"), "id") or _text(payload, "after")
        repository = self.repository(payload)
        default = _text(payload.get("repository"), "default_branch")
        is_deleted = payload.get("deleted") is True
        return Push(repository, _text(payload, "ref"), default, "" if is_deleted else commit)

    def spec(self, push: Push) -> str:
        """Return the spec of the commit."""
        return f"{push.repository}/{push.commit}"


class GitLab:
    """Deliveries as https://docs.gitlab.com/user/project/integrations/webhook_events describes them."""

    provider = "gl"
    title = "GitLab"

    def is_signed(self, headers: Mapping[str, str], body: bytes, secret: bytes) -> bool:
        """Return whether the secret token was sent: GitLab does not sign the body."""
        return hmac.compare_digest(headers.get("X-Gitlab-Token", "").encode(), secret)

    def repository(self, payload: Mapping[str, Any]) -> str:
        """Return group and name."""
        return _text(payload.get("project"), "path_with_namespace")

    def push(self, headers: Mapping[str, str], payload: Mapping[str, Any]) -> Push:
        """Return the push. Raises Ignored for other events."""
        event = _text(payload, "object_kind")
        if event not in ("push", "tag_push"):
            raise Ignored(f"The event {event[:40]!r} is not a push. Let the webhook send pushes alone.")
        default = _text(payload.get("project"), "default_branch")
        # `after` of an annotated tag is the tag's own id.
        return Push(self.repository(payload), _text(payload, "ref"), default, _text(payload, "checkout_sha"))

    def spec(self, push: Push) -> str:
        """Return the spec of the commit."""
        return f"{quote(push.repository, safe='')}/{push.commit}"


HOSTS: Final[dict[str, GitHub | GitLab]] = {"github": GitHub(), "gitlab": GitLab()}


class Webhooks:
    """Turns deliveries into requests, by the repositories that the operator has registered."""

    def __init__(self, registered: list[WebhookSettings]) -> None:
        """Take the registered repositories."""
        self._registered = registered
        self._known: TTLCache[str, bool] = TTLCache(MAX_KNOWN, KNOWN_SECONDS)

    def request(self, host: str, headers: Mapping[str, str], body: bytes) -> tuple[str, BuildRequest]:
        """Return repository and request for a delivery. Raises HttpError, or Ignored if it asks for no build."""
        kind = HOSTS[host]
        payload = _payload(headers, body)
        name = kind.repository(payload)
        entry = self._entry(kind, name, headers, body)
        push = kind.push(headers, payload)
        _check_ref(entry, push)
        request_id = f"webhook-{hashlib.sha256(f'{kind.provider}/'.encode() + body).hexdigest()[:40]}"
        if request_id in self._known:
            raise Ignored("This delivery was received before, and its build was requested then.")
        try:
            request = BuildRequest(
                provider=kind.provider,
                spec=kind.spec(push),
                request_id=request_id,
                requester=f"webhook {name}"[:256],
            )
        except ValidationError:
            raise HttpError("The name of the repository cannot be built.", 400) from None
        return name, request

    def note(self, request: BuildRequest) -> None:
        """Remember a request that was published."""
        self._known[str(request.request_id)] = True

    def _entry(
        self, kind: GitHub | GitLab, name: str, headers: Mapping[str, str], body: bytes
    ) -> WebhookSettings:
        """Return the registration that a delivery belongs to. Raises HttpError if there is none, or if it is forged."""
        entries = [entry for entry in self._registered if name and entry.covers(kind.provider, name)]
        if not entries:
            raise HttpError(
                f"The {kind.title} repository {name[:200]!r} is not registered here. The operator can add it to hub.webhooks.",
                404,
            )
        for entry in entries:
            if kind.is_signed(headers, body, entry.secret.get_secret_value().encode()):
                return entry
        raise HttpError(
            f"The delivery is not signed with the secret of {name}. Enter the same secret at {kind.title} and in hub.webhooks.",
            403,
        )


def _check_ref(entry: WebhookSettings, push: Push) -> None:
    """Raise Ignored unless the ref is to be built, and HttpError if there is no commit where one must be."""
    wanted = entry.refs or [push.default_branch]
    if not any(fnmatchcase(push.branch, pattern) for pattern in wanted):
        names = ", ".join(wanted)
        raise Ignored(f"{push.branch[:100]} is not among the branches and tags that are built: {names}.")
    if not push.commit or set(push.commit) == {"0"}:
        raise Ignored(f"{push.branch[:100]} was deleted.")
    if not _COMMIT.fullmatch(push.commit):
        raise HttpError("The delivery names no commit.", 400)


def _payload(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return the delivery's content. Raises HttpError."""
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError("Choose the content type application/json for the webhook.", 415)
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise HttpError("The delivery is not a JSON object.", 400)
    return payload


def _text(value: object, name: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


@stream_request_body
class WebhookHandler(Handler):
    """POST webhooks/github and webhooks/gitlab: needs no login but a signature."""

    def prepare(self) -> Awaitable[None] | None:
        """Allow larger bodies than others. Raises HttpError for one that is too large all the same."""
        self._body = bytearray()
        connection: Any = self.request.connection
        connection.set_max_body_size(MAX_WEBHOOK_BYTES)
        length = self.request.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_WEBHOOK_BYTES:
            self.set_header("Connection", "close")
            raise HttpError(f"A delivery may have {MAX_WEBHOOK_BYTES} bytes.", 413)
        return super().prepare()

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body."""
        self._body += chunk

    async def post(self, host: str) -> None:
        """Request the build that a push asks for."""
        outcome = "rejected"
        try:
            outcome = await self._receive(host)
        finally:
            metrics.HUB_WEBHOOKS.labels(host=host, outcome=outcome).inc()

    async def _receive(self, host: str) -> str:
        """Answer a delivery and return the outcome for the metric. Raises HttpError."""
        webhooks = self.context.webhooks
        try:
            repository, request = webhooks.request(host, self.request.headers, bytes(self._body))
        except Ignored as reason:
            self.write_json({"message": str(reason)})
            return "ignored"
        await self.context.limits.check_webhook(repository)
        try:
            await self.context.submissions.submit(request, priority=Priority.BULK)
        except BROKER_ERRORS as error:
            raise HttpError(BUILDS_UNAVAILABLE, 503) from error
        webhooks.note(request)
        await self._note_status(HOSTS[host].provider, repository, request)
        log.info("push received", host=host, spec=request.spec, request_id=request.request_id)
        build_id = build_id_of(self.context.settings.tenant, str(request.request_id))
        self.write_json(
            {
                "message": f"The build of {request.spec} is requested.",
                "request_id": request.request_id,
                "build_id": build_id,
            },
            202,
        )
        return "requested"

    async def _note_status(self, provider: str, repository: str, request: BuildRequest) -> None:
        """Enter the status that the commit is to get, if there is a token to write it with."""
        if status_token(self.context.settings.hub.webhooks, provider, repository) is None:
            return
        status = CommitStatus(
            request_id=str(request.request_id),
            provider=provider,
            repository=repository,
            sha=request.spec.rpartition("/")[2],
        )
        try:
            await self.context.records.add_commit_status(status, at=datetime.now(UTC))
        except StoreUnavailable as error:  # the build goes on without it
            log.warning("commit status not entered", repository=repository, reason=str(error))


WEBHOOK_ROUTE: Final[tuple[str, type[Handler]]] = (r"webhooks/(github|gitlab)", WebhookHandler)
"""Needs no authentication: deliveries are signed."""
