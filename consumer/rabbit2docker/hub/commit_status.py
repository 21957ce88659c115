"""Commit statuses: the state of a build that a push has requested, written back to GitHub or GitLab.

The store has what is still to be written, so that a restart or an outage of the host loses nothing. The tokens are sent to
the API of the operator's settings alone, and redirects away from it are not followed.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import structlog
from yarl import URL

from rabbit2docker import metrics
from rabbit2docker.errors import StoreUnavailable
from rabbit2docker.hub.store.models import Build, BuildState, CommitStatus
from rabbit2docker.hub.store.store import Store
from rabbit2docker.own_version import OWN_VERSION
from rabbit2docker.rate_headers import seconds_to_wait
from rabbit2docker.retry import Backoff, doubling
from rabbit2docker.settings import Settings
from rabbit2docker.settings.hub import WebhookSettings

log = structlog.get_logger()

POLL_SECONDS: Final = 5.0
BETWEEN_CALLS_SECONDS: Final = 1.0
"""GitHub asks for a second between calls that write."""
BATCH: Final = 50
ANSWER_SECONDS: Final = 20.0
RETRY_PAUSES: Final = doubling(30.0, 3600.0)
MAX_TRIES: Final = 14
"""Half a day: a status that is written later is of no use."""
LONGEST_WAIT_SECONDS: Final = 86_400.0
MAX_REDIRECTS: Final = 3
DESCRIPTION_CHARACTERS: Final = 140
"""GitHub's limit; GitLab's is 255."""
KNOWN_ALREADY: Final = "Cannot transition status"
"""GitLab's refusal of a status that the commit has already."""


