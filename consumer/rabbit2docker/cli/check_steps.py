"""Printing of the steps of a check."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from rabbit2docker.cli.output import say

if TYPE_CHECKING:
    from rabbit2docker.consumer.check_step import Step


async def print_steps(steps: "AsyncIterator[Step]", *, as_json: bool) -> bool:
    """Print each step as it is done; return whether all went well."""
    is_ok = True
    async for step in steps:
        is_ok = is_ok and step.is_ok
        state = "ok" if step.is_ok else "PROBLEM"
        say(json.dumps(asdict(step)) if as_json else f"{state:8}{step.name:12}{step.message}")
    return is_ok
