"""Names of records, and creation under one: the first attempt has the build name, others add a suffix to it."""

import hashlib
import re
from typing import Final

import structlog

from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptName,
    AttemptSpec,
    AttemptStatus,
    AttemptStore,
)
from rabbit2docker.errors import NameTaken

log = structlog.get_logger()

MAX_LENGTH: Final = 63
"""Characters of a DNS label, which a pod's name has to be."""
_READABLE: Final = re.compile(r"[A-Za-z0-9_./-]")


def state_name(identity: str, place: str) -> str:
    """Return the name of a set of records: its unique `identity`, and as much of its place as fits for operators.

    RabbitMQ cuts the reply that names two of them at 255 bytes.
    """
    readable = "".join(character if _READABLE.match(character) else "-" for character in place)
    return f"{identity[:12]}@{readable}"[:40]


def next_attempt_name(name: AttemptName, attempt: int) -> AttemptName:
    """Return the name of attempt number `attempt`, given the name of the one before it."""
    base = name.removesuffix(f"-a{attempt - 1}") if attempt > 2 else name
    return _with_suffix(base, f"a{attempt}")


def fallback_name(spec: AttemptSpec) -> AttemptName:
    """Return the name to use where another build, or one that has ended, holds the name of the attempt."""
    owner = spec.build_id if spec.attempt == 1 else f"{spec.build_id}/{spec.attempt}"
    return _with_suffix(spec.name, _digest(owner))


async def create_under(
    name: AttemptName, executor: AttemptStore, spec: AttemptSpec, status: AttemptStatus
) -> tuple[Attempt, bool] | None:
    """Create an attempt under a name, or return the record of that name; None if an object that is no record has it."""
    try:
        return await executor.create(spec.model_copy(update={"name": name}), status)
    except NameTaken as error:
        log.warning("record name taken", name=name, error=str(error))
        return None


def _with_suffix(base: str, suffix: str) -> AttemptName:
    """Return `base-suffix`, a DNS label. Where the base is cut, a digest keeps it apart from others that begin like it."""
    if len(base) + 1 + len(suffix) > MAX_LENGTH:
        suffix = f"{_digest(base)}-{suffix}"
    return AttemptName(f"{base[: MAX_LENGTH - len(suffix) - 1].rstrip('-_')}-{suffix}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
