"""The cluster's tests: first, one by one, those that break the cluster; then, in parallel, those that let each other be.

The first ones mostly wait, until a node is lost for instance, so that other suites run well beside them.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from deploy.dev.machine import run_interruptible, say

DISRUPTIVE = "disruptive"
"""Mark of the tests that take a node or the API server away from all others."""
_WORKERS = os.environ.get("RABBIT2DOCKER_TEST_CLUSTER_WORKERS", "3")
_PASSED, _FAILED, _NONE_CHOSEN = 0, 1, 5
"""pytest's exit codes after which the other part can run."""


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run both parts and return pytest's exit code; 5 only if the arguments choose no test of either."""
    # The groups, and the order in which they are handed out, are those of conftest.py.
    parallel = ("--numprocesses", _WORKERS, "--no-loadscope-reorder")
    parts = {f"cluster and {DISRUPTIVE}": (), f"cluster and not {DISRUPTIVE}": parallel}
    codes = set()
    for chosen, options in parts.items():
        code = _pytest(chosen, [*options, *arguments], environment)
        if code not in (_PASSED, _FAILED, _NONE_CHOSEN):
            return code
        codes.add(code)
    return _FAILED if _FAILED in codes else min(codes)


def _pytest(chosen: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    say(f"Tests: {chosen}")
    command = [sys.executable, "-m", "pytest", "-m", chosen, "tests/cluster", *arguments]
    return run_interruptible(command, environment)
