"""Distribution of tests over workers: tests of one `xdist_group` go to the same worker, the rest anywhere.

This is what `--dist loadgroup` is for, which has no effect with pytest 9.2: it renames tests, and that changes nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.containers import run_directory

# Longest first, so that all workers end at about the same time.
_ORDER = ("faults", "behaviour", "contract", "unit")
_TESTS = Path(__file__).parents[1]


def sort_longest_first(items: list[pytest.Item]) -> None:
    """Put tests that wait long before those that do not; within a file the order stays."""

    def place(item: pytest.Item) -> int:
        kind = item.path.relative_to(_TESTS).parts[0]
        return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)

    items.sort(key=place)


def write_groups(items: Iterable[pytest.Item]) -> None:
    """Write the group of each test that has one where the scheduler, in another process, reads it."""
    groups = {item.nodeid: mark.args[0] for item in items for mark in item.iter_markers("xdist_group")}
    # Every worker writes the same.
    file = _groups_file()
    temporary = file.with_name(f"{file.name}.{id(groups)}")
    temporary.write_text(json.dumps(groups))
    temporary.rename(file)


def _groups_file() -> Path:
    return run_directory() / "groups.json"


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out groups, and tests without a group one by one."""

    def _split_scope(self, nodeid: str) -> str:
        if not hasattr(self, "_groups"):
            self._groups = json.loads(_groups_file().read_text())
        return str(self._groups.get(nodeid, nodeid))
