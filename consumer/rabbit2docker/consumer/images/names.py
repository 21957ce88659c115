"""Names of images and builds, identical to BinderHub's, so that images built by it are found again.

The rules are those of `_safe_build_slug`, `_generate_build_name` and the image name in BinderHub's builder.py.
Options that BinderHub does not know add a suffix; without options nothing is added.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from string import ascii_letters, digits
from typing import Final

from escapism import escape  # type: ignore[import-untyped]

from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

MAX_IMAGE_NAME: Final = 255
MAX_BUILD_NAME: Final = 63

_BUILD_PREFIX = "build-"
_SLUG_HASH = 6
_REF_LENGTH = 6
_REF_HASH = 2
# A collision of digests would let one requester replace the image of another: a tag has room for 128 bits. A build
# name has not, but fingerprints are compared before a build is joined.
_TAG_DIGEST = 32
_BUILD_DIGEST = 8
_OPTIONS_MARK = "o"  # not a hexadecimal digit

_SAFE = set(ascii_letters + digits)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DOMAIN = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-f0-9:]+\])(?::[0-9]+)?"
# The grammar of github.com/distribution/reference, after everything was made lower case.
_NAME = re.compile(rf"(?:{_DOMAIN}/)?{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,127}")


def options_digest(
    *,
    subdir: str | None = None,
    build_args: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    appendix: str | None = None,
) -> str | None:
    """Return a hexadecimal digest of the options that are not empty; None if there are none."""
    options = {"subdir": subdir, "build_args": build_args, "labels": labels, "appendix": appendix}
    present = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items() if value
    }
    return hashlib.sha256(json.dumps(present, sort_keys=True).encode()).hexdigest() if present else None


def image_name(prefix: str, build_slug: str, ref: str, *, options_digest: str | None = None) -> str:
    """Return `registry/name:tag`.

    Raises RequestRejected(INVALID_IMAGE_NAME) when no engine or registry could take the name.
    """
    room = MAX_IMAGE_NAME - len(prefix)
    if room <= _SLUG_HASH + 1:
        raise _unusable(
            f"The image prefix has {len(prefix)} characters and leaves no room for a name: the operator must shorten it."
        )
    tag = ref
    if options_digest:
        tag += f"-{_OPTIONS_MARK}{options_digest[:_TAG_DIGEST]}"
    name, tag = (_normalized(part) for part in (f"{prefix}{_slug(build_slug, room)}", tag))
    if not _NAME.fullmatch(name):
        raise _unusable(
            f"The image would be called {name}, which no registry accepts. "
            "The operator can fix this with an image prefix of the form registry/organisation/prefix-."
        )
    if not _TAG.fullmatch(tag):
        raise _unusable(
            f"The image would be tagged {tag[:140]!r}, which no registry accepts: "
            "a tag has at most 128 letters, digits, dots and hyphens. Use a version with a simpler name."
        )
    return f"{name}:{tag}"


def build_name(build_slug: str, ref: str, *, options_digest: str | None = None) -> str:
    """Return the name of the build, a DNS label of at most 63 characters."""
    suffix = f"-{_OPTIONS_MARK}{options_digest[:_BUILD_DIGEST]}" if options_digest else ""
    room = MAX_BUILD_NAME - len(_BUILD_PREFIX) - _REF_LENGTH - 1 - len(suffix)
    version = _slug(ref, _REF_LENGTH, _REF_HASH)[:_REF_LENGTH]
    return f"{_BUILD_PREFIX}{_slug(build_slug, room)}-{version}{suffix}".lower()


def _slug(text: str, length: int, hash_length: int = _SLUG_HASH) -> str:
    """Return `text` escaped and shortened to `length` characters, including a hash of the whole."""
    fingerprint = hashlib.sha256(text.encode("utf-8")).hexdigest()[:hash_length]
    escaped = escape(text, safe=_SAFE, escape_char="-")[: length - hash_length - 1]
    return f"{escaped}-{fingerprint}".lower()


def _normalized(part: str) -> str:
    return part.replace("_", "-").lower()


def _unusable(message: str) -> RequestRejected:
    return RequestRejected(RejectReason.INVALID_IMAGE_NAME, message)
