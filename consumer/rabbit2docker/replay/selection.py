"""The choice of requests: by the request itself, by what became of it, and by what built its image. Pure."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator

from rabbit2docker.replay.logged import LoggedRequest, repository_names
from rabbit2docker_schemas.reasons import Category, FailureReason, RejectReason

REPO2DOCKER: Final = "repo2docker"


class OutcomeKind(StrEnum):
    """Kind of the end of a request, or of its absence."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    NEVER_ENDED = "never-ended"
    """No end is known: it waits, runs, or was lost."""
    UNKNOWN = "unknown"
    """Its events are deleted, or cannot be read."""


_QUALIFIERS: Final = {
    OutcomeKind.FAILED: {*FailureReason, *Category},
    OutcomeKind.REJECTED: {*RejectReason},
}
SELECTABLE: Final = [kind.value for kind in OutcomeKind if kind is not OutcomeKind.UNKNOWN]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a request, or that none is known."""

    kind: OutcomeKind
    reason: str = ""
    category: str = ""
    build_id: str = ""
    image: str = ""
    """Name and tag, without a digest."""
    digest: str = ""
    ref: str = ""
    """The resolved version; empty if the request was never accepted."""
    repo2docker: str = ""
    """Version of repo2docker that built the image; empty if it is not known."""
    builder_image: str = ""

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.kind}: {self.reason}" if self.reason else str(self.kind)


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request of the log with its outcome."""

    tenant: str
    request_id: str
    time: float
    """Seconds since 1970."""
    requester: str
    replay_of: str
    group: bytes
    """See LoggedRequest.group."""
    outcome: Outcome


def check_outcome(text: str) -> str:
    """Return an outcome such as `failed` or `failed:disk_full` if it exists. Raises ValueError."""
    name, colon, qualifier = text.partition(":")
    if name not in SELECTABLE:
        raise ValueError(f"{name!r} is no outcome; there are {', '.join(SELECTABLE)}")
    known = sorted(_QUALIFIERS.get(OutcomeKind(name), ()))
    if colon and qualifier not in known:
        if not known:
            raise ValueError(f"{name} has no reasons; write {name!r} alone")
        near = get_close_matches(qualifier, known, n=3) or known
        raise ValueError(f"{qualifier!r} is no reason for {name}; there are {', '.join(near)}")
    return text


def parse_built_with(text: str) -> Requirement:
    """Parse a condition such as `repo2docker<2026.4`. Raises ValueError."""
    try:
        found = Requirement(text)
    except InvalidRequirement:
        found = None
    if found is None or found.name != REPO2DOCKER or not found.specifier or found.extras or found.marker:
        raise ValueError(f"{text!r} is no condition on a version; write 'repo2docker<2026.4'")
    return found


def _regex(globs: Iterable[str]) -> re.Pattern[str] | None:
    patterns = [fnmatch.translate(glob.lower()) for glob in globs]
    return re.compile("|".join(patterns)) if patterns else None


class Selection(BaseModel):
    """Conditions, all of which must hold. Of several values of one, one must; without any, all match."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    since: AwareDatetime
    until: AwareDatetime
    """Also the moment for which outcomes count: what happens later does not change the choice."""
    tenants: tuple[str, ...] = ()
    requesters: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    """Globs on `owner/name` or a URL."""
    ids: tuple[str, ...] = ()
    """Ids of requests or builds."""
    outcomes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    """Globs on image names with their tags."""
    built_with: tuple[str, ...] = ()
    """Version conditions, all of which must hold."""
    builder_images: tuple[str, ...] = ()
    """Globs on the images of build pods; `!` in front: all others."""
    same_commit: bool = False
    """Requests are equal if they led to the same image, not if they name the same branch."""

    @field_validator("outcomes")
    @classmethod
    def _outcomes_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_outcome, value))

    @field_validator("built_with")
    @classmethod
    def _versions_compare(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_built_with(text)
        return value

    @property
    def names_builders(self) -> bool:
        """Return whether what built an image counts."""
        return bool(self.built_with or self.builder_images)

    @property
    def needs_outcomes(self) -> bool:
        """Return whether a request cannot be chosen without its outcome."""
        return bool(self.names_builders or self.images or self.outcomes or self.same_commit)

    @cached_property
    def is_asked_for(self) -> Callable[[LoggedRequest], bool]:
        """Return a function that checks the conditions on the request itself, except for ids and tenant."""
        since, until = self.since, self.until
        requesters, providers, repositories = (
            set(self.requesters),
            set(self.providers),
            _regex(self.repositories),
        )

        def check(request: LoggedRequest) -> bool:
            if not since <= request.time <= until:
                return False
            provider = request.content["provider"]
            if (providers and provider not in providers) or (
                requesters and request.requester not in requesters
            ):
                return False
            if repositories is None:
                return True
            names = repository_names(provider, request.content["spec"])
            return any(map(repositories.match, names))

        return check

    @cached_property
    def _versions(self) -> tuple[Requirement, ...]:
        return tuple(map(parse_built_with, self.built_with))

    @cached_property
    def _image_regex(self) -> re.Pattern[str] | None:
        return _regex(self.images)

    def matches_outcome(self, request: PastRequest) -> bool | None:
        """Return whether the conditions on id, outcome, image and builder hold; None if what built it is not known."""
        outcome = request.outcome
        if self.ids and not {request.request_id, outcome.build_id} & set(self.ids):
            return False
        if not self._matches_kind(outcome):
            return False
        if self._image_regex and not self._image_regex.match(outcome.image.lower()):
            return False
        return self._matches_builder(outcome)

    def _matches_kind(self, outcome: Outcome) -> bool:
        kinds = self.outcomes or (("completed",) if self.names_builders else ())
        if kinds:
            return any(_is_outcome(outcome, text) for text in kinds)
        return bool(self.ids) or outcome.kind is not OutcomeKind.NEVER_ENDED

    def _matches_builder(self, outcome: Outcome) -> bool | None:
        checks: list[bool | None] = []
        if self._versions:
            checks.append(_has_version(outcome.repo2docker, self._versions))
        if self.builder_images:
            name = outcome.builder_image
            checks.append(any(_is_image(name, glob) for glob in self.builder_images) if name else None)
        return False if False in checks else (None if None in checks else True)


def _is_outcome(outcome: Outcome, text: str) -> bool:
    name, _, qualifier = text.partition(":")
    return outcome.kind == name and (not qualifier or qualifier in (outcome.reason, outcome.category))


def _has_version(text: str, requirements: Iterable[Requirement]) -> bool | None:
    try:
        version = Version(text)
    except InvalidVersion:
        return None
    return all(requirement.specifier.contains(version, prereleases=True) for requirement in requirements)


def _is_image(name: str, glob: str) -> bool:
    is_other = glob.startswith("!")
    return fnmatch.fnmatchcase(name, glob.removeprefix("!")) is not is_other
