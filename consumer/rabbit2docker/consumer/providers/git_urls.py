"""URLs in specs: their form, and how messages show them. Without I/O."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

DEFAULT_PORTS: Final = {"https": 443, "http": 80, "git": 9418}
"""The schemes that a request may use, with their default ports."""

# Programs disagree about blanks, control characters and backslashes: one checks the URL, another connects.
_STRANGE = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]")
# Clients normalize `/allowed/../other`, but patterns for specs are matched with the long form.
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


def with_escaped_blanks(url: str) -> str:
    """Return the URL with `%20` for each blank in its path, as Azure DevOps shows the names of projects."""
    start, separator, path = url.strip(" ").partition("://")
    host, slash, path = path.partition("/")
    return f"{start}{separator}{host}{slash}{path.replace(' ', '%20')}" if separator else url


def split_url(url: str) -> SplitResult:
    """Parse a URL. Raises RequestRejected(REFUSED_URL) when it is malformed or carries credentials."""
    if url.startswith("-"):
        raise refused(f"{url[:80]!r} looks like an option for git, not an address.")
    if _STRANGE.search(url):
        raise refused(
            "The address contains control characters, backslashes or blanks. Remove them; write %20 for a blank that is "
            "part of a name."
        )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise refused(f"The address cannot be read: {error}.") from error
    if not parts.scheme or not url.lower().startswith(f"{parts.scheme}://"):
        raise refused(
            f"{shown(url)} is not the address of a repository: it must begin with https:// and cannot be a file."
        )
    if _DOT_SEGMENT.search(parts.path):
        raise refused(f"{shown(url)} contains `.` or `..` between slashes. Remove them.")
    user, at, _host = parts.netloc.rpartition("@")
    is_login_name = parts.scheme == "ssh" and re.fullmatch(r"\w[\w-]*", user, re.ASCII) is not None
    if at and not is_login_name:
        raise refused(
            f"{shown(url)} contains a user name or a password. Remove them: requests are logged, "
            "and the operator configures credentials for private repositories."
        )
    return parts


def shown(url: str) -> str:
    """Return the URL for messages: shortened, and without user or password."""
    return re.sub(r"//[^/?#]*@", "//", url)[:200]


def refused(message: str) -> RequestRejected:
    """Return the error for an address that requests may not use."""
    return RequestRejected(RejectReason.REFUSED_URL, message)
