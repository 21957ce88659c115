"""Docker Compose, and the buildx that it needs: the machine's own, or compiled once from Go modules."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from deploy.dev.machine import CACHE, SYSTEM_PATH, Unable, locked, run, timed

COMPOSE: Final = "2.40.3"
BUILDX: Final = "0.29.1"
"""Compose needs 0.17 or newer, Debian 13 has 0.13."""
_MODULES: Final = {
    "docker-compose": (f"github.com/docker/compose/v2@v{COMPOSE}", "cmd", "v2/internal"),
    "docker-buildx": (f"github.com/docker/buildx@v{BUILDX}", "cmd/buildx", "version"),
}
"""Module, package below it, and the package that has its version."""


def provide(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Return the environment in which `docker compose` works; `directory` is for a configuration of the client."""
    shown = subprocess.run(
        ["docker", "compose", "version"], capture_output=True, env=environment, check=False
    )
    if shown.returncode == 0:
        return dict(environment)
    plugins = CACHE / "compose-plugins"
    for name in _MODULES:
        _provide(name, plugins / f"{name}-{COMPOSE}-{BUILDX}")
    (directory / "plugins").mkdir(parents=True)
    for name in _MODULES:
        (directory / "plugins" / name).symlink_to(plugins / f"{name}-{COMPOSE}-{BUILDX}")
    config = {"cliPluginsExtraDirs": [str(directory / "plugins")]}
    (directory / "config.json").write_text(json.dumps(config))
    return {**environment, "DOCKER_CONFIG": str(directory)}


def _provide(name: str, program: Path) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "compose-plugins.lock"):
        if not program.exists():
            with timed(
                f"Compiling {name} from Go modules (about 4 minutes with empty caches, kept in {CACHE})"
            ):
                _compile(name, program)


def _compile(name: str, program: Path) -> None:
    """Compile in a copy: `go install` refuses modules whose go.mod excludes versions."""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:{SYSTEM_PATH}")
    if go is None:
        raise Unable("`docker compose` is missing, and compiling it needs Go 1.24 or newer. Install either.")
    module, package, versioned = _MODULES[name]
    path, _, version = module.partition("@")
    downloaded = json.loads(run([go, "mod", "download", "-json", module], cwd="/").stdout)
    flags = f"-s -w -X {path.removesuffix('/v2')}/{versioned}.Version={version}"
    with TemporaryDirectory(dir=program.parent, prefix=".making-", ignore_cleanup_errors=True) as made:
        copy = Path(made) / "source"
        run(["cp", "-r", "--no-preserve=mode", downloaded["Dir"], copy])
        command = ["nice", go, "build", "-C", str(copy), "-trimpath", "-buildvcs=false", "-ldflags", flags]
        scratch = Path(made) / "scratch"
        scratch.mkdir()
        run(
            [*command, "-o", f"{made}/program", f"./{package}"],
            env={**os.environ, "CGO_ENABLED": "0", "GOTMPDIR": str(scratch)},
        )
        (Path(made) / "program").rename(program)
