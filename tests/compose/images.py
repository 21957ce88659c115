"""The images that compose.yaml and the Dockerfile name, made from packages in an engine that reaches no registry."""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from deploy.dev import engine, machine
from deploy.dev.machine import CACHE, CHECKOUT, Ledger, debian_root, locked, run, timed
from deploy.dev.services import RABBITMQ_IMAGE, REGISTRY_IMAGE, Services

BASE_PACKAGES: Final = ("ca-certificates", "git", "openssh-client", "python3", "python3-venv")
_CLIENT: Final = {
    "usr/bin/docker": "usr/local/bin/docker",
    "usr/libexec/docker/cli-plugins/docker-buildx": "usr/local/libexec/docker/cli-plugins/docker-buildx",
}
"""Places in Debian, and in the image of the client."""
_BUILD_TOOLS: Final = ("pip", "hatchling")


def download() -> Path:
    """Get what needs a network into the cache, and return the directory with Python packages."""
    engine.engine_root()
    return _wheels(debian_root("compose-base", BASE_PACKAGES))


def provide(ledger: Ledger, environment: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Make the images under their `names`, and those that builds need."""
    services = Services(ledger, dict(environment))
    services.provide_images()
    base = debian_root("compose-base", BASE_PACKAGES)
    services.import_image(names["python"], base, (f"ENV LANG=C.UTF-8 PATH={machine.SYSTEM_PATH}",))
    _import_client(services, names["docker"])
    services.docker("tag", RABBITMQ_IMAGE, names["rabbitmq"])
    services.docker("tag", REGISTRY_IMAGE, names["registry"])


def _import_client(services: Services, name: str) -> None:
    root = engine.engine_root()
    with TemporaryDirectory() as directory:
        for there, here in _CLIENT.items():
            (Path(directory) / here).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / there, Path(directory) / here)
        services.import_image(name, Path(directory), ())


def _wheels(base: Path) -> Path:
    """Return a directory with the Python packages of the image, for the Python of its base."""
    python = next((base / "usr/bin").glob("python3.[0-9]*")).name.removeprefix("python")
    wanted = (CHECKOUT / "pyproject.toml").read_text() + (CHECKOUT / "constraints.txt").read_text() + python
    directory = CACHE / f"compose-wheels-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    with locked(CACHE / "compose-wheels.lock"):
        if not directory.exists():
            new = directory.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            with timed(f"Downloading the Python packages of the image (kept in {CACHE})"):
                chosen = ["--python-version", python, "--only-binary=:all:", "--dest", str(new)]
                options = ["--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt"]
                command = [sys.executable, "-m", "pip", "download", *options, *chosen]
                run([*command, ".[local,hub]", *_BUILD_TOOLS], cwd=CHECKOUT)
            new.rename(directory)
    return directory