class State(StrEnum):
    """State of a commit."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


_GITHUBS_WORDS: Final = {
    State.PENDING: "pending",
    State.SUCCESS: "success",
    State.FAILURE: "failure",
    State.REJECTED: "error",
    State.CANCELLED: "error",
}
_GITLABS_WORDS: Final = {
    State.PENDING: "pending",
    State.SUCCESS: "success",
    State.FAILURE: "failed",
    State.REJECTED: "failed",
    State.CANCELLED: "canceled",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The text of a status."""

    state: State
    description: str
    link: str
    """URL of the build's page; empty if the service does not know its own address."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the API of a host."""

    url: URL
    headers: Mapping[str, str]
    body: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a host; without a status if there was none."""

    status: int
    text: str
    wait_seconds: float | None = None
    """Time that the host asks to wait for."""

    @property
    def is_written(self) -> bool:
        """True if the commit has the status now."""
        return 200 <= self.status < 300 or (self.status == 400 and KNOWN_ALREADY in self.text)

    @property
    def may_pass(self) -> bool:
        """True if another try may succeed: no answer, an overload, a rate limit or a fault of the host."""
        return self.status in (0, 408, 429) or self.status >= 500 or self.wait_seconds is not None


def status_token(registered: Sequence[WebhookSettings], provider: str, repository: str) -> str | None:
    """Return the token for the statuses of a repository; None if its registration has none."""
    for entry in registered:
        if entry.covers(provider, repository) and entry.status_token is not None:
            return entry.status_token.get_secret_value()
    return None


def report_of(build: Build | None, link: str) -> Report:
    """Return what a commit is to show for its build, which may not be stored yet."""
    match build.state if build else BuildState.QUEUED:
        case BuildState.COMPLETED:
            state, text = State.SUCCESS, "The image is ready."
        case BuildState.FAILED:
            state, text = State.FAILURE, "The build failed."
        case BuildState.REJECTED:
            state, text = State.REJECTED, "The build was rejected."
        case BuildState.CANCELLED:
            state, text = State.CANCELLED, "The build was cancelled."
        case _:
            state, text = State.PENDING, "The image is being built."
    detail = build.problem.message.partition("\n")[0] if build and build.problem else ""
    return Report(state, _cut(detail or text), link)


def _cut(text: str) -> str:
    return text if len(text) <= DESCRIPTION_CHARACTERS else f"{text[: DESCRIPTION_CHARACTERS - 1]}…"


def make_call(settings: Settings, status: CommitStatus, report: Report, token: str) -> Call:
    """Return the call that writes a status, as GitHub or GitLab document it."""
    name = "rabbit2docker" if settings.tenant == "default" else f"rabbit2docker/{settings.tenant}"
    link = {"target_url": report.link} if report.link else {}
    body = {"description": report.description, **link}
    if status.provider == "gh":
        path = f"{settings.providers.github_api}/repos/{status.repository}/statuses/{status.sha}"
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {token}",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        state = _GITHUBS_WORDS[report.state]
        return Call(URL(path, encoded=True), headers, {"state": state, "context": name, **body})
    project = quote(status.repository, safe="")
    path = f"{settings.providers.gitlab_api}/projects/{project}/statuses/{status.sha}"
    state = _GITLABS_WORDS[report.state]
    return Call(URL(path, encoded=True), {"PRIVATE-TOKEN": token}, {"state": state, "name": name, **body})


async def send(session: aiohttp.ClientSession, call: Call) -> Answer:
    """Make a call and return the answer; it is sent on within the same host only, as after a rename."""
    url = call.url
    try:
        for _ in range(MAX_REDIRECTS):
            async with session.post(
                url, headers=call.headers, json=dict(call.body), allow_redirects=False
            ) as response:
                target = response.headers.get("Location", "")
                if response.status in (301, 302, 307, 308) and target:
                    url = url.join(URL(target))
                    if url.origin() == call.url.origin():
                        continue
                text = (await response.content.read(4096)).decode(errors="replace")
                return Answer(response.status, text, _wait_seconds(response.headers, response.status))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return Answer(0, type(error).__name__)
    return Answer(310, "The host redirects without an end.")


def _wait_seconds(headers: Mapping[str, str], status: int) -> float | None:
    """Return the time for which a host that limits requests asks; None if it does not."""
    if status not in (403, 429, 503):
        return None
    wait = seconds_to_wait(headers)
    return None if wait is None else min(wait, LONGEST_WAIT_SECONDS)


class CommitStatusWriter:
    """Writes the statuses that are due, one call at a time. A call that fails disturbs nothing else."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        public_url: str,
        is_standby: Callable[[], bool] = lambda: False,
        poll_seconds: float = POLL_SECONDS,
        pause_seconds: float = BETWEEN_CALLS_SECONDS,
        retry_pauses: Sequence[float] = RETRY_PAUSES,
    ) -> None:
        """Take the store that has them; `is_standby` while another instance writes them."""
        self._store = store
        self._settings = settings
        self._public_url = public_url.rstrip("/") if public_url.startswith(("http://", "https://")) else ""
        self._is_standby = is_standby
        self._poll_seconds = poll_seconds
        self._pause_seconds = pause_seconds
        self._retry_pauses = retry_pauses

    async def run(self) -> None:
        """Write what is due until cancelled; return at once if no registered repository has a token."""
        if not any(entry.status_token for entry in self._settings.hub.webhooks):
            return
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        agent = {"User-Agent": f"rabbit2docker/{OWN_VERSION}"}
        async with aiohttp.ClientSession(timeout=timeout, headers=agent, trust_env=True) as session:
            while True:
                if not self._is_standby():
                    await self._write_due(session)
                await asyncio.sleep(self._poll_seconds)

    async def _write_due(self, session: aiohttp.ClientSession) -> None:
        try:
            for status in await self._store.commit_statuses.due(datetime.now(UTC), limit=BATCH):
                await self._write(session, status)
        except StoreUnavailable as error:
            log.warning("commit statuses unavailable", reason=str(error))

    async def _write(self, session: aiohttp.ClientSession, status: CommitStatus) -> None:
        token = status_token(self._settings.hub.webhooks, status.provider, status.repository)
        if token is None:  # its registration has ended
            await self._store.commit_statuses.remove(status.request_id)
            return
        build = await self._store.build(status.request_id)
        report = report_of(build, self._link(build))
        answer = await send(session, make_call(self._settings, status, report, token))
        outcome = await self._settle(status, report, answer)
        metrics.HUB_COMMIT_STATUSES.labels(host=status.provider, outcome=outcome).inc()
        await asyncio.sleep(self._pause_seconds)

    def _link(self, build: Build | None) -> str:
        return f"{self._public_url}/builds/{build.id}" if self._public_url and build else ""

    async def _settle(self, status: CommitStatus, report: Report, answer: Answer) -> str:
        """Store what is left to do after an answer, and return the outcome for the metric."""
        now, statuses = datetime.now(UTC), self._store.commit_statuses
        if answer.is_written and report.state is State.PENDING:
            await statuses.change(status.model_copy(update={"announced": True, "tries": 0}), next_at=now)
            return "written"
        if answer.is_written:
            await statuses.remove(status.request_id)
            return "written"
        about: dict[str, Any] = {
            "provider": status.provider,
            "repository": status.repository,
            "state": report.state.value,
            "answer": answer.status or None,
            "reason": answer.text[:300],
        }
        tries = status.tries + 1
        if not answer.may_pass or tries >= MAX_TRIES:
            log.warning("commit status given up", **about)
            await statuses.remove(status.request_id)
            return "given_up" if answer.may_pass else "refused"
        delay = self._pause(status.tries, answer.wait_seconds)
        log.info("commit status postponed", **about, delay_seconds=round(delay))
        later = status.model_copy(update={"tries": tries})
        await statuses.change(later, next_at=now + timedelta(seconds=delay))
        return "postponed"

    def _pause(self, tries: int, wait_seconds: float | None) -> float:
        backoff = Backoff(self._retry_pauses)
        backoff.failures = tries
        return backoff.next(at_least=wait_seconds or 0.0)
