"""The choice of the cluster: one that exists, k3s in a Docker engine, or our own."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

from deploy.dev.machine import Ledger, Unable
from deploy.dev.services import read_env

from tests.cluster.harness import given, k3s, layout, own
from tests.cluster.harness.layout import ENV, KUBECONFIG


class Kind(Protocol):
    """One way to have a cluster."""

    KIND: str

    def prepare(self) -> None:
        """Fill the caches with everything that `up` needs, without starting anything; raises Unable."""

    def up(self) -> dict[str, str]:
        """Start what does not run and return the variables that say where everything is; raises Unable."""

    def down(self, *, wipe: bool = False) -> None:
        """End what `up` started; harmless when there is nothing."""

    def load(self, archive: Path) -> None:
        """Import the images of an archive into every node; raises Unable."""


KINDS: tuple[Kind, ...] = (given, k3s, own)


def chosen() -> Kind:
    """Return the kind that runs, or the one to start."""
    # Our own variables, when sourced by a shell, do not name another cluster.
    if (named := os.environ.get("KUBECONFIG")) and Path(named).parent != KUBECONFIG.parent:
        return given
    running = read_env(ENV).get("RABBIT2DOCKER_TEST_CLUSTER")
    for kind in (k3s, own):
        if running == kind.KIND:
            return kind
    if layout.ledger().processes:
        return own  # a start that did not come to its end
    return k3s if _engine_can_pull() else own


def load(archive: Path) -> None:
    """Import images into every node of the cluster that runs; raises Unable."""
    if not archive.exists():
        raise Unable(f"There is no {archive}.")
    chosen().load(archive)


def _engine_can_pull() -> bool:
    """Return whether there is a Docker engine that has k3s's image or can pull it."""
    client = shutil.which("docker")
    if client is None or Ledger().docker_host:
        return False  # the engine of `make up` was made because nothing but packages can be had
    for command in (["image", "inspect", k3s.IMAGE], ["pull", "--quiet", k3s.IMAGE]):
        try:
            result = subprocess.run(
                [client, *command], capture_output=True, timeout=k3s.PULL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        if not result.returncode:
            return True
    return False
