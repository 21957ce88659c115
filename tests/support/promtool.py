"""Prometheus's own checker of rules: that of the machine, or from its Debian package, kept in the cache."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.dev.machine import CACHE, SYSTEM_PATH, Unable, locked, run

_PACKAGE = "prometheus"


def promtool() -> Path:
    """Return the path of promtool. Raises Unable where it cannot be had."""
    if found := shutil.which("promtool"):
        return Path(found)
    kept = CACHE / "promtool" / "promtool"
    with locked(CACHE / "promtool.lock"):
        if not kept.exists():
            _unpack(kept)
    return kept


def _unpack(target: Path) -> None:
    if not shutil.which("apt-get", path=SYSTEM_PATH):
        raise Unable("promtool is needed. Install Prometheus, or run this on Debian.")
    environment = {**os.environ, "PATH": SYSTEM_PATH}
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as directory:
        download = ["apt-get", "-q", "download", _PACKAGE]
        try:
            run(download, cwd=directory, env=environment)
        except Unable:
            run(["apt-get", "-q", "update"], env=environment)
            run(download, cwd=directory, env=environment)
        [package] = Path(directory).glob("*.deb")
        run(["dpkg-deb", "--extract", package, directory], env=environment)
        (Path(directory) / "usr/bin/promtool").rename(target)
