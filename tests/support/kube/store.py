"""Objects, their versions and watchers: the role of etcd and the registry in an API server."""

import asyncio
import base64
import json
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.kube.objects import (
    CONFIGMAPS,
    LEASES,
    PODS,
    RESOURCES,
    SECRETS,
    ApiError,
    Json,
    Requirement,
    Resource,
    already_exists,
    bad_request,
    check_change,
    check_object,
    conflict,
    encode,
    invalid,
    not_found,
    selectable_fields,
    stamp,
)

SNAPSHOTS = 100
DEFAULT_GRACE_SECONDS = 30
_CARRIED = (
    "namespace",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
)
Key = tuple[str, str]


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object, encoded once."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    version: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    body: bytes
    """Without kind and apiVersion, like the items of a list."""

    @classmethod
    def of(cls, resource: Resource, data: Json) -> "Stored":
        metadata = data["metadata"]
        return cls(
            resource=resource,
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            labels=metadata.get("labels") or {},
            fields=selectable_fields(resource, data),
            body=encode({key: value for key, value in data.items() if key not in ("kind", "apiVersion")}),
        )

    def data(self) -> Json:
        """Return a copy."""
        data: Json = json.loads(self.body)
        return data

    def encoded(self) -> bytes:
        kind = f'{{"kind":"{self.resource.kind}","apiVersion":"{self.resource.api_version}",'
        return kind.encode() + self.body[1:]

    def at(self, version: int) -> "Stored":
        data = self.data()
        data["metadata"]["resourceVersion"] = str(version)
        return Stored.of(self.resource, data)


@dataclass(frozen=True, slots=True)
class Selection:
    """The objects that a list or watch selects."""

    namespace: str
    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, stored: Stored | None) -> bool:
        return (
            stored is not None
            and stored.namespace == self.namespace
            and all(requirement.matches(stored.labels) for requirement in self.labels)
            and all(requirement.matches(stored.fields) for requirement in self.fields)
        )


class Change:
    """A change of one object. Lines for watchers are encoded once for all of them."""

    def __init__(self, version: int, old: Stored | None, new: Stored | None) -> None:
        """`new` is None if the object was deleted."""
        self.version = version
        self.old = old
        self.new = new
        self._lines: dict[str, bytes] = {}

    def line(self, selection: Selection) -> bytes | None:
        """Return the event for a watcher of the selection, with its newline; None if there is none for it."""
        was, is_in = selection.matches(self.old), selection.matches(self.new)
        if not was and not is_in:
            return None
        kind = ("MODIFIED" if was else "ADDED") if is_in else "DELETED"
        if kind not in self._lines:
            stored = self.new if is_in else self.old and self.old.at(self.version)
            assert stored is not None
            self._lines[kind] = watch_line(kind, stored.encoded())
        return self._lines[kind]


