"""Resources, errors, selectors and validation of the Kubernetes API, as far as the service uses them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

ANNOTATIONS_BYTES = 256 << 10
DATA_BYTES = 1 << 20
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUALIFIED_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
)


@dataclass(frozen=True, slots=True)
class Resource:
    """A type of objects and its place in the API."""

    plural: str
    kind: str
    group: str = ""
    field_labels: tuple[str, ...] = ()
    """Supported field selectors, in addition to name and namespace."""
    replaces: bool = False
    """True if PUT is supported; it then also creates, as for leases."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """The name in messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource("pods", "Pod", field_labels=("spec.nodeName", "status.phase"))
EVENTS = Resource(
    "events",
    "Event",
    field_labels=(
        "involvedObject.uid",
        "involvedObject.name",
        "involvedObject.kind",
        "involvedObject.namespace",
        "reason",
        "type",
    ),
)
CONFIGMAPS = Resource("configmaps", "ConfigMap")
SECRETS = Resource("secrets", "Secret", field_labels=("type",))
LEASES = Resource("leases", "Lease", group="coordination.k8s.io", replaces=True)
RESOURCES = (PODS, EVENTS, CONFIGMAPS, SECRETS, LEASES)


def stamp(moment: datetime) -> str:
    """Return a time as in metadata and statuses: whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encode(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


# -- errors


@dataclass
class ApiError(Exception):
    """A response that is a Status."""

    code: int
    reason: str
    message: str
    details: Json = field(default_factory=dict)
    retry_after: int | None = None

    def status(self) -> Json:
        details = dict(self.details)
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": details} if details else {}),
            "code": self.code,
        }


def details(resource: Resource, name: str) -> Json:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', details(resource, name))


def already_exists(resource: Resource, name: str, *, is_leaving: bool) -> ApiError:
    message = f'{resource.qualified} "{name}" already exists'
    if is_leaving:
        message = f"object is being deleted: {message}"
    return ApiError(409, "AlreadyExists", message, details(resource, name))


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, details(resource, name))


def invalid(resource: Resource, name: str, where: str, why: str) -> ApiError:
    qualified = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return ApiError(
        422,
        "Invalid",
        f'{qualified} "{name}" is invalid: {where}: {why}',
        {**details(resource, name), "kind": resource.kind, "causes": [{"message": why, "field": where}]},
    )


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    message = f'{resource.qualified} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, details(resource, name))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


# -- selectors


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    values: frozenset[str] | None
    """None: any value."""
    negated: bool = False

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        found = value is not None and (self.values is None or value in self.values)
        return found is not self.negated


_SET = re.compile(r"(\S+)\s+((?:not)?in)\s+\(([^)]*)\)")
_EQUAL = re.compile(r"([^!=\s]+)\s*(!=|==|=)\s*(\S*)")
_EXISTS = re.compile(r"(!?)([^!=\s()]+)")


def parse_selector(text: str) -> tuple[Requirement, ...]:
    """Parse a label selector; raises ApiError if it is invalid."""
    return tuple(_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip())


def _requirement(text: str) -> Requirement:
    if found := _SET.fullmatch(text):
        values = frozenset(value.strip() for value in found[3].split(","))
        return Requirement(found[1], values, negated=found[2] != "in")
    if found := _EQUAL.fullmatch(text):
        return Requirement(found[1], frozenset((found[3],)), negated=found[2] == "!=")
    if found := _EXISTS.fullmatch(text):
        return Requirement(found[2], None, negated=bool(found[1]))
    raise bad_request(f"unable to parse requirement: {text!r}")


def parse_fields(resource: Resource, text: str) -> tuple[Requirement, ...]:
    """Parse a field selector; raises ApiError for an unsupported field."""
    requirements = parse_selector(text)
    for requirement in requirements:
        if requirement.key not in ("metadata.name", "metadata.namespace", *resource.field_labels):
            raise bad_request(
                f'Unable to find "{resource.api_version}, Resource={resource.plural}" that match label selector "", '
                f'field selector "{text}": field label not supported: {requirement.key}'
            )
    return requirements


def selectable_fields(resource: Resource, data: Json) -> dict[str, str]:
    fields = {}
    for label in ("metadata.name", "metadata.namespace", *resource.field_labels):
        value: Any = data
        for part in label.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        fields[label] = str(value or "")
    return fields


# -- validation


def check_object(resource: Resource, data: Json) -> None:
    """Raise the API server's error for an invalid object."""
    metadata = data["metadata"]
    name = str(metadata.get("name") or "")
    if not name:
        raise invalid(resource, name, "metadata.name", "Required value: name or generateName is required")
    if len(name) > 253 or not _DNS_SUBDOMAIN.fullmatch(name):
        raise invalid(
            resource, name, "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain'
        )
    _check_labels(resource, name, metadata.get("labels") or {})
    annotations = metadata.get("annotations") or {}
    if any(not isinstance(value, str) for value in annotations.values()):
        raise bad_request(f"{resource.kind} in version v1 cannot be handled: annotations have to be strings")
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > ANNOTATIONS_BYTES:
        why = f"Too long: may not be more than {ANNOTATIONS_BYTES} bytes"
        raise invalid(resource, name, "metadata.annotations", why)
    for finalizer in metadata.get("finalizers") or ():
        if not _QUALIFIED_NAME.fullmatch(finalizer) or "/" not in finalizer:
            why = f'Invalid value: "{finalizer}": name is neither a standard finalizer name nor is it fully qualified'
            raise invalid(resource, name, "metadata.finalizers", why)
    if len(encode(data.get("data") or {})) > DATA_BYTES:
        raise invalid(resource, name, "data", f"Too long: may not be more than {DATA_BYTES} bytes")


def _check_labels(resource: Resource, name: str, labels: Mapping[str, Any]) -> None:
    for key, value in labels.items():
        if not _QUALIFIED_NAME.fullmatch(key):
            raise invalid(
                resource, name, "metadata.labels", f'Invalid value: "{key}": name part must be valid'
            )
        if not isinstance(value, str) or len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            raise invalid(
                resource, name, "metadata.labels", f"Invalid value: {json.dumps(value)}: a valid label"
            )


def check_change(resource: Resource, old: Json, new: Json) -> None:
    """Raise the API server's error for a forbidden change."""
    name = old["metadata"]["name"]
    check_object(resource, new)
    if "deletionTimestamp" in old["metadata"]:
        known = set(old["metadata"].get("finalizers") or ())
        added = [item for item in new["metadata"].get("finalizers") or () if item not in known]
        if added:
            why = (
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
                f"[]string{{{', '.join(json.dumps(item) for item in added)}}}"
            )
            raise invalid(resource, name, "metadata.finalizers", why)
    if resource is PODS:
        _check_pod_change(name, old["spec"], new.get("spec") or {})
    if old.get("immutable"):
        for key in ("immutable", "data", "binaryData"):
            if old.get(key) != new.get(key):
                raise invalid(resource, name, key, "Forbidden: field is immutable when `immutable` is set")


def _check_pod_change(name: str, old: Json, new: Json) -> None:
    may_change = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations")
    if any(old.get(key) != new.get(key) for key in {*old, *new} if key not in may_change):
        why = (
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
            "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
            "previously negative)"
        )
        raise invalid(PODS, name, "spec", why)
