"""Names of attempt records. Attempt 1 of a build has BinderHub's build name, every other record a suffix."""

import hashlib
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec

MAX_LENGTH: Final = 63  # a DNS label, as pod names have to be


def with_suffix(base: str, suffix: str) -> AttemptName:
    """Return `base-suffix`, with the base cut so that the whole is a DNS label."""
    return AttemptName(base[: MAX_LENGTH - len(suffix) - 1].rstrip("-_") + "-" + suffix)


def next_attempt(name: AttemptName, attempt: int) -> AttemptName:
    """Return the name of attempt number `attempt`, given the name of the one before."""
    base = name.removesuffix(f"-a{attempt - 1}") if attempt > 2 else name
    return with_suffix(base, f"a{attempt}")


def fallback_name(spec: AttemptSpec) -> AttemptName:
    """Return the name of attempt 1 when an ended build, or a build of another repository, holds the build name."""
    return with_suffix(spec.name, hashlib.sha256(spec.build_id.encode()).hexdigest()[:8])