def watch_line(kind: str, encoded: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + encoded + b"}\n"


class Watcher:
    """The events of one watch, from a version on."""

    def __init__(self, resource: Resource, selection: Selection) -> None:
        self.resource = resource
        self.selection = selection
        self.lines: deque[bytes] = deque()
        self.news = asyncio.Event()

    def offer(self, change: Change) -> None:
        if (line := change.line(self.selection)) is not None:
            self.put(line)

    def put(self, line: bytes) -> None:
        self.lines.append(line)
        self.news.set()

    def take(self) -> bytes:
        self.news.clear()
        data = b"".join(self.lines)
        self.lines.clear()
        return data


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    version: int
    items: list[bytes]
    token: str = ""
    remaining: int = 0


def too_old(version: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {version} ({oldest})")


class Store:
    """All objects. Everything is synchronous; `hooks` are called after every change."""

    def __init__(self, clock: Callable[[], datetime] = now, *, history: int = 5000) -> None:
        """`history` is the number of past changes per resource from which a watch can start."""
        self.clock = clock
        self.version = 1000
        self.hooks: list[Callable[[Change], None]] = []
        self.admission: list[Callable[[Resource, Json], None]] = []
        """Callbacks that may change or reject an object before its creation."""
        self.collects_garbage = True
        """True if objects are deleted with the last of their owners."""
        self._objects: dict[Resource, dict[Key, Stored]] = {resource: {} for resource in RESOURCES}
        self._history: dict[Resource, deque[Change]] = {
            resource: deque(maxlen=history) for resource in RESOURCES
        }
        self._oldest: dict[Resource, int] = dict.fromkeys(RESOURCES, self.version)
        self._watchers: dict[Resource, set[Watcher]] = {resource: set() for resource in RESOURCES}
        self._snapshots: dict[str, tuple[int, list[Stored]]] = {}

    # -- reading

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        if (stored := self._objects[resource].get((namespace, name))) is None:
            raise not_found(resource, name)
        return stored

    def find(self, resource: Resource, namespace: str, name: str) -> Stored | None:
        return self._objects[resource].get((namespace, name))

    def select(self, resource: Resource, selection: Selection) -> list[Stored]:
        found = (stored for stored in self._objects[resource].values() if selection.matches(stored))
        return sorted(found, key=lambda stored: (stored.namespace, stored.name))

    def page(self, resource: Resource, selection: Selection, *, limit: int = 0, token: str = "") -> Page:
        """Return one page of the list as it was when its first page was read."""
        if token:
            if token not in self._snapshots:
                message = (
                    "The provided continue parameter is too old to display a consistent list result. You can start "
                    "a new list without the continue parameter."
                )
                raise ApiError(410, "Expired", message)
            version, rest = self._snapshots[token]
        else:
            version, rest = self.version, self.select(resource, selection)
        if not limit or len(rest) <= limit:
            return Page(version, [stored.body for stored in rest])
        start = {"v": "meta.k8s.io/v1", "rv": version, "start": f"{rest[limit].name}\0", "at": len(rest)}
        following = (
            base64.urlsafe_b64encode(encode({**start, "of": secrets.token_hex(4)})).decode().rstrip("=")
        )
        self._snapshots[following] = (version, rest[limit:])
        while len(self._snapshots) > SNAPSHOTS:
            self._snapshots.pop(next(iter(self._snapshots)))
        return Page(version, [stored.body for stored in rest[:limit]], following, len(rest) - limit)

    # -- watches

    def watch(self, resource: Resource, selection: Selection, version: int | None) -> Watcher:
        """Start after a version; without one, with all existing objects. Raises a 410 that belongs in the stream."""
        watcher = Watcher(resource, selection)
        if version is None:
            for stored in self.select(resource, selection):
                watcher.put(watch_line("ADDED", stored.encoded()))
        else:
            if version < self._oldest[resource]:
                raise too_old(version, self._oldest[resource])
            for change in self._history[resource]:
                if change.version > version:
                    watcher.offer(change)
        self._watchers[resource].add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers[watcher.resource].discard(watcher)

    def watchers(self) -> list[Watcher]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    def compact(self) -> None:
        """Drop all versions up to now: older watches must list again, and lists in progress are expired."""
        # In a real cluster other objects change all the time, so no watch is at the newest version by chance.
        self.version += 1
        self._snapshots.clear()
        for resource in RESOURCES:
            self._history[resource].clear()
            self._oldest[resource] = self.version

    # -- writes

    def create(self, resource: Resource, namespace: str, data: Json) -> Stored:
        metadata = data.setdefault("metadata", {})
        _check_kind(resource, data)
        if metadata.get("namespace") not in (None, "", namespace):
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        if metadata.get("resourceVersion"):
            raise ApiError(500, "InternalError", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"):
            metadata.pop(key, None)
        metadata |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": stamp(self.clock()),
        }
        if resource is SECRETS:
            _store_strings(data)
        check_object(resource, data)
        for admit in self.admission:
            admit(resource, data)
        if (known := self.find(resource, namespace, metadata["name"])) is not None:
            is_leaving = "deletionTimestamp" in known.data()["metadata"]
            raise already_exists(resource, metadata["name"], is_leaving=is_leaving)
        return self._commit(resource, None, data)

    def replace(self, resource: Resource, namespace: str, name: str, data: Json) -> tuple[Stored, bool]:
        """Replace an object, or create it; the flag is True if it was created."""
        _check_kind(resource, data)
        metadata = data.setdefault("metadata", {})
        if metadata.setdefault("name", name) != name:
            raise bad_request(_other_name(metadata["name"], name))
        stored = self.find(resource, namespace, name)
        if stored is None:
            if uid := metadata.get("uid"):
                raise conflict(resource, name, _other_uid(uid, ""))
            metadata.pop("resourceVersion", None)
            return self.create(resource, namespace, data), True
        if resource is LEASES and not metadata.get("resourceVersion"):
            why = "Invalid value: 0: must be specified for an update"
            raise invalid(resource, name, "metadata.resourceVersion", why)
        return self._update(stored, data), False

    def patch(self, resource: Resource, namespace: str, name: str, apply: Callable[[Json], Json]) -> Stored:
        stored = self.get(resource, namespace, name)
        return self._update(stored, apply(json.loads(stored.encoded())))

    def _update(self, stored: Stored, new: Json) -> Stored:
        resource, old = stored.resource, stored.data()
        metadata = new.setdefault("metadata", {})
        if metadata.get("name") != stored.name:
            raise bad_request(_other_name(metadata.get("name"), stored.name))
        if (uid := metadata.setdefault("uid", stored.uid)) != stored.uid:
            raise conflict(resource, stored.name, _other_uid(uid, stored.uid))
        if (metadata.get("resourceVersion") or str(stored.version)) != str(stored.version):
            why = (
                "the object has been modified; please apply your changes to the latest version and try again"
            )
            raise conflict(resource, stored.name, why)
        metadata["resourceVersion"] = str(stored.version)
        for key in _CARRIED:
            metadata.pop(key, None)
            if key in old["metadata"]:
                metadata[key] = old["metadata"][key]
        if resource is PODS:
            new["status"] = old["status"]
        if resource is SECRETS:
            _store_strings(new)
        check_change(resource, old, new)
        return self._write(stored, old, new)

    def edit(
        self, resource: Resource, namespace: str, name: str, change: Callable[[Json], object]
    ) -> Stored | None:
        """Change an object without validation, as the cluster itself does; None if it is gone."""
        if (stored := self.find(resource, namespace, name)) is None:
            return None
        data = stored.data()
        change(data)
        return self._write(stored, stored.data(), data)

    def _write(self, stored: Stored, old: Json, new: Json) -> Stored:
        for data in (old, new):
            data.pop("kind", None)
            data.pop("apiVersion", None)
        _drop_empty(new["metadata"])
        if new == old:
            return stored
        if _is_over(new["metadata"]):
            return self._remove(stored, new)
        return self._commit(stored.resource, stored, new)

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        grace: int | None = None,
        preconditions: Json | None = None,
    ) -> tuple[Stored, bool]:
        """Start or finish a deletion; the flag is True if the object is gone."""
        stored = self.get(resource, namespace, name)
        _check_preconditions(stored, preconditions or {})
        data = stored.data()
        metadata = data["metadata"]
        period = _grace_period(resource, data, grace)
        if "deletionTimestamp" in metadata:
            before = metadata.get("deletionGracePeriodSeconds") or 0
            # A running deletion can only be shortened, and only explicitly.
            if before == 0 or grace is None or grace >= before:
                return stored, False
            period = grace
            until = datetime.fromisoformat(metadata["deletionTimestamp"]) + timedelta(seconds=period - before)
        else:
            until = self.clock() + timedelta(seconds=period)
        metadata |= {"deletionTimestamp": stamp(until), "deletionGracePeriodSeconds": period}
        if _is_over(metadata):
            return self._remove(stored, data), True
        return self._commit(resource, stored, data), False

    def _commit(self, resource: Resource, old: Stored | None, data: Json) -> Stored:
        _drop_empty(data["metadata"])
        self.version += 1
        data["metadata"]["resourceVersion"] = str(self.version)
        new = Stored.of(resource, data)
        self._objects[resource][new.namespace, new.name] = new
        self._notify(resource, Change(self.version, old, new))
        return new

    def _remove(self, stored: Stored, data: Json) -> Stored:
        del self._objects[stored.resource][stored.namespace, stored.name]
        last = Stored.of(stored.resource, data)
        self.version += 1
        # A watcher that selected the object by its former labels gets the deletion, hence the labels before the change.
        old = Stored(**{**_slots(last), "labels": stored.labels, "fields": stored.fields})
        self._notify(stored.resource, Change(self.version, old, None))
        if self.collects_garbage:
            self._collect(stored.uid)
        return last.at(self.version)

    def _collect(self, owner: str) -> None:
        for resource in (PODS, CONFIGMAPS, SECRETS, LEASES):
            # Decoding all objects at each removal would dominate benchmarks.
            for stored in [item for item in self._objects[resource].values() if owner.encode() in item.body]:
                owners = stored.data()["metadata"].get("ownerReferences") or ()
                if [item["uid"] for item in owners] == [owner]:
                    self.delete(resource, stored.namespace, stored.name)

    def _notify(self, resource: Resource, change: Change) -> None:
        history = self._history[resource]
        if len(history) == history.maxlen:
            self._oldest[resource] = history[0].version
        history.append(change)
        for watcher in self._watchers[resource]:
            watcher.offer(change)
        for hook in self.hooks:
            hook(change)


def _slots(stored: Stored) -> dict[str, Any]:
    return {name: getattr(stored, name) for name in Stored.__slots__}


def _drop_empty(metadata: Json) -> None:
    """Remove empty fields, as Go does: a patch finds no list of finalizers if there are none."""
    for key in ("labels", "annotations", "finalizers", "ownerReferences"):
        if not metadata.get(key, True):
            del metadata[key]


def _is_over(metadata: Json) -> bool:
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
    )


