"""The processes of nodes and pods, and the control groups they are in."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from deploy.dev.machine import start_time, wait_until

from tests.cluster.harness.layout import CGROUP, Node

_HIERARCHIES = Path("/sys/fs/cgroup")
_PATIENCE = 20.0


def in_mount_namespace_of(pid: int) -> set[int]:
    """Return the processes that share a mount namespace; empty when it is this program's own or there is none."""
    namespace = _link(Path("/proc", str(pid), "ns/mnt"))
    if namespace is None or namespace == _link(Path("/proc/self/ns/mnt")):
        return set()
    return {found for found in all_processes() if _link(Path("/proc", str(found), "ns/mnt")) == namespace}


def in_root(root: Path) -> set[int]:
    """Return the processes whose root directory this is."""
    found = set()
    for pid in all_processes():
        with suppress(OSError):
            if Path("/proc", str(pid), "root").samefile(root):
                found.add(pid)
    return found


def name_of(pid: int) -> str:
    """Return the name of a process's program; empty when it has ended."""
    return _read(pid, "comm").strip()


def of_node(node: Node, started: Iterable[int]) -> set[int]:
    """Return all processes of a node: its daemons, some of which are known, its pods, and what those started."""
    chosen = set(started)
    for pid in started:
        chosen |= in_mount_namespace_of(pid)
    chosen |= {pid for pid in all_processes() if f"/{node.cgroup}" in _read(pid, "cgroup")}
    parents = {pid: _parent(pid) for pid in all_processes()}
    while more := {pid for pid, parent in parents.items() if parent in chosen} - chosen:
        chosen |= more
    return chosen - {os.getpid()}


def pod_of(pid: int) -> str | None:
    """Return the uid of the pod that a process runs in."""
    found = re.search(r"/pod([0-9a-f-]{36})(?:/|$)", _read(pid, "cgroup"), re.MULTILINE)
    return found[1] if found else None


def kill_all(find: Callable[[], Iterable[int]]) -> None:
    """Kill what `find` finds until it finds nothing, for they may multiply in the meantime."""

    def none_left() -> bool:
        alive = [pid for pid in find() if start_time(pid) is not None]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not alive

    wait_until(none_left, _PATIENCE)


def all_processes() -> list[int]:
    """Return every process of the machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def make_cgroups(node: Node) -> None:
    """Make a node's control group in each hierarchy, or in the only one where the kernel has unified them."""
    for root in _roots():
        _hand_down_controllers(root)
        for directory in (root / CGROUP, root / node.cgroup):
            directory.mkdir(exist_ok=True)
            _hand_down_controllers(directory)
            # Version 1: a group without processors or memory nodes takes no process.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (root / file).exists() and not (directory / file).read_text().strip():
                    (directory / file).write_text((root / file).read_text())


def _hand_down_controllers(directory: Path) -> None:
    """Let the children of a version 2 group have its controllers, as far as the kernel allows."""
    control = directory / "cgroup.subtree_control"
    for name in (directory / "cgroup.controllers").read_text().split() if control.exists() else ():
        with suppress(OSError):
            control.write_text(f"+{name}")


def remove_cgroups(group: str = CGROUP) -> None:
    """Remove control groups; the kernel lets go of them a moment after their last process has ended."""
    # Where both versions are mounted runc makes the group in `unified` too, of which we make no use.
    for root in (*_roots(), _HIERARCHIES / "unified"):
        wait_until(partial(_removed, root / group), _PATIENCE)


def _removed(directory: Path) -> bool:
    for top, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            Path(top).rmdir()
    return not directory.exists()


def _roots() -> list[Path]:
    if (_HIERARCHIES / "cgroup.controllers").exists():
        return [_HIERARCHIES]
    # Links such as `cpu` beside `cpu,cpuacct` name the same hierarchy twice.
    found = {path.resolve() for path in _HIERARCHIES.iterdir() if path.is_dir()}
    return sorted(found - {_HIERARCHIES / "unified"})


def _link(path: Path) -> str | None:
    with suppress(OSError):
        return os.readlink(path)
    return None


def _read(pid: int, file: str) -> str:
    with suppress(OSError):
        return Path("/proc", str(pid), file).read_text()
    return ""


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def empty(directory: Path) -> None:
    """Remove what is in a directory, which itself may be in use."""
    for path in directory.iterdir() if directory.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
