"""The stored form of records: JSON with a version, so that services of different versions share them.

A minor version only adds fields. A service keeps those that it does not know when it rewrites a part. A record of a newer
major version is left alone, for a service of that version. A part keeps the version with which it was created.
"""

import json
from typing import Final, TypeVar

from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import RECORD_VERSION, VersionedPart

PartT = TypeVar("PartT", bound=VersionedPart)
_MAJOR: Final = int(RECORD_VERSION.partition(".")[0])


class NewerRecord(Exception):
    """A part of a record of a newer major version."""

    def __init__(self, version: str) -> None:
        """Take the version of the part."""
        super().__init__(f"The record has version {version}; this service reads up to {RECORD_VERSION}.")
        self.version = version


def encode(part: VersionedPart, *, exclude_defaults: bool = False) -> str:
    """Return the stored form, with unknown fields as they were read, and always with the version."""
    content = part.model_dump(mode="json", exclude_defaults=exclude_defaults)
    return json.dumps({"version": part.version, **content}, ensure_ascii=False, separators=(",", ":"))


def decode(model: type[PartT], data: str | bytes) -> PartT:
    """Read a part. Raises NewerRecord, or ValueError if it is damaged."""
    try:
        part = model.model_validate_json(data)
    except ValidationError:
        if (version := _version_of(data)) is not None and _is_newer(version):
            raise NewerRecord(version) from None
        raise
    if _is_newer(part.version):
        raise NewerRecord(part.version)
    return part


def newer_text(newer: dict[str, str]) -> str | None:
    """Return the problem for readiness: records, by name with their versions, that this service leaves alone."""
    if not newer:
        return None
    names = ", ".join(sorted(newer)[:5]) + (" …" if len(newer) > 5 else "")
    return (
        f"{len(newer)} records have a newer version ({max(newer.values())}) than this service reads "
        f"({RECORD_VERSION}): {names}. Their builds end once a service of that version runs; start one."
    )


def waits_for_newer(name: str, version: str) -> str:
    """Return why a request cannot use a name that a newer record has."""
    return (
        f"A build {name} has a record of a newer version ({version}) than this service reads ({RECORD_VERSION}). "
        "A service of that version must end it."
    )


def _version_of(data: str | bytes) -> str | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    version = content.get("version") if isinstance(content, dict) else None
    return None if version is None else str(version)


def _is_newer(version: str) -> bool:
    major = version.partition(".")[0]
    return not major.isdigit() or int(major) > _MAJOR
