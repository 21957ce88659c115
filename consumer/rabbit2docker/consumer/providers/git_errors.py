"""The errors that git prints, as errors for requesters."""

import re
from typing import Final

from rabbit2docker.consumer.providers.git_urls import shown
from rabbit2docker.errors import (
    CredentialsRefused,
    Dependency,
    DependencyKind,
    ProviderUnavailable,
    RequestRejected,
)
from rabbit2docker_schemas.reasons import RejectReason

_UNREACHABLE = re.compile(
    r"Failed to connect|Connection (?:refused|timed out|reset)|Could not resolve|unable to (?:connect|look ?up)|"
    r"No route to host|Network is unreachable|Empty reply from server|returned error: 50[234]\b",
    re.IGNORECASE,
)
_REDIRECTED = re.compile(r"returned error: 30[12378]\b")
# Error messages of git, in the order in which they must be matched: later patterns are wider.
_ERROR_PATTERNS: Final[tuple[tuple[re.Pattern[str], RejectReason], ...]] = (
    (re.compile(r"transport '.*' not allowed"), RejectReason.REFUSED_URL),
    (re.compile(r"Host key verification failed"), RejectReason.HOST_KEY_REFUSED),
    (
        re.compile(
            r"could not read (Username|Password)|Authentication failed|returned error: 40[137]\b|"
            r"terminal prompts disabled|Permission denied",
            re.IGNORECASE,
        ),
        RejectReason.REPOSITORY_PRIVATE,
    ),
    (
        re.compile(
            r"repository '.*' not found|does not appear to be a git repository|is this a git repository|"
            r"access denied or repository not exported|no such repository|Repository not found|"
            r"returned error: (404|410|451)\b|Could not parse|URL (using bad|rejected)",
            re.IGNORECASE,
        ),
        RejectReason.REPOSITORY_NOT_FOUND,
    ),
)


def is_redirect(stderr: str) -> bool:
    """Return whether git met a redirect that it did not follow."""
    return _REDIRECTED.search(stderr) is not None


def may_need_login(stderr: str) -> bool:
    """Return whether credentials might change the answer: hosts also say that there is no such repository."""
    return _reason(stderr) in (RejectReason.REPOSITORY_PRIVATE, RejectReason.REPOSITORY_NOT_FOUND)


def _reason(stderr: str) -> RejectReason | None:
    return next((reason for pattern, reason in _ERROR_PATTERNS if pattern.search(stderr)), None)


def translated(
    url: str, stderr: str, host: Dependency, *, with_credentials: bool
) -> RequestRejected | ProviderUnavailable:
    """Return the error for a failed call of git, which had credentials for the host or not."""
    match _reason(stderr):
        case None:
            # A host that answers may have a problem with this repository alone.
            is_unreachable = _UNREACHABLE.search(stderr) is not None
            return ProviderUnavailable(
                f"{shown(url)} cannot be read at the moment: {last_line(stderr)}",
                outage_of=host if is_unreachable else Dependency(DependencyKind.REPOSITORY, shown(url)),
            )
        case RejectReason.HOST_KEY_REFUSED as reason:
            return CredentialsRefused(_host_key_text(host, stderr), reason)
        case RejectReason.REPOSITORY_PRIVATE if with_credentials:
            return CredentialsRefused(
                f"{host.name} refuses the credentials that the operator has configured for {shown(url)}: they have "
                "expired, were withdrawn, or are not for this repository. The operator must renew them."
            )
        case RejectReason.REPOSITORY_PRIVATE as reason:
            return RequestRejected(
                reason,
                f"{shown(url)} requires a password: it is private, or does not exist. Check the address, make "
                "the repository public, or ask the operator to configure credentials for it.",
            )
        case RejectReason.REPOSITORY_NOT_FOUND as reason if with_credentials:
            return RequestRejected(
                reason,
                f"{host.name} shows no git repository at {shown(url)} to the configured credentials. Check the address; "
                "if it is right, the operator must give them access to the repository.",
            )
        case RejectReason.REPOSITORY_NOT_FOUND as reason:
            return RequestRejected(reason, f"There is no git repository at {shown(url)}. Check the address.")
        case reason:
            return RequestRejected(reason, f"git refuses {shown(url)}: {last_line(stderr)}")


def _host_key_text(host: Dependency, stderr: str) -> str:
    if "IDENTIFICATION HAS CHANGED" in stderr:
        return (
            f"{host.name} has another SSH key than the one that is recorded for it, so nothing was sent to it: it was "
            "given a new key, or another machine answers in its place. The operator must find out which, and record the "
            "new key in known_hosts."
        )
    return (
        f"No SSH key of {host.name} is recorded, so nothing was sent to it. The operator must add its key to known_hosts, "
        "such as from ssh-keyscan."
    )


def last_line(text: str) -> str:
    """Return the last line of what git printed, for people."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    readable = "".join(sign if sign.isprintable() else " " for sign in lines[-1].strip()) if lines else ""
    return shown(readable) or "git gave no reason."
