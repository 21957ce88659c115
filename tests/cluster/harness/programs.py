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
    installs: bool = True
    """Whether `go install` takes the packages: it refuses those of a module whose go.mod replaces others."""
    manifests: tuple[str, ...] = ()
    """Files of the module, in YAML, that are kept beside the programs as one."""
    manifest: str = ""
    """The name of that one."""

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

    @property
    def module(self) -> str:
        """Return the module of the packages, with its version, as `go` names it."""
        return f"{self.package.removesuffix('/cmd')}@v{self.version}"

    @property
    def results(self) -> tuple[str, ...]:
        """Return the names of all files that are kept."""
        return (*self.makes, self.manifest) if self.manifest else self.makes


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
    Program(
        "kwok",
        "0.8.0",
        "sigs.k8s.io/kwok/cmd",
        ("kwok",),
        manifests=(
            "kustomize/stage/node/fast/node-initialize.yaml",
            "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
            "kustomize/stage/pod/fast/pod-ready.yaml",
            "kustomize/stage/pod/fast/pod-complete.yaml",
            "kustomize/stage/pod/fast/pod-delete.yaml",
        ),
        manifest="kwok-stages.yaml",
    ),
)
_KWOK = PROGRAMS[-1]
_KEDA = "2.21.0"
KEDA = Program(
    "keda",
    _KEDA,
    "github.com/kedacore/keda/v2/cmd",
    ("keda-operator", "keda-adapter"),
    flags=f"{_STRIPPED} -X github.com/kedacore/keda/v2/version.Version={_KEDA}",
    seconds=900,
    installs=False,
    manifests=tuple(
        f"config/crd/bases/{name}.yaml"
        for name in (
            "eventing.keda.sh_cloudeventsources",
            "eventing.keda.sh_clustercloudeventsources",
            "keda.sh_clustertriggerauthentications",
            "keda.sh_scaledjobs",
            "keda.sh_scaledobjects",
            "keda.sh_triggerauthentications",
        )
    ),
    manifest="keda-crds.yaml",
)
"""Compiled for its own tests alone: it takes longer than everything else together."""


def provide(*names: str) -> None:
    """Compile what is missing of the named programs, or of all that each cluster needs, and link them to one place."""
    chosen = [item for item in (*PROGRAMS, KEDA) if (item.name in names if names else item is not KEDA)]
    with locked(CACHE / "programs.lock"):
        for program in chosen:
            if not all((program.directory / name).exists() for name in program.results):
                _compile(program)
    BIN.mkdir(parents=True, exist_ok=True)
    for program in chosen:
        for name in program.results:
            _link(BIN / name, program.directory / name)
        if program.name == "kube":
            for name in KUBE_NAMES:
                _link(BIN / name, program.directory / "kube")


def stages() -> Path:
    """Return the file from which kwok knows the stages of its nodes and pods."""
    return _KWOK.directory / _KWOK.manifest


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink() or link.readlink() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _compile(program: Program) -> None:
    go = _go()
    what = f"Compiling {program.name} {program.version} from Go modules"
    often = f"{program.seconds // 60} minutes" if program.seconds > 90 else f"{program.seconds} s"
    with timed(f"{what} (about {often} with empty caches, kept in {CACHE})"), _arriving(program) as directory:
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(directory)}
        # A killed `go` leaves gigabytes in its own directory of this kind.
        with TemporaryDirectory(dir=directory.parent, prefix=".go-", ignore_cleanup_errors=True) as scratch:
            for command in _commands(program, go, directory):
                run(["nice", go, *command], env={**environment, "GOTMPDIR": scratch})
        if program.manifest:
            (directory / program.manifest).write_text(_join_manifests(program, go))


def _commands(program: Program, go: str, directory: Path) -> Iterator[list[str]]:
    """Yield the arguments of `go` that compile a program into a directory."""
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", program.flags, "-tags", program.tags]
    if program.is_ours:
        build = ["build", "-C", str(SOURCES), "-mod=readonly", *flags]
        yield [*build, "-o", str(directory), f"./{program.package}"]
    elif program.installs:
        yield ["install", *flags, *(f"{program.package}/{name}@v{program.version}" for name in program.makes)]
    else:
        build = ["build", "-C", str(_sources(program, go)), "-mod=readonly", *flags]
        for name in program.makes:
            package = name.removeprefix(f"{program.name}-")
            yield [*build, "-o", str(directory / name), f"./cmd/{package}"]


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


def _join_manifests(program: Program, go: str) -> str:
    directory = _sources(program, go)
    return "\n---\n".join((directory / file).read_text() for file in program.manifests)


def _sources(program: Program, go: str) -> Path:
    """Return the directory of a program's module, which `go` downloads."""
    downloaded = json.loads(run([go, "mod", "download", "-json", program.module], cwd="/").stdout)
    return Path(downloaded["Dir"])


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
