"""The builder's input and output, common to all executors: its specification and its line format."""

import json
from datetime import datetime
from typing import Any, Final, cast

from rabbit2docker.consumer.executors.base import AttemptSpec, BuilderLine
from rabbit2docker.consumer.executors.provenance import provenance_labels
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Phase

_PHASES: Final[dict[str, Phase]] = {phase.value: phase for phase in Phase}
_MAX_NUMBER: Final = 2**31


def parse_line(data: bytes) -> BuilderLine | None:
    """Parse one line of the log; None if it is not in the builder's format."""
    try:
        line: dict[str, Any] = json.loads(data)
        ts = datetime.fromisoformat(line["ts"])
        if not _is_number(line["n"]) or ts.tzinfo is None:
            return None
        return BuilderLine(
            n=line["n"],
            ts=ts,
            phase=_PHASES.get(line["phase"], Phase.BUILDING),
            text=_encodable(line["text"]),
            progress=_progress(line.get("progress")),
            clipped=line.get("clipped") is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half a character
        return text.encode(errors="replace").decode()
    return text


def _progress(value: object) -> dict[str, int] | None:
    is_valid = isinstance(value, dict) and all(map(_is_number, value.values()))
    return cast(dict[str, int], value) if is_valid else None


def builder_spec(spec: AttemptSpec, settings: Settings) -> dict[str, Any]:
    """Return the part of the builder's specification that is common to all executors. It holds no credentials."""
    request, builder = spec.request, settings.builder
    return {
        "repo_url": spec.repo_url,
        "ref": spec.resolved_ref,
        "source_ref": spec.source_ref,
        "image": spec.image,
        "private_image": spec.private_image,
        "content_provider": spec.content_provider,
        "subdir": request.subdir,
        "build_args": request.build_args,
        "labels": request.labels,
        "provenance": provenance_labels(spec),
        "leases": str(settings.engine_leases),
        "force": request.force,
        "appendix": request.appendix,
        "timeout_seconds": spec.timeout_seconds,
        "idle_seconds": spec.idle_seconds,
        "allow_private_addresses": settings.providers.allow_private_addresses,
        "fetch_seconds": builder.fetch_seconds,
        "fetch_retries": builder.fetch_retries,
        "fetch_depth": builder.fetch_depth,
        "max_repository_bytes": builder.max_repository_bytes,
        "max_repository_files": builder.max_repository_files,
        "max_dataset_bytes": settings.providers.max_dataset_bytes,
        "docker_wait_seconds": builder.docker_wait_seconds,
        "push_retries": builder.push_retries,
        "user_name": builder.user_name,
        "user_id": builder.user_id,
        "repo2docker_args": builder.repo2docker_args,
    }
