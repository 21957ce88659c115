"""Creates the attempt after one that failed, under a name that no other build holds."""

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.executors.attempt_names import create_under, fallback_name
from rabbit2docker.consumer.executors.base import Attempt, AttemptSpec, AttemptStatus, AttemptStore
from rabbit2docker.errors import ExecutorUnavailable


async def create_next(
    executor: AttemptStore, attempts: AttemptCache, spec: AttemptSpec, status: AttemptStatus
) -> tuple[Attempt, bool]:
    """Create the attempt, or return the one that an earlier try has created; the flag is True if it is new.

    A record of its name proves nothing: another build may hold it. Raises ExecutorUnavailable.
    """
    of_build = attempts.of_build(spec.build_id)
    created = [known.name for known in of_build if known.spec.is_same_attempt(spec)]
    for name in created or (spec.name, fallback_name(spec)):
        found = await create_under(name, executor, spec, status)
        if found and found[0].spec.is_same_attempt(spec):
            return found
    raise ExecutorUnavailable(
        f"Other builds hold the record names for attempt {spec.attempt} of {spec.build_name}. Waiting for them to be deleted."
    )
