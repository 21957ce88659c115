"""The part of the machine that the programs which read a repository can see."""

import importlib.util
import json
import os
import re
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypedDict

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import Settings

_CERTIFICATES: Final = re.compile(r"SSL_CERT_\w+|\w*_CA_BUNDLE")
_TRIAL_SECONDS: Final = 60
_TRIAL: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('repo2docker') is None)"


class Confinement(TypedDict):
    """The builder's instructions for what exists where repositories are read, and what does not where they are fetched."""

    readable: list[str]
    hidden: list[str]


def prepare(settings: Settings) -> Confinement | None:
    """Return the instructions, None if the operator wants none. Raises ConfigurationError if the kernel refuses them."""
    if not settings.local.confine:
        return None
    found: Confinement = {"readable": sorted(_readable(settings)), "hidden": sorted(_hidden(settings))}
    if reason := _problem(found):
        raise ConfigurationError(
            f"The kernel does not let the service run repo2docker in namespaces of its own: {reason}. Without them a "
            "repository could read the service's credentials. Allow unprivileged user namespaces (for Ubuntu: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0; in a container: a seccomp profile that allows `unshare` and "
            "`mount`), or accept the risk with local.confine=false where you trust all repositories."
        )
    return found


def _readable(settings: Settings) -> set[str]:
    """Return the directories of Python and repo2docker, and the operator's."""
    packages = {*site.getsitepackages(), sys.prefix, sys.base_prefix, sys.exec_prefix}
    spec = importlib.util.find_spec("repo2docker")
    if spec is not None and spec.origin:
        packages.add(str(Path(spec.origin).parents[1]))
    # Directories that `.pth` files add; of all others on the path, some may be anywhere.
    packages.update(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    certificates = {value for name, value in os.environ.items() if _CERTIFICATES.fullmatch(name)}
    chosen = {str(path) for path in settings.local.readable_paths}
    return {os.path.abspath(path) for path in packages | certificates | chosen if os.path.exists(path)}


def _hidden(settings: Settings) -> Iterator[str]:
    """Yield the directories with credentials of registries."""
    yield os.path.expanduser("~/.docker")
    if settings.docker.config is not None:
        yield os.path.abspath(settings.docker.config)
    for tenant in settings.tenants.values():
        if tenant.docker_config is not None:
            yield os.path.abspath(tenant.docker_config)
    if path := os.environ.get("DOCKER_CONFIG"):
        yield os.path.abspath(path)


def _problem(found: Confinement) -> str:
    """Return why the kernel refuses the namespaces, or what is missing in them; an empty text if nothing is."""
    with tempfile.TemporaryDirectory(prefix="r2d-") as directory:
        root, home = Path(directory, "root"), Path(directory, "home")
        for path in (root, home, home / "tmp"):
            path.mkdir()
        trials = (
            ({"hidden": found["hidden"]}, ["true"]),
            ({"home": str(home), "readable": found["readable"]}, [sys.executable, "-c", _TRIAL]),
        )
        for view, command in trials:
            instructions = json.dumps({"root": str(root), **view})
            trial = [*BUILDER_COMMAND, "--confine", instructions, "--", *command]
            try:
                ended = subprocess.run(
                    trial, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                return f"a trial took longer than {_TRIAL_SECONDS} seconds"
            if ended.returncode != 0:
                return reason_of(root) or (ended.stdout + ended.stderr).strip()[-300:]
    return ""


def reason_of(root: Path) -> str:
    """Return the builder's reason for having started nothing, an empty text if there is none."""
    try:
        return (root / "unconfined").read_text("utf-8")
    except FileNotFoundError:
        return ""
