"""The consumer's image, made by the Dockerfile that users have.

`python -m tests.cluster.consumer_image OUT.tar` writes it as an archive that `docker load` and containerd read. Where
no image registry can be reached, its base image is made from Debian packages, and pip is given a directory of wheels:
that directory comes from the machine's own pip, which knows the index and the certificates to use.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.dev import engine
from deploy.dev.__main__ import down
from deploy.dev.machine import CHECKOUT, RUN, SYSTEM_PATH, Ledger, Unable, debian_root, run, say, timed

IMAGE: Final = "rabbit2docker.test/rabbit2docker:1"
BASE_IMAGE: Final = "rabbit2docker-dev/python:3"
PACKAGES: Final = ("ca-certificates", "git", "openssh-client", "python3", "python3-venv")
EXTRAS: Final = "kubernetes,hub"
"""As in the Dockerfile."""
LEFT_OUT: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
GLIBC: Final = (17, 28, 34)


def prepare() -> None:
    """Download what the image is made of where no image registry can be reached; raises Unable."""
    _wheels(_python_version(debian_root("consumer-base", PACKAGES)))


def make(archive: Path) -> None:
    """Build the image and write it to `archive`; raises Unable. An engine that is started for it is ended again."""
    ledger = Ledger()
    keep = bool(ledger.processes or ledger.containers)
    try:
        environment = {**os.environ, **engine.provide(ledger)}
        arguments = _from_packages(environment) if ledger.docker_host else []
        with timed(f"Building {IMAGE}"):
            engine.docker(environment, "build", "--tag", IMAGE, *arguments, str(CHECKOUT))
        archive.parent.mkdir(parents=True, exist_ok=True)
        new = archive.with_name(f"{archive.name}.new")
        engine.docker(environment, "save", "--output", str(new), IMAGE)
        new.rename(archive)
        say(f"{archive} has {archive.stat().st_size / 1e6:.0f} MB")
    finally:
        if not keep:
            down()


def _from_packages(environment: dict[str, str]) -> list[str]:
    """Return the build's arguments where only package registries can be reached; the build itself needs no network."""
    root = debian_root("consumer-base", PACKAGES)
    if not engine.docker(environment, "image", "ls", "--quiet", BASE_IMAGE):
        _import(root, environment)
    wheels = _wheels(_python_version(root))
    return [
        *("--build-arg", f"BASE_IMAGE={BASE_IMAGE}"),
        *("--build-context", f"wheels={wheels}"),
        *("--network", "none"),
    ]


def _import(root: Path, environment: dict[str, str]) -> None:
    with timed(f"Making the image {BASE_IMAGE}"):
        command = ["tar", "-C", str(root), "-c", *(f"--exclude=./{path}" for path in LEFT_OUT), "."]
        client = shutil.which("docker", path=f"{RUN / 'bin'}:{os.environ['PATH']}") or "docker"
        with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
            subprocess.run(
                [client, "import", "-c", f"ENV PATH={SYSTEM_PATH} LANG=C.UTF-8", "-", BASE_IMAGE],
                stdin=archive.stdout,
                stdout=subprocess.DEVNULL,
                env=environment,
                check=True,
            )
        if archive.returncode:
            raise Unable(f"{root} could not be packed.")


def _python_version(root: Path) -> str:
    """Return the version of Python in a Debian root, such as 3.13."""
    for path in sorted((root / "usr/bin").glob("python3.*")):
        if match := re.fullmatch(r"python(3\.\d+)", path.name):
            return match[1]
    raise Unable(f"{root} has no Python.")


def _wheels(python: str) -> Path:
    """Return a directory with everything that pip will ask for in an image with that Python."""
    wanted = [
        python,
        EXTRAS,
        *((CHECKOUT / name).read_text() for name in ("pyproject.toml", "constraints.txt")),
    ]
    directory = RUN / "wheels" / hashlib.sha256("\0".join(wanted).encode()).hexdigest()[:8]
    if directory.exists():
        return directory
    shutil.rmtree(directory.parent, ignore_errors=True)
    new = directory.with_suffix(".new")
    platforms = [f"manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC]
    tags = ["none", "abi3", f"cp{python.replace('.', '')}"]
    with timed("Downloading wheels"):
        run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", new),
                *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
                *(f"--abi={tag}" for tag in tags),
                *(f"--platform={name}" for name in platforms),
                *("--constraint", CHECKOUT / "constraints.txt"),
                f"{CHECKOUT}[{EXTRAS}]",
                "hatchling",
            ]
        )
    new.rename(directory)
    return directory


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.consumer_image", description=__doc__)
    parser.add_argument("archive", type=Path, help="where to write it, a .tar")
    arguments = parser.parse_args()
    try:
        make(arguments.archive)
    except Unable as problem:
        say(f"Cannot go on: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
