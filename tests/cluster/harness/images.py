"""The images of the cluster: one OCI archive, made from Debian and Python packages without any registry or engine."""

import hashlib
import io
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.dev.machine import CACHE, SYSTEM_PATH, debian_root, locked, run, timed
from deploy.dev.services import PACKAGES as SERVICE_PACKAGES

from tests.cluster.harness import programs
from tests.cluster.harness.layout import BIN, IMAGES

REPO2DOCKER = "2026.4.0"
BASE_PACKAGES = ("ca-certificates", "git", "python3", "python3-pip")
_APT = "apt-get -q update && apt-get -q install -y --no-install-recommends"
_DOCKER_API = f"{_APT} docker.io docker-cli iptables"
_REPO2DOCKER = (
    f"{_APT} docker-cli docker-buildx && "
    f"pip install -q --break-system-packages --no-cache-dir --root-user-action=ignore jupyter-repo2docker=={REPO2DOCKER}"
)
_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "var/lib/apt/lists")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"
_BLOCK = 1 << 20

# What apt and pip leave in these directories is no part of the image.
_IN_ROOT = """
set -e
mount -t overlay overlay -o lowerdir="$1",upperdir="$2",workdir="$2.work" "$2.merged"
cd "$2.merged"
printf '#!/bin/sh\\nexit 101\\n' > usr/sbin/policy-rc.d
chmod +x usr/sbin/policy-rc.d
mount -t proc proc proc
for d in tmp root run var/cache var/lib/apt/lists; do mount -t tmpfs tmpfs $d; done
mkdir -p var/cache/apt/archives/partial var/lib/apt/lists/partial
for f in etc/resolv.conf etc/ssl/certs; do mount --bind "$(readlink -f /$f)" $f; done
chroot . sh -c "$3"
rm usr/sbin/policy-rc.d
"""


@dataclass(frozen=True, slots=True)
class Image:
    """One image: directories that lie upon each other, and how its containers start."""

    name: str
    layers: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def provide() -> Path:
    """Return the archive with all images, making it where it is not in the cache."""
    wanted = "\0".join(
        (*BASE_PACKAGES, _DOCKER_API, _REPO2DOCKER, *_LEFT_OUT, str(programs.PROGRAMS[1].directory))
    )
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    archive = CACHE / f"cluster-images-{digest}.tar"
    with locked(CACHE / "cluster-images.lock"):
        if not archive.exists():
            with timed(f"Making the cluster's images (about a minute, kept in {CACHE})"):
                new = archive.with_suffix(".new")
                write_archive(new, _images())
                new.rename(archive)
    return archive


def _images() -> list[Image]:
    base = debian_root("cluster-base", BASE_PACKAGES)
    path = f"PATH={SYSTEM_PATH}"
    pause, busybox = CACHE / "cluster-pause", CACHE / "cluster-busybox"
    _make_pause(pause)
    _make_busybox(busybox)
    docker_api = layer("docker-api", base, _DOCKER_API)
    repo2docker = layer("repo2docker", base, _REPO2DOCKER)
    return [
        Image("pause:1", (pause,), {"Entrypoint": ["/pause"], "User": "65535:65535"}),
        Image("busybox:1", (busybox,), {"Env": ["PATH=/bin"], "Cmd": ["sh"]}),
        Image("docker-api:1", (base, docker_api), {"Env": [path], "Cmd": ["dockerd"]}),
        Image("repo2docker:1", (base, repo2docker), {"Env": [path, "LANG=C.UTF-8"]}),
    ]


def _make_pause(directory: Path) -> None:
    programs.provide("pause")
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(BIN / "pause", directory / "pause")


def busybox_root() -> Path:
    """Return the files of the image busybox, for images that are to hold a little more."""
    directory = CACHE / "cluster-busybox"
    if not directory.exists():
        _make_busybox(directory)
    return directory


