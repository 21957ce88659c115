"""Cancel messages: a running build is ended, a request that is no build yet is remembered and turned away."""

import structlog
from cachetools import TTLCache

from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.executors.base import Attempt, AttemptStatus, Executor
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest

log = structlog.get_logger()

REMEMBERED = 10_000
REMEMBER_SECONDS = 3600.0


class Cancellation:
    """Carries out cancel messages."""

    def __init__(self, executor: Executor, attempts: AttemptCache) -> None:
        """Start with no cancelled requests in mind."""
        self._executor = executor
        self._attempts = attempts
        self._taken_back: TTLCache[tuple[str, str], str] = TTLCache(REMEMBERED, REMEMBER_SECONDS)

    def taken_back_by(self, tenant: str, request_id: str) -> str | None:
        """Return who took a request back before it became a build."""
        return self._taken_back.get((tenant, request_id))

    async def cancel(self, tenant: str, wish: CancelRequest) -> bool:
        """End the build; False when there is none (yet). Raises ExecutorUnavailable."""
        by = wish.requester or "somebody who did not say"
        attempt = self._find(tenant, wish)
        if attempt is None:
            if wish.request_id:
                self._taken_back[tenant, wish.request_id] = by
            return False
        if wish.spare_joined and wish.request_id and not _began(attempt, tenant, wish.request_id):
            log.info("too late to take a request back, it has joined a build", request_id=wish.request_id)
            return True
        if is_reported(attempt):
            log.info("too late to cancel, the build has ended", build_id=attempt.spec.build_id)
            return True
        await self._end(attempt, by)
        newest = self._attempts.newest_of_build(attempt.spec.build_id)
        if newest is not None and newest.name != attempt.name:
            await self._end(newest, by)  # a further attempt was made meanwhile
        return True

    def _find(self, tenant: str, wish: CancelRequest) -> Attempt | None:
        if wish.request_id:
            return self._attempts.of_request(tenant, wish.request_id)
        attempt = self._attempts.newest_of_build(wish.build_id or "")
        return attempt if attempt and attempt.spec.tenant == tenant else None

    async def _end(self, attempt: Attempt, by: str) -> None:
        def with_wish(status: AttemptStatus) -> AttemptStatus:
            return status if status.cancelled_by else status.model_copy(update={"cancelled_by": by})

        self._attempts.put(await self._executor.update_status(attempt.name, with_wish))
        await self._executor.cancel(attempt.name)
        log.info("build cancelled", build_id=attempt.spec.build_id, by=by)


def _began(attempt: Attempt, tenant: str, request_id: str) -> bool:
    return attempt.spec.build_id == build_id_of(tenant, request_id)
