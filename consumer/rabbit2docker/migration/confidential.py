"""Secrets in values, recognised by their names and by how they look."""

import re
from typing import Any, Final

_NAME: Final = re.compile(
    r"(?:pass(?:word|wd|phrase)?|tokens?|secret|credentials?|(?:api|private|access|account|secret)[_-]?key)$",
    re.IGNORECASE,
)
_VALUE: Final = re.compile(
    r"://[^/\s@]*:[^/\s@]+@"
    r"|-----BEGIN [A-Z ]*PRIVATE"
    r"|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bgl[a-z]{1,5}t-[\w-]{16,}|\bxox[abp]-\w+"
    r"|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{10,}\.[\w-]{10,}\."
    r"|^ENC\[|(?i:(?:password|passwd|token|secret|api[_-]?key)\s*[=:]\s*\S)"
)


def is_secret_name(name: str) -> bool:
    """Return whether a value of this name is a secret. Annotations, which name Secrets, have a slash."""
    return "/" not in name and bool(_NAME.search(name))


def is_secret(name: str, value: Any) -> bool:
    """Return whether a value that is neither mapping nor list is a secret."""
    return isinstance(value, str) and bool(value) and (is_secret_name(name) or bool(_VALUE.search(value)))


def without_secrets(value: Any, name: str = "") -> tuple[Any, list[str]]:
    """Return a value without the secrets in it, and where they were, relative to it."""
    if isinstance(value, dict):
        return _clean_mapping(value)
    if isinstance(value, list):
        return _clean_list(value, name)
    return (None, [""]) if is_secret(name, value) else (value, [])


def _clean_mapping(value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    clean: dict[str, Any] = {}
    found: list[str] = []
    variable = value.get("name") if "value" in value else None
    for key, item in value.items():
        name = str(variable) if variable is not None and key == "value" else key
        kept, below = without_secrets(item, name)
        found += [f"{key}.{path}".rstrip(".") for path in below]
        if kept is not None or item is None:
            clean[key] = kept
    return clean, found


def _clean_list(value: list[Any], name: str) -> tuple[list[Any], list[str]]:
    clean: list[Any] = []
    found: list[str] = []
    for index, item in enumerate(value):
        kept, below = without_secrets(item, name)
        called = item.get("name", index) if isinstance(item, dict) else index
        found += [f"{called}.{path}".rstrip(".") for path in below]
        if not (
            "value" in below or (kept is None and item is not None)
        ):  # a variable is nothing without its value
            clean.append(kept)
    return clean, found
