"""Stalls every event loop at random, as a busy machine does, in all programs that have this directory in PYTHONPATH.

`make test-stalled` runs the tests with it: what depends on the order of two events fails within one run.
"""

import importlib.util
import os
import random
import sys
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MODULE: Final = "asyncio.base_events"
SHORTEST: Final = 0.02
LONGEST: Final = float(os.environ.get("STALL_SECONDS", "0.3"))
BETWEEN: Final = float(os.environ.get("STALL_EVERY", "0.4"))
"""Seconds between two stalls of one loop, on average."""

_sleep = time.sleep  # as it is now: tests replace it to find what blocks


def stall(module: ModuleType) -> None:
    """Make the loops of `asyncio.base_events` stall before some of their steps."""
    loop: Any = module.BaseEventLoop
    step, chance = loop._run_once, random.Random()
    os.register_at_fork(after_in_child=chance.seed)

    def stalled_step(self: Any) -> None:
        now = time.monotonic()
        if now >= getattr(self, "_stalls_at", 0.0):
            _sleep(chance.uniform(SHORTEST, LONGEST))
            self._stalls_at = time.monotonic() + chance.expovariate(1 / BETWEEN)
        step(self)

    loop._run_once = stalled_step


class StallingLoader(Loader):
    """Loads the module as another loader would, and makes its loops stall."""

    def __init__(self, loader: Loader) -> None:
        """Take the module's own loader."""
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create it as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run it, then change it."""
        self._loader.exec_module(module)
        stall(module)


class StallingFinder(MetaPathFinder):
    """Finds the one module; programs that never import it do not pay for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the module with the loader above; None for any other module."""
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            spec.loader = StallingLoader(spec.loader)
        return spec


sys.meta_path.insert(0, StallingFinder())