def _grace_period(resource: Resource, data: Json, asked: int | None) -> int:
    """Return the grace period of a pod in seconds; 0 for objects that no kubelet has to end."""
    if resource is not PODS:
        return 0
    if not data["spec"].get("nodeName") or data["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    if asked is None:
        asked = int(data["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS))
    return asked if asked >= 0 else 1


def _check_preconditions(stored: Stored, preconditions: Json) -> None:
    if (uid := preconditions.get("uid")) not in (None, stored.uid):
        raise conflict(stored.resource, stored.name, _other_uid(str(uid), stored.uid))
    if (version := preconditions.get("resourceVersion")) not in (None, str(stored.version)):
        why = (
            f"the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record "
            f"({stored.version}). The object might have been modified"
        )
        raise conflict(stored.resource, stored.name, why)


def _check_kind(resource: Resource, data: Json) -> None:
    kind, version = data.get("kind", resource.kind), data.get("apiVersion", resource.api_version)
    if (kind, version) != (resource.kind, resource.api_version):
        raise bad_request(
            f"{kind} in version {json.dumps(version)} cannot be handled as a {resource.kind}: no kind "
            f'"{kind}" is registered for version "{version}"'
        )


def _store_strings(data: Json) -> None:
    strings = data.pop("stringData", None) or {}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in strings.items()}
    if encoded:
        data["data"] = {**(data.get("data") or {}), **encoded}
    data.setdefault("type", "Opaque")


def _other_name(found: object, wanted: str) -> str:
    return f"the name of the object ({found}) does not match the name on the URL ({wanted})"


def _other_uid(asked: str, found: str) -> str:
    return f"Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"
