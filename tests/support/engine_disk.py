"""A Docker engine on a small disk, builds on it, and what cleans it."""

import json
import os
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from deploy.dev import machine
from deploy.dev.engine import MadeEngine

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.executors import provenance
from rabbit2docker.settings import ExecutorKind, Settings
from tests.corpus.record import own_engine
from tests.support import programs
from tests.support.disks import fill
from tests.support.ports import free_port
from tests.support.repositories import BASE_IMAGE, skip_without_services, tools_path
from tests.support.waiting import eventually_blocking

MEGABYTE = 1 << 20
# In the place of repo2docker, whose own work takes longer than the build: it asks for the same build.
_SCRIPT = """
echo '{{"message": "Building", "phase": "building"}}'
{build} || exit 1
touch {directory}/built
until [ -e {directory}/go ]; do sleep 0.1; done
"""


def origin(image: str) -> dict[str, str]:
    """Return the labels of an image of this service."""
    return {provenance.BUILD_ID: "0-1", provenance.IMAGE: image}


def _filling(size: int) -> str:
    """Return a step that no other build has; what it writes is packed quickly for a push."""
    name = uuid.uuid4().hex
    # A disk that is full for some milliseconds only may go unseen.
    write = f"dd if=/dev/zero bs=4096 count={size // 4096}"
    return f"{{ echo {name}; {write}; }} > /{name} || {{ sleep 1; exit 1; }}"


