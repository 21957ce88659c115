"""The images of a JupyterHub on the cluster: hub, proxy, and a base for the images of its users.

They are put together from Debian, Python and npm packages like the cluster's other images. What they are made of is
kept in the cache; this checkout's own code is added when an archive is written.
"""

import hashlib
import platform
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Final

from deploy.dev.machine import CACHE, CHECKOUT, SYSTEM_PATH, debian_root, locked, need_packages, run, timed

from tests.cluster.consumer_image import GLIBC
from tests.cluster.harness.images import BASE_PACKAGES, Image, layer, write_archive

HUB, PROXY, PYTHON = "k8s-hub:1", "configurable-http-proxy:1", "python:1"
_PROXY_PACKAGE: Final = "configurable-http-proxy@5.3.0"
_HUB_PACKAGES: Final = ("jupyterhub", "jupyterhub-kubespawner", "jupyterhub-fancy-profiles")
_USER_PACKAGES: Final = ("jupyterhub", "jupyter-server")
_APT: Final = "apt-get -q update && apt-get -q install -y --no-install-recommends"
_OURS: Final = {"consumer": "rabbit2docker", "schemas": "rabbit2docker_schemas"}
_PLACE: Final = "usr/local/lib/python3.13/dist-packages"
_PYTHON_VERSION: Final = "3.13"


def prepare() -> None:
    """Download what the images and their test are made of, as far as the cache lacks it; raises Unable."""
    need_packages({"chromium": "chromium"}, "A test with a browser")
    _parts()
    wheels()


def make(archive: Path) -> None:
    """Write the images, with this checkout's code beside the hub as `pip install rabbit2docker` puts it; raises Unable."""
    base, hub, node, proxy = _parts()
    ours = _our_code(archive.with_suffix(".ours"))
    path = f"PATH={SYSTEM_PATH}"
    images = [
        Image(HUB, (base, hub, ours), {"Env": [path, "LANG=C.UTF-8"], "Cmd": ["jupyterhub"]}),
        Image(PROXY, (base, node, proxy), {"Env": [path], "Entrypoint": ["configurable-http-proxy"]}),
        Image(PYTHON, (base,), {"Env": [path, "LANG=C.UTF-8"]}),
    ]
    files = (file for file in sorted(ours.rglob("*")) if file.is_file())
    content = _digest(
        *map(str, (base, hub, node, proxy)),
        *(f"{file} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files),
    )
    mark = archive.with_suffix(".content")
    if archive.exists() and mark.exists() and mark.read_text() == content:
        return
    with timed("Making the images of a JupyterHub"):
        write_archive(archive, images)
    mark.write_text(content)


def _our_code(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    for room, package in _OURS.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / room / package, directory / _PLACE / package, ignore=ignored)
    return directory


def wheels() -> Path:
    """Return a directory with everything that pip installs for a user's server; raises Unable."""
    wanted = _pinned(_USER_PACKAGES)
    directory = CACHE / f"cluster-user-wheels-{_digest(*wanted, _constraints())}"
    with locked(CACHE / "cluster-hub.lock"):
        if not directory.exists():
            new = directory.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            with timed("Downloading wheels for users' servers"):
                _download(wanted, new)
            new.rename(directory)
    return directory


def _download(wanted: list[str], directory: Path) -> None:
    platforms = [f"manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC]
    tags = ("none", "abi3", f"cp{_PYTHON_VERSION.replace('.', '')}")
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", directory),
            *("--only-binary=:all:", "--implementation=cp", f"--python-version={_PYTHON_VERSION}"),
            *(f"--abi={tag}" for tag in tags),
            *(f"--platform={name}" for name in platforms),
            *("--constraint", str(CHECKOUT / "constraints.txt"), *wanted),
        ]
    )


def _parts() -> tuple[Path, Path, Path, Path]:
    """Return the layers: the base, and what is upon it of the hub, of Node and of the proxy."""
    base = debian_root("cluster-base", BASE_PACKAGES)
    with locked(CACHE / "cluster-hub.lock"):
        hub = layer("k8s-hub", base, _hub_command())
        node = layer("node", base, f"{_APT} nodejs")
        return base, hub, node, _proxy()


def _hub_command() -> str:
    own = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = _pinned([*_HUB_PACKAGES, *(re.split(r"[<>=\[]", each)[0] for each in own)])
    pip = "pip install -q --break-system-packages --no-cache-dir --root-user-action=ignore"
    # Debian's own packages cannot be uninstalled for a newer version.
    pip += " --ignore-installed"
    return f"cat > /tmp/constraints.txt <<'END'\n{_constraints()}\nEND\n{pip} -c /tmp/constraints.txt {' '.join(packages)}"


def _proxy() -> Path:
    """Return a layer with the proxy, which is JavaScript alone, and its command."""
    directory = CACHE / f"cluster-proxy-{_digest(_PROXY_PACKAGE)}"
    if directory.exists():
        return directory
    need_packages({"npm": "npm"}, "The proxy of JupyterHub")
    new = directory.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    place = new / "opt/proxy"
    place.mkdir(parents=True)
    with timed("Installing JupyterHub's proxy"):
        run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, _PROXY_PACKAGE])
    command = new / "usr/local/bin/configurable-http-proxy"
    command.parent.mkdir(parents=True)
    command.symlink_to("/opt/proxy/node_modules/.bin/configurable-http-proxy")
    new.rename(directory)
    return directory


def _constraints() -> str:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    return "\n".join(line for line in lines if "==" in line)


def _pinned(packages: list[str] | tuple[str, ...]) -> list[str]:
    """Return the packages with the versions of the tests, where those have one."""
    versions = dict(line.split("==", 1) for line in _constraints().splitlines())
    return [f"{name}=={versions[name]}" if name in versions else name for name in packages]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
