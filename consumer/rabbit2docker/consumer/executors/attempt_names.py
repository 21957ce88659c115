"""Names of records: the first attempt of a build has the build name, every other name adds a suffix to it."""

import hashlib
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec

MAX_LENGTH: Final = 63
"""Characters of a DNS label, which a pod's name has to be."""


def next_attempt_name(name: AttemptName, attempt: int) -> AttemptName:
    """Return the name of attempt number `attempt`, given the name of the one before it."""
    base = name.removesuffix(f"-a{attempt - 1}") if attempt > 2 else name
    return _with_suffix(base, f"a{attempt}")


def fallback_name(spec: AttemptSpec) -> AttemptName:
    """Return the name to use where another repository's build, or one that has ended, holds the build name."""
    return _with_suffix(spec.name, hashlib.sha256(spec.build_id.encode()).hexdigest()[:8])


def _with_suffix(base: str, suffix: str) -> AttemptName:
    """Return `base-suffix`, with the base cut so that the whole is a DNS label."""
    return AttemptName(f"{base[: MAX_LENGTH - len(suffix) - 1].rstrip('-_')}-{suffix}")