def _make_busybox(directory: Path) -> None:
    busybox = debian_root("services", SERVICE_PACKAGES) / "bin/busybox"
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("bin", "etc", "root", "tmp"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    shutil.copy(busybox, directory / "bin/busybox")
    for name in run([busybox, "--list"]).stdout.split():
        if name != "busybox":
            (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")


def layer(name: str, base: Path, command: str) -> Path:
    """Return a directory with what a command changes in a root; made in a mount namespace, so no mount is left."""
    digest = hashlib.sha256(f"{base.name}\0{command}".encode()).hexdigest()[:8]
    layer = CACHE / f"cluster-{name}-{digest}"
    if layer.exists():
        return layer
    making = layer.with_name(f"{layer.name}.new")
    helpers = [making.with_name(f"{making.name}.{part}") for part in ("work", "merged")]
    for directory in (making, *helpers):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    with timed(f"Installing the packages of the image {name}"):
        run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", _IN_ROOT, "sh", base, making, command],
            env=_environment(),
        )
    for directory in helpers:
        shutil.rmtree(directory)
    making.rename(layer)
    return layer


def _environment() -> dict[str, str]:
    """Return what apt and pip in the root have to know of this machine."""
    known = {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy") or name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT")
    }
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if index:
        known.setdefault("PIP_INDEX_URL", index)
    known.setdefault("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    return {
        **known,
        "PATH": SYSTEM_PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }


class _Digesting(io.RawIOBase):
    """A file that knows the digest of what was written."""

    def __init__(self, target: io.BufferedWriter) -> None:
        self._target = target
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._target.write(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def write_archive(path: Path, images: list[Image]) -> None:
    """Write an OCI archive that `ctr images import` and `docker load` read; images share the layers they have in common."""
    layers: dict[Path, dict[str, Any]] = {}
    manifests = []
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        for image in images:
            for directory in image.layers:
                if directory not in layers:
                    layers[directory] = _add_layer(archive, directory, path.with_suffix(".layer"))
            manifests.append(_add_image(archive, image, [layers[directory] for directory in image.layers]))
        index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": manifests}
        _add(archive, "index.json", json.dumps(index).encode())


def _add_image(archive: tarfile.TarFile, image: Image, layers: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"architecture": _MACHINES.get(platform.machine(), platform.machine()), "os": "linux"}
    diffs = [layer["digest"] for layer in layers]
    config = {**machine, "config": dict(image.config), "rootfs": {"type": "layers", "diff_ids": diffs}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _add_blob(archive, f"{_OCI}.config.v1+json", config),
        "layers": layers,
    }
    described = _add_blob(archive, f"{_OCI}.manifest.v1+json", manifest)
    annotations = {"io.containerd.image.name": IMAGES + image.name, "org.opencontainers.image.ref.name": "1"}
    return {**described, "platform": machine, "annotations": annotations}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _add_blob(archive: tarfile.TarFile, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    _add(archive, f"blobs/sha256/{digest}", data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _add_layer(archive: tarfile.TarFile, directory: Path, scratch: Path) -> dict[str, Any]:
    """Pack a directory. Nothing is compressed: the archive is read once by each node of the same machine."""
    with scratch.open("wb") as file:
        target = _Digesting(file)
        with tarfile.open(fileobj=target, mode="w|", bufsize=_BLOCK, format=tarfile.PAX_FORMAT) as layer:
            for path in _walk(directory):
                _pack(layer, path, str(path.relative_to(directory)))
    digest, size = target.digest(), scratch.stat().st_size
    archive.add(scratch, f"blobs/sha256/{digest}")
    scratch.unlink()
    return {"mediaType": f"{_OCI}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}


def _walk(directory: Path) -> Iterator[Path]:
    left_out = {directory / name for name in _LEFT_OUT}
    for top, directories, files in os.walk(directory):
        directories.sort()
        for name in sorted([*directories, *files]):
            if (Path(top) / name).parent not in left_out:
                yield Path(top) / name
        if Path(top) in left_out:
            directories.clear()


def _pack(layer: tarfile.TarFile, path: Path, name: str) -> None:
    """Add one file. What overlayfs notes as removed (a device 0/0, an attribute) is said in the words of images."""
    found = path.lstat()
    if stat.S_ISCHR(found.st_mode) and not found.st_rdev:
        _add(layer, str(Path(name).with_name(f".wh.{path.name}")), b"")
    elif not stat.S_ISSOCK(found.st_mode):
        layer.add(path, name, recursive=False)
        if stat.S_ISDIR(found.st_mode) and _attribute(path, "trusted.overlay.opaque") == b"y":
            _add(layer, f"{name}/.wh..wh..opq", b"")


def _attribute(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""
