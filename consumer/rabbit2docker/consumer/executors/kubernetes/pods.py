"""Writes on build pods: create or adopt, change the status by compare-and-swap, delete."""

from collections.abc import Callable
from typing import Final

from rabbit2docker.consumer.executors.base import Attempt, AttemptName, AttemptSpec, AttemptStatus
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.client import (
    JSON_PATCH,
    ApiClient,
    ApiStatusError,
    as_unavailable,
)
from rabbit2docker.consumer.executors.kubernetes.config_objects import BuildConfigObjects
from rabbit2docker.consumer.executors.kubernetes.models import Manifest, Pod
from rabbit2docker.consumer.executors.kubernetes.pod_records import PodRecord, PodRecords
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.consumer.executors.record_format import waits_for_newer
from rabbit2docker.errors import ExecutorUnavailable, NameTaken, RecordMissing
from rabbit2docker.settings import Settings

MAX_CONFLICTS: Final = 20
"""Tries of a write that conflicts with other writers before it is left for later."""


class BuildPods:
    """Creates, changes and deletes build pods, and keeps the cached records up to date with each response.

    All methods raise ExecutorUnavailable if the API server is away or rejects a call.
    """

    def __init__(
        self,
        api: ApiClient,
        settings: Settings,
        records: PodRecords,
        config_objects: BuildConfigObjects,
        *,
        replica: str,
        preferred_nodes: Callable[[str], list[str]],
    ) -> None:
        """Create pods in the name of `replica`; `preferred_nodes` returns those for a tenant's next one."""
        self._api = api
        self._settings = settings
        self._records = records
        self._config_objects = config_objects
        self._replica = replica
        self._preferred_nodes = preferred_nodes
        self._path = f"/api/v1/namespaces/{settings.kubernetes.namespace}/pods"

    async def create(self, spec: AttemptSpec, status: AttemptStatus) -> tuple[PodRecord, bool]:
        """Create the pod, or adopt the record of that name; the flag is True if the pod was created.

        Raises NameTaken if a pod that is not a record of this service has the name.
        """
        await self._config_objects.ensure_builder()
        access = await self._config_objects.ensure_credentials(spec)
        body = manifest.build_pod(
            spec,
            status,
            self._settings,
            replica=self._replica,
            builder_map=self._config_objects.builder_map,
            access=access,
            ready_nodes=self._preferred_nodes(spec.tenant),
        )
        for _ in range(MAX_CONFLICTS):
            if (pod := await self._post(body)) is not None:
                record = self._records.put(pod)
                if record is None:
                    raise ExecutorUnavailable(f"The pod {spec.name} was removed right after its creation.")
                if access:
                    await self._config_objects.set_owner(manifest.credentials_name(spec), record.pod)
                return record, True
            if (adopted := await self._adopt(spec.name)) is not None:
                return adopted, False
        raise ExecutorUnavailable(f"The pod {spec.name} is created and removed repeatedly by other clients.")

    async def _post(self, body: Manifest) -> Pod | None:
        """Create a pod; None if the name is taken."""
        try:
            data = await self._api.call("POST", self._path, priority=CallPriority.CREATE, body=body)
        except ApiStatusError as error:
            if error.status != 409:
                raise as_unavailable(error) from error
            return None
        return Pod.model_validate_json(data)

    async def _adopt(self, name: AttemptName) -> PodRecord | None:
        """Return the record that has the name; None if its pod is gone by now."""
        pod = await self._read(name)
        if pod is None:
            return None
        record = self._records.put(pod)
        if record is None and self._records.was_deleted(pod):
            raise ExecutorUnavailable(f"An earlier pod {name} is still being removed.")
        if record is None and (version := self._records.newer.get(name)):
            raise ExecutorUnavailable(waits_for_newer(name, version))
        if record is None:
            raise NameTaken(f"A pod {name} that is not a build of this service exists already.")
        return record

    async def find(self, name: AttemptName) -> PodRecord | None:
        """Read the pod and return its record; None if there is none."""
        pod = await self._read(name)
        if pod is not None:
            return self._records.put(pod)
        known = self._records.by_name.get(name)
        if known is not None:
            self._records.handle_removed(known.pod)
        return self._records.by_name.get(name)

    async def get(self, name: AttemptName) -> PodRecord:
        """Return the cached record, or read it. Raises RecordMissing."""
        record = self._records.by_name.get(name) or await self.find(name)
        if record is None:
            raise RecordMissing(f"There is no record {name}.")
        return record

    async def update_status(
        self, name: AttemptName, change: Callable[[AttemptStatus], AttemptStatus]
    ) -> Attempt:
        """Change the status by compare-and-swap, calling `change` again after a conflict. Raises RecordMissing."""
        record = await self.get(name)
        async with record.write_lock:
            for _ in range(MAX_CONFLICTS):
                status = change(record.status)
                # A write of `reported` removes the finalizer: if it took effect, the pod may be gone with it.
                completes_report = record.is_pod_gone and status.reported and not record.status.reported
                if record.removed or (record.is_pod_gone and not completes_report):
                    raise RecordMissing(f"The record {name} is gone.")
                if status == record.status:
                    return record.snapshot()
                record.report_begun |= status.reported
                if completes_report:
                    self._complete_report(record, status)
                    return record.snapshot()
                if await self._patch_status(record, status):
                    return record.snapshot()
        raise ExecutorUnavailable(f"The record {name} is changed by too many writers at once.")

    async def _patch_status(self, record: PodRecord, status: AttemptStatus) -> bool:
        """Write the status if the cached one is current; otherwise read it again and return False."""
        # The watch may replace record.pod during the call.
        pod = record.pod
        steps = manifest.status_patch(pod, status)
        if status.reported:
            # From here on the record is not needed any more, so a deletion of the pod may proceed.
            steps += manifest.without_finalizer(pod)
        try:
            data = await self._api.call(
                "PATCH",
                f"{self._path}/{record.spec.name}",
                priority=CallPriority.RECORD,
                body=steps,
                content_type=JSON_PATCH,
            )
        except ApiStatusError as error:
            if error.status not in (404, 409, 422):
                raise as_unavailable(error) from error
            await self._refresh_after_conflict(record, pod, error)
            return False
        self._records.put(Pod.model_validate_json(data))
        if record.is_pod_gone:
            self._complete_report(record, status)
        return True

    async def _refresh_after_conflict(self, record: PodRecord, patched: Pod, error: ApiStatusError) -> None:
        """Read a record whose write conflicted.

        Raises RecordMissing if the pod is gone, and `error` if the pod is still as `patched`, so not a conflict.
        """
        found = await self._read(record.spec.name)
        if found is None or found.metadata.uid != patched.metadata.uid:
            self._records.handle_removed(patched)
            if not record.is_pod_gone:
                raise RecordMissing(f"The record {record.spec.name} is gone.") from error
        elif found.metadata.resource_version == patched.metadata.resource_version:
            raise as_unavailable(error) from error
        else:
            self._records.put(found)

    def _complete_report(self, record: PodRecord, status: AttemptStatus) -> None:
        """Set the last status of a pod that went with its finalizer, as the watch may be ahead of the response."""
        record.status = status
        self._records.publish(record)

    async def cancel(self, record: PodRecord) -> None:
        """Delete the pod gracefully; the finalizer keeps it as a record until its end is reported."""
        await self._delete_pod(record.pod, grace_seconds=self._settings.kubernetes.termination_seconds)

    async def delete(self, record: PodRecord) -> None:
        """Delete the pod at once, its finalizer included, and its record."""
        async with record.write_lock:
            if record.removed:
                return
            if not record.is_pod_gone:
                await self._remove_finalizer(record.pod)
                # With a grace period, a pod on a node that does not respond would stay.
                await self._delete_pod(record.pod, grace_seconds=0)
            self._records.delete(record)

    async def _read(self, name: AttemptName) -> Pod | None:
        try:
            data = await self._api.call("GET", f"{self._path}/{name}", priority=CallPriority.RECORD)
        except ApiStatusError as error:
            if error.status == 404:
                return None
            raise as_unavailable(error) from error
        return Pod.model_validate_json(data)

    async def _delete_pod(self, pod: Pod, *, grace_seconds: int) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": grace_seconds,
            "preconditions": {"uid": pod.metadata.uid},
        }
        path = f"{self._path}/{pod.metadata.name}"
        try:
            await self._api.call("DELETE", path, priority=CallPriority.RECORD, body=body)
        except ApiStatusError as error:
            # 404: the pod is gone; 409: another pod has the name now.
            if error.status not in (404, 409):
                raise as_unavailable(error) from error

    async def _remove_finalizer(self, pod: Pod) -> None:
        steps = manifest.without_finalizer(pod)
        if not steps:
            return
        path = f"{self._path}/{pod.metadata.name}"
        try:
            await self._api.call(
                "PATCH", path, priority=CallPriority.RECORD, body=steps, content_type=JSON_PATCH
            )
        except ApiStatusError as error:
            if error.status not in (404, 409, 422):
                raise as_unavailable(error) from error
