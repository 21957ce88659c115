"""The cluster's tests: in parallel what lets each other be, and afterwards, one by one, what breaks the cluster."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from deploy.dev.machine import say

DISRUPTIVE = "disruptive"
"""Mark of the tests that take a node or the API server away from all others."""
_WORKERS = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_WORKERS", "3")
_NOTHING_CHOSEN = 5
"""pytest's exit code when the arguments choose no test."""


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run both parts and return pytest's exit code; 5 only if the arguments choose no test of either."""
    # A file's tests share what they have installed, so they stay with one worker.
    parallel = ("-n", _WORKERS, "--dist", "loadfile")
    codes = [
        _pytest(f"cluster and not {DISRUPTIVE}", [*parallel, *arguments], environment),
        _pytest(f"cluster and {DISRUPTIVE}", arguments, environment),
    ]
    failed = [code for code in codes if code not in (0, _NOTHING_CHOSEN)]
    return failed[0] if failed else min(codes)


def _pytest(chosen: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    say(f"Tests: {chosen}")
    command = [sys.executable, "-m", "pytest", "-m", chosen, "tests/cluster", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode
