"""Refs in specs: branches, tags and commits.

A branch takes precedence over a tag of the same name, as on GitHub, in `git ls-remote` and in repo2docker's own check-out;
`git rev-parse` prefers the tag. Names are compared whole: `main` never matches `foo/main`.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

HEAD: Final = "HEAD"
OLD_DEFAULTS: Final = frozenset(("main", "master"))
"""Names of branches that stand for the default branch where they are gone."""
PEELED: Final = "^{}"
"""Suffix with which `git ls-remote` marks the commit that a tag object points to."""

FoundT = TypeVar("FoundT")
_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{4,39}", re.IGNORECASE)
# git check-ref-format(1).
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|^[./-]|[/.]$|\.lock(?:/|$)|^@$")


async def found_or_default(
    find: Callable[[str], Awaitable[FoundT | None]], ref: str, repository: str
) -> tuple[FoundT | None, str | None]:
    """Return what a ref names, or the default branch in the place of a `main` or `master` that is gone, and a notice then.

    So links from before the default branch was renamed keep working, as in BinderHub.
    """
    if (found := await find(ref)) is not None or ref not in OLD_DEFAULTS:
        return found, None
    return await find(HEAD), f"{repository} has no branch {ref!r}: its default branch is used instead."


def is_full_commit(ref: str) -> bool:
    """Return whether `ref` is exactly a full commit id, in either hash function; hexadecimal text of other lengths is not."""
    return is_object_id(ref.lower())


def is_short_commit(ref: str) -> bool:
    """Return whether `ref` could be an abbreviated commit id."""
    return _SHORT_COMMIT.fullmatch(ref) is not None


def is_object_id(text: object) -> bool:
    """Return whether a host's answer is an object id of git, in either hash function."""
    return isinstance(text, str) and _OBJECT.fullmatch(text) is not None


def check_ref(ref: str) -> None:
    """Raise RequestRejected when no branch, tag or commit can have this name."""
    if ref.startswith("-"):
        raise RequestRejected(
            RejectReason.REFUSED_URL,
            f"{ref!r} looks like an option for git, not a branch, tag or commit.",
        )
    if not ref or _FORBIDDEN.search(ref):
        raise RequestRejected(
            RejectReason.INVALID_SPEC,
            f"{ref!r} cannot be a branch, tag or commit. Use an existing one, or HEAD for the default branch.",
        )


def full_names(ref: str) -> list[str]:
    """Return the full names that `ref` may stand for, in order of precedence."""
    if ref == HEAD:
        return [HEAD]
    if ref.startswith("refs/"):
        return [ref]
    names = [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    return [*names, f"refs/{ref}"] if "/" in ref else names