class SmallEngine:
    """An engine whose disk is small."""

    def __init__(self, made: MadeEngine, directory: Path) -> None:
        self.made = made
        self.directory = directory
        self.leases = directory / "leases"
        self.client = docker.DockerClient(base_url=made.host, timeout=180)

    @property
    def disk(self) -> Path:
        """Return the directory of its data, which is a disk of its own."""
        return self.made.directory / "data"

    def settings(self, **limits: Any) -> Settings:
        """Return settings for this engine with limits for its disk."""
        return Settings.model_validate(
            {
                "executor": ExecutorKind.LOCAL,
                "docker": {"host": self.made.host},
                "engine": {"disk": {"leases": self.leases, **limits}},
            }
        )

    def names(self) -> set[str]:
        """Return the names of the images that it has."""
        # Not `images.list()`, which then asks for each image: one that a cleaning removes in the meantime is an error there.
        while True:
            # With containerd's store it is an error of the list as well.
            with suppress(docker.errors.NotFound):
                return {tag for image in self.client.api.images() for tag in image["RepoTags"] or ()}

    def make(
        self, name: str, size: int = 0, *, base: str = BASE_IMAGE, labels: Mapping[str, str] | None = None
    ) -> None:
        """Build an image as others do."""
        text = f"FROM {base}\nRUN {_filling(size)}\n"
        given = [part for label, value in (labels or {}).items() for part in ("--label", f"{label}={value}")]
        command = ["docker", "buildx", "build", "--quiet", "--load", "--tag", name, *given, "-"]
        done = subprocess.run(command, input=text.encode(), env=self.environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    def make_ours(self, size: int) -> str:
        """Build an image as this service does, without the time that it takes; return its name."""
        name = f"ours/{uuid.uuid4().hex}:1"
        self.make(name, size, labels=origin(name))
        return name

    def fill(self, leave: int) -> Path:
        """Fill the disk but for so many bytes; return the file to remove."""
        ballast = fill(self.disk)
        os.truncate(ballast, ballast.stat().st_size - leave)
        return ballast

    def docker(self, *arguments: str) -> str:
        """Run the engine's client and return what it has printed."""
        command = ["docker", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, check=True, text=True
        ).stdout

    def prune(self) -> None:
        """Remove all that is not in use at the moment, as careless timers do."""
        for what in ("system", "builder", "image"):
            self.docker(what, "prune", "--all", "--force")

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the engine's client."""
        return {**os.environ, "PATH": tools_path(), "DOCKER_HOST": self.made.host}


class SmallBuild:
    """The builder on a small engine, as a process; waits between build and push if it is `held`.

    With `is_there`, it finds the image in the engine and builds nothing.
    """

    def __init__(
        self,
        engine: SmallEngine,
        size: int,
        *,
        push: bool = False,
        held: bool = False,
        image: str = "",
        is_there: bool = False,
        base: str = BASE_IMAGE,
    ) -> None:
        prefix = os.environ["RABBIT2DOCKER_IMAGES__PREFIX"]
        self.directory = engine.directory / uuid.uuid4().hex
        self.directory.mkdir()
        self.image = image or f"{prefix}disk-{uuid.uuid4().hex}:1"
        (self.directory / "context").mkdir()
        text = f"FROM {base}\nRUN {_filling(size)}\n"
        (self.directory / "context" / "Dockerfile").write_text(text)
        command = f"docker buildx build --progress plain --load --tag {self.image} {self.directory}/context"
        script = _SCRIPT.format(build="true" if is_there else command, directory=self.directory)
        spec = {
            "repo_url": "https://example.org/repo",
            "image": self.image,
            "provenance": origin(self.image),
            "repo2docker_command": ["sh", "-c", script],
            "push": push,
            "leases": str(engine.leases),
            "workdir": str(self.directory / "work"),
        }
        (self.directory / "spec.json").write_text(json.dumps(spec))
        if not held:
            self.let_go()
        files = ("--spec", "spec.json"), ("--log", "log.jsonl"), ("--result", "result.json")
        arguments = [part for option, name in files for part in (option, str(self.directory / name))]
        self.process = subprocess.Popen(
            [*BUILDER_COMMAND, *arguments], env=engine.environment, start_new_session=True
        )

    def until_built(self) -> None:
        """Wait until the engine has the image."""
        eventually_blocking(lambda: (self.directory / "built").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.texts()

    def let_go(self) -> None:
        """Let it push."""
        (self.directory / "go").touch()

    def kill(self) -> None:
        """Give it no chance to do anything."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self) -> dict[str, Any]:
        """Return the result once it has ended."""
        self.let_go()
        self.process.wait(300)
        return dict(json.loads((self.directory / "result.json").read_text()))

    def texts(self) -> list[str]:
        """Return what the builder has written."""
        lines = (self.directory / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]


@contextmanager
def small_engine(
    size: str, directory: Path, *, is_loop: bool = False, store: str = ""
) -> Iterator[SmallEngine]:
    """Run an engine with a store of images on a disk of `size`, in memory or in a file; skips the test where that cannot be done."""
    skip_without_services()
    if not machine.is_debian_root() or not list(machine.CACHE.glob("docker-engine-*/.complete")):
        pytest.skip("a separate engine needs Debian, root, and `make up`")
    with own_engine(size, is_quota=False, is_loop=is_loop, store=store) as made:
        engine = SmallEngine(made, directory)
        try:
            yield engine
        finally:
            engine.client.close()


class CleaningProgram:
    """`rabbit2docker engine clean --watch` as a process."""

    def __init__(self, engine: SmallEngine, limits: Mapping[str, object]) -> None:
        self._engine = engine
        self._bind = f"127.0.0.1:{free_port()}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBIT2DOCKER_")}
        own = {f"RABBIT2DOCKER_ENGINE__DISK__{name.upper()}": str(value) for name, value in limits.items()}
        own |= {
            "RABBIT2DOCKER_DOCKER__HOST": engine.made.host,
            "RABBIT2DOCKER_ENGINE__DISK__LEASES": str(engine.leases),
            "RABBIT2DOCKER_HTTP__BIND": self._bind,
        }
        command = [str(programs.COMMAND), "engine", "clean", "--watch"]
        self.process = subprocess.Popen(command, env={**inherited, **own})

    def metrics(self) -> dict[str, float]:
        """Return its metrics by series."""
        with urllib.request.urlopen(f"http://{self._bind}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines)
            if name[0] != "#"
        }

    def is_ready(self) -> bool:
        """Return whether it serves and has looked at the disk."""
        assert self.process.poll() is None
        try:
            return 'rabbit2docker_engine_disk_bytes{kind="images"}' in self.metrics()
        except OSError:
            return False

    def until_removed(self, image: str) -> None:
        """Wait until the engine no longer has the image."""
        eventually_blocking(lambda: image not in self._engine.names())


@contextmanager
def cleaning(engine: SmallEngine, **limits: object) -> Iterator[CleaningProgram]:
    """Run what cleans the engine, with these limits."""
    program = CleaningProgram(engine, limits)
    try:
        eventually_blocking(program.is_ready)
        yield program
    finally:
        program.process.terminate()
        program.process.wait(60)
