"""The programs of the cluster, compiled once from Go modules and kept in the cache."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.dev.machine import CACHE, SYSTEM_PATH, Unable, locked, run, timed

from tests.cluster.harness.layout import BIN, SOURCES

KUBERNETES = "1.36.3"
KUBE_NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
_STRIPPED = "-s -w"
_VERSION = "k8s.io/component-base/version.git"


@dataclass(frozen=True, slots=True)
class Program:
    """The programs that one call of `go` compiles."""

    name: str
    version: str
    package: str
    """A package of a module, or a directory of this one's sources."""
    makes: tuple[str, ...]
    flags: str = _STRIPPED
    tags: str = ""
    seconds: int = 60

    @property
    def directory(self) -> Path:
        """Return where it is kept; another one whenever anything that goes into it differs."""
        parts = [self.package, self.version, self.flags, self.tags]
        if self.is_ours:
            files = (SOURCES / "go.mod", *sorted((SOURCES / self.package).glob("*.go")))
            parts += [file.read_text() for file in files]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
        return CACHE / "programs" / f"{self.name}-{self.version}-{digest}"

    @property
    def is_ours(self) -> bool:
        """Return whether its main function stands beside this file."""
        return "/" not in self.package


PROGRAMS = (
    Program(
        "kube",
        KUBERNETES,
        "kube",
        ("kube",),
        # Without these Kubernetes takes itself for an unknown version, and clients refuse that.
        flags=f"{_STRIPPED} -X {_VERSION}Version=v{KUBERNETES} -X {_VERSION}Major=1 -X {_VERSION}Minor=36",
        seconds=300,
    ),
    Program("pause", "1", "pause", ("pause",), seconds=5),
    Program(
        "containerd",
        "2.4.2",
        "github.com/containerd/containerd/v2/cmd",
        ("containerd", "containerd-shim-runc-v2", "ctr"),
        flags=f"{_STRIPPED} -X github.com/containerd/containerd/v2/version.Version=2.4.2",
        tags="no_btrfs no_zfs no_devmapper",
    ),
    Program("helm", "3.22.0", "helm.sh/helm/v3/cmd", ("helm",)),
    Program(
        "kube-router", "2.1.0", "github.com/cloudnativelabs/kube-router/v2/cmd", ("kube-router",), seconds=240
    ),
    Program("kwok", "0.8.0", "sigs.k8s.io/kwok/cmd", ("kwok",)),
)
_KWOK = PROGRAMS[-1]
_STAGES = "kwok-stages.yaml"
_STAGE_FILES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)


def provide(*names: str) -> None:
    """Compile what is missing of the named programs, or all, and link them into the directory of programs."""
    chosen = [item for item in PROGRAMS if not names or item.name in names]
    with locked(CACHE / "programs.lock"):
        for program in chosen:
            if not all((program.directory / name).exists() for name in _results(program)):
                _compile(program)
    BIN.mkdir(parents=True, exist_ok=True)
    for program in chosen:
        for name in _results(program):
            _link(BIN / name, program.directory / name)
        if program.name == "kube":
            for name in KUBE_NAMES:
                _link(BIN / name, program.directory / "kube")


def stages() -> Path:
    """Return the file from which kwok knows the stages of its nodes and pods."""
    return _KWOK.directory / _STAGES


def _results(program: Program) -> tuple[str, ...]:
    return (*program.makes, _STAGES) if program is _KWOK else program.makes


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink() or link.readlink() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _compile(program: Program) -> None:
    go = _go()
    what = f"Compiling {program.name} {program.version} from Go modules"
    often = f"{program.seconds // 60} minutes" if program.seconds > 90 else f"{program.seconds} s"
    with timed(f"{what} (about {often} with empty caches, kept in {CACHE})"), _arriving(program) as directory:
        build = ["-trimpath", "-buildvcs=false", "-ldflags", program.flags, "-tags", program.tags]
        if program.is_ours:
            command = ["build", "-C", str(SOURCES), "-mod=readonly", *build]
            command += ["-o", str(directory), f"./{program.package}"]
        else:
            packages = [f"{program.package}/{name}@v{program.version}" for name in program.makes]
            command = ["install", *build, *packages]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(directory)}
        # A killed `go` leaves gigabytes in its own directory of this kind.
        with TemporaryDirectory(dir=directory.parent, prefix=".go-", ignore_cleanup_errors=True) as scratch:
            run(["nice", go, *command], env={**environment, "GOTMPDIR": scratch})
        if program is _KWOK:
            (directory / _STAGES).write_text(_join_stages(go))


@contextmanager
def _arriving(program: Program) -> Iterator[Path]:
    """Yield a directory that becomes the program's own in one step, when everything in it is there."""
    parent = program.directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=".making-", ignore_cleanup_errors=True) as made:
        yield Path(made)
        shutil.rmtree(program.directory, ignore_errors=True)
        Path(made).rename(program.directory)
        program.directory.chmod(0o755)


def _join_stages(go: str) -> str:
    module = f"{_KWOK.package.removesuffix('/cmd')}@v{_KWOK.version}"
    downloaded = json.loads(run([go, "mod", "download", "-json", module], cwd="/").stdout)
    directory = Path(downloaded["Dir"]) / "kustomize" / "stage"
    return "\n---\n".join((directory / file).read_text() for file in _STAGE_FILES)


def _go() -> str:
    """Return the path of `go`; raises Unable when it is missing or too old to fetch a newer one by itself."""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:{SYSTEM_PATH}")
    needed = re.search(r"^go (\S+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert needed is not None
    if go is not None:
        shown = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"go(\d+)\.(\d+)", shown)
        if version and (int(version[1]), int(version[2])) >= (1, 21):
            return go
    raise Unable(
        f"Compiling Kubernetes needs Go {needed[1]} on the PATH ({go or 'there is none'}); any from 1.21 on fetches that "
        "version by itself. Debian 12 has none that is new enough. Or set KUBECONFIG to a cluster that exists."
    )
