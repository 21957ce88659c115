"""Recorded failures of real engines, registries and git servers, each with the verdict that users should get."""

import tomllib
from pathlib import Path
from typing import Any, Final

CORPUS: Final = Path(__file__).parent
NAMED: Final = "127.0.0.1:5000"
"""The registry's address in recordings."""


def cases() -> dict[str, dict[str, Any]]:
    """Return the rows of cases.toml by name."""
    return tomllib.loads((CORPUS / "cases.toml").read_text())["cases"]  # type: ignore[no-any-return]


def output_of(name: str) -> Path:
    """Return the file with what the case printed."""
    return CORPUS / name / "output.txt"
