"""Creates the attempt after one that failed, under a name that no other build holds."""

import structlog

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.executors.attempt_names import fallback_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptSpec, AttemptStatus, AttemptStore
from rabbit2docker.errors import ExecutorUnavailable, NameTaken

log = structlog.get_logger()


async def create_next(
    executor: AttemptStore, attempts: AttemptCache, spec: AttemptSpec, status: AttemptStatus
) -> tuple[Attempt, bool]:
    """Create the attempt, or return the one that an earlier try has created; the flag is True if it is new.

    A record of its name proves nothing: another build may hold it. Raises ExecutorUnavailable.
    """
    of_build = attempts.of_build(spec.build_id)
    created = [known.name for known in of_build if known.spec.is_same_attempt(spec)]
    for name in created or (spec.name, fallback_name(spec)):
        try:
            found, is_new = await executor.create(spec.model_copy(update={"name": name}), status)
        except NameTaken as error:
            log.warning("record name taken", name=name, error=str(error))
            continue
        if is_new or found.spec.is_same_attempt(spec):
            return found, is_new
    raise ExecutorUnavailable(
        f"Other builds hold the record names for attempt {spec.attempt} of {spec.build_name}. Waiting for them to be deleted."
    )
