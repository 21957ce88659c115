"""Pure: names of records. Attempt 1 of a build carries BinderHub's build name, everything else a suffix."""

from typing import Final

from rabbit2docker.consumer.executors.base import AttemptName

MAX_LENGTH: Final = 63  # a DNS label, as pod names have to be


def with_suffix(base: str, suffix: str) -> AttemptName:
    """Return `base-suffix`, the base cut so that the whole is a DNS label."""
    return AttemptName(base[: MAX_LENGTH - len(suffix) - 1].rstrip("-_") + "-" + suffix)


def next_attempt(name: AttemptName, attempt: int) -> AttemptName:
    """Return the name of attempt number `attempt`, given the name of the one before."""
    base = name.removesuffix(f"-a{attempt - 1}") if attempt > 2 else name
    return with_suffix(base, f"a{attempt}")
