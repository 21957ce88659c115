"""The list of repositories that `prebuild` reads: one per line, or CSV with a line of headings. Pure."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError

from rabbit2docker.consumer.providers.specs import pin
from rabbit2docker.errors import RequestRejected
from rabbit2docker.repository_urls import from_url
from rabbit2docker_schemas.providers import find_doi
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.validation_messages import describe

COLUMNS: Final = ("repository", "ref", "provider", "spec", "subdir")
LINE_FORM: Final = "write `URL`, `URL REF` or `PROVIDER SPEC`"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the file."""

    lines: tuple[int, ...]
    """Its number, and those of the lines with the same content."""
    text: str
    request: BuildRequest | None = None
    problem: str = ""
    """Why it is no request; empty if it is one."""


@dataclass(slots=True)
class _Merged:
    request: BuildRequest
    text: str
    lines: list[int] = field(default_factory=list)


def read_entries(text: str, *, hosts: Mapping[str, str] = MappingProxyType({})) -> list[Entry]:
    """Return an entry for each line that is neither empty nor a comment; equal ones are one."""
    merged: dict[str, _Merged] = {}
    bad: list[Entry] = []
    for number, shown, values in _rows(text.removeprefix("\ufeff").splitlines()):
        try:
            request = _request(values, hosts)
        except ValueError as error:
            bad.append(Entry((number,), shown, problem=str(error)))
            continue
        merged.setdefault(request.digest(), _Merged(request, shown)).lines.append(number)
    good = [Entry(tuple(one.lines), one.text, one.request) for one in merged.values()]
    return sorted([*good, *bad], key=lambda entry: entry.lines)


def _rows(lines: list[str]) -> Iterator[tuple[int, str, Mapping[str, str] | str]]:
    """Yield number, text, and the columns of CSV or the reason why there are none."""
    numbered = [(n, line.strip()) for n, line in enumerate(lines, 1)]
    numbered = [(n, line) for n, line in numbered if line and not line.startswith("#")]
    if not numbered:
        return
    headings = [name.strip().lower() for name in numbered[0][1].split(",")]
    if {"repository"} <= set(headings) or {"provider", "spec"} <= set(headings):
        yield from _csv_rows(headings, numbered[1:])
        return
    for number, line in numbered:
        yield number, line, _columns(line.split())


def _csv_rows(
    headings: list[str], lines: Iterable[tuple[int, str]]
) -> Iterator[tuple[int, str, Mapping[str, str] | str]]:
    for number, line in lines:
        try:
            values = [value.strip() for value in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            yield number, line, f"it is not CSV: {error}"
            continue
        if len(values) > len(headings):
            yield number, line, f"it has {len(values)} values for {len(headings)} columns"
        else:
            yield number, line, dict(zip(headings, values, strict=False))


def _columns(words: list[str]) -> Mapping[str, str] | str:
    match words:
        case [url] if _is_url(url):
            return {"repository": url}
        case [url, ref] if _is_url(url):
            return {"repository": url, "ref": ref}
        case [provider, spec]:
            return {"provider": provider, "spec": spec}
        case _:
            return f"it names no repository; {LINE_FORM}"


def _is_url(text: str) -> bool:
    return "://" in text or text.startswith("git@") or find_doi(text) is not None


def _request(values: Mapping[str, str] | str, hosts: Mapping[str, str]) -> BuildRequest:
    """Return the request of a line. Raises ValueError with the reason for people."""
    if isinstance(values, str):
        raise ValueError(values)
    given = {name: value for name, value in values.items() if value}
    if unknown := sorted(given.keys() - set(COLUMNS)):
        raise ValueError(f"the column {unknown[0]!r} is not known; there are {', '.join(COLUMNS)}")
    try:
        provider, spec = _target(given, hosts)
        # The grammar only; no host is asked.
        pin(provider, spec, "0" * 40, hosts=hosts)
        fields = {name: given[name] for name in ("subdir",) if name in given}
        return BuildRequest.model_validate({"provider": provider, "spec": spec, **fields})
    except RequestRejected as error:
        raise ValueError(error.message) from error
    except ValidationError as error:
        raise ValueError(describe(error, BuildRequest.model_fields)) from error


def _target(given: Mapping[str, str], hosts: Mapping[str, str]) -> tuple[str, str]:
    if "repository" in given:
        return from_url(given["repository"], given.get("ref"), hosts=hosts)
    if "provider" in given and "spec" in given:
        return given["provider"], given["spec"]
    raise ValueError("it names no repository")
