"""Cancel messages: a running build is ended; a request that is not a build yet is rejected when it arrives."""

import structlog

from rabbit2docker.amqp.ports import CancelLog
from rabbit2docker.consumer.attempt_cache import AttemptCache, is_reported
from rabbit2docker.consumer.executors.base import Attempt, AttemptStatus, AttemptStore
from rabbit2docker.consumer.intake.parsing import IncomingCancel
from rabbit2docker.consumer.intake.withdrawn import UNNAMED_REQUESTER, WithdrawnRequests
from rabbit2docker_schemas.events import TERMINAL_KINDS
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import CancelRequest

log = structlog.get_logger()


class Cancellation:
    """Carries out cancel messages."""

    def __init__(self, executor: AttemptStore, attempts: AttemptCache, cancels: CancelLog) -> None:
        """Start with no withdrawn requests; `cancels` adds those of other replicas and earlier runs."""
        self._executor = executor
        self._attempts = attempts
        self._cancels = cancels
        self._withdrawn = WithdrawnRequests()
        cancels.subscribe(self._withdrawn.add)

    def withdrawn_by(self, tenant: str, build_id: str) -> str | None:
        """Return the requester that cancelled a request before it became this build; None if no one did."""
        return self._withdrawn.by(tenant, build_id)

    async def cancel(self, incoming: IncomingCancel) -> bool:
        """End the build; return False if there is none (yet). Raises ExecutorUnavailable."""
        tenant, cancel = incoming.tenant, incoming.cancel
        by = cancel.requester or UNNAMED_REQUESTER
        attempt = self._find(tenant, cancel)
        if attempt is None:
            await self._withdraw(tenant, _build_id(tenant, cancel), by)
            return False
        if cancel.spare_joined and cancel.request_id and not _started(attempt, tenant, cancel.request_id):
            log.info("cancel ignored", reason="joined a shared build", request_id=cancel.request_id)
            return True
        ended = attempt if is_reported(attempt) else await self._end(attempt, by)
        newest = self._attempts.newest_of_build(attempt.spec.build_id)
        if newest is not None and newest.name != attempt.name:
            await self._end(newest, by)  # a further attempt was created in the meantime
            return True
        if _is_handed_over(ended):
            return False  # to a further attempt that is not known here yet
        if ended.status.reported:
            log.info("cancel ignored", reason="build has ended", build_id=attempt.spec.build_id)
        return True

    async def _withdraw(self, tenant: str, build_id: str, by: str) -> None:
        """Remember the cancel, here and durably, for a request that is met later."""
        if self._withdrawn.by(tenant, build_id) is None:
            await self._cancels.record(tenant, build_id, by)
            self._withdrawn.add(tenant, build_id, by)

    def _find(self, tenant: str, cancel: CancelRequest) -> Attempt | None:
        if cancel.request_id:
            return self._attempts.of_request(tenant, cancel.request_id)
        attempt = self._attempts.newest_of_build(cancel.build_id or "")
        return attempt if attempt and attempt.spec.tenant == tenant else None

    async def _end(self, attempt: Attempt, by: str) -> Attempt:
        """Cancel the attempt unless its end is reported; return it as it is then."""

        def cancelled(status: AttemptStatus) -> AttemptStatus:
            if status.cancelled_by or status.reported:
                return status
            return status.model_copy(update={"cancelled_by": by})

        updated = self._attempts.put(await self._executor.update_status(attempt.name, cancelled))
        if not is_reported(updated):
            await self._executor.cancel(attempt.name)
            log.info("build cancelled", build_id=attempt.spec.build_id, by=by)
        return updated


def _is_handed_over(attempt: Attempt) -> bool:
    """Return whether another attempt follows that this one passes no cancel to any more."""
    outcome = attempt.status.outcome
    return attempt.status.reported and outcome is not None and outcome.kind not in TERMINAL_KINDS


def _build_id(tenant: str, cancel: CancelRequest) -> str:
    """Return the id of the build that the request would start."""
    return cancel.build_id or build_id_of(tenant, cancel.request_id or "")


def _started(attempt: Attempt, tenant: str, request_id: str) -> bool:
    return attempt.spec.build_id == build_id_of(tenant, request_id)
