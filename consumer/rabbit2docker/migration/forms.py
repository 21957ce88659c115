"""Forms that values of the chart must have. Each function returns a value in that form or raises a ValueError."""

import json
from typing import Any


def text(value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise ValueError("it is no text")
    return value


def filled(value: Any) -> str:
    """Return a text that is not empty."""
    if not text(value):
        raise ValueError("it is empty")
    return str(value)


def boolean(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError("it is neither true nor false")
    return value


def integer(value: Any) -> int:
    """Return a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it is no whole number")
    return value


def port(value: Any) -> int:
    """Return the number of a port."""
    if not 0 < integer(value) < 65536:
        raise ValueError("it is no port")
    return int(value)


def service_type(value: Any) -> str:
    """Return a type of Services."""
    return one_of(value, "ClusterIP", "NodePort", "LoadBalancer")


def pull_policy(value: Any) -> str:
    """Return when images are pulled."""
    return one_of(value, "Always", "IfNotPresent", "Never")


def one_of(value: Any, *choices: str) -> str:
    """Return one of several texts."""
    if value not in choices:
        raise ValueError(f"it is none of {', '.join(choices)}")
    return str(value)


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping."""
    if not isinstance(value, dict):
        raise ValueError("it is no mapping")
    return value


def strings(value: Any) -> dict[str, str]:
    """Return a mapping of texts, such as labels; numbers and booleans become texts, as in YAML."""
    return {
        key: item if isinstance(item, str) else json.dumps(_scalar(item))
        for key, item in mapping(value).items()
    }


def _scalar(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise ValueError("it holds more than texts")
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """Return a list of mappings."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("it is no list of mappings")
    return value


def texts(value: Any) -> list[str]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("it is no list of texts")
    return value


def references(value: Any) -> list[dict[str, str]]:
    """Return references to Secrets; names alone count as such."""
    if not isinstance(value, list):
        raise ValueError("it is no list")
    return [{"name": _name(item)} for item in value]


def names(value: Any) -> list[str]:
    """Return the names of Secrets, which may be references."""
    return [item["name"] for item in references(value)]


def _name(item: Any) -> str:
    return filled(item.get("name") if isinstance(item, dict) else item)
