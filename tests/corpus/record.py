"""`python -m tests.corpus.record [NAME …]`: run cases for real and keep what was printed.

Without names it records the cases that have no recording yet, with `--all` every case.

It needs the services of `make up`, with their addresses in the environment. A row of cases.toml describes the case:

- `kind = "build"` runs repo2docker on the folder's `repository`, or on `url` with its content provider `provider`;
  `"push"` pushes a small image.
- `registry = [rules]` starts a registry with faults (see registry.py), which can also stand for an archive of data;
  `@REGISTRY@` in a file, the `url` or a rule is its address, and it holds the base image as `@REGISTRY@/base:1` and `/index:1` for another platform. `@BASE@` is the base image of the tests.
- `engine = "12m"` runs on a Docker engine whose disk is that small. It has the base image, except beside a
  registry: there, all layers have to be pulled.
- `quota = true` makes that disk larger, with a quota of that size; `memory = 30` limits the megabytes of a step.
- `environment` has more variables for repo2docker.
- `kill` ends the docker `client` or the `engine` once a step has printed `READY`; `cut` ends the connection between them,
  again and again until the client says this. `lose = true` removes the engine's layers before the build; `fill = 3` leaves its disk so many megabytes.
- `own_address = true` has the registry on an address of this machine other than loopback, where engines want encryption;
  with `tls = true`, it has a certificate of its own.
- `copies` generates a Dockerfile with so many steps, `size` a file of so many megabytes.

A file `NAME.latin-1`, `NAME.utf-16` or `NAME.utf-8` is written as NAME in that encoding; the last one is for files that
tools of this checkout would stumble over.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from deploy.dev import engine as engines
from deploy.dev.engine import MadeEngine
from deploy.dev.machine import Ledger

from tests.corpus import CORPUS, NAMED, cases, output_of
from tests.corpus.engine_line import engine_line
from tests.corpus.registry import Registry, Rule, registry
from tests.support.certificates import write_certificates
from tests.support.repositories import BASE_IMAGE, tools_path

INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MAX_CUTS: Final = 40
"""Tries for one of the errors that a lost connection leads to, as chance has it."""
ENCODINGS: Final = (".latin-1", ".utf-8", ".utf-16")


class Site:
    """The engine and the registry that a case runs on."""

    def __init__(self, case: dict[str, Any], stack: ExitStack, directory: Path) -> None:
        self.directory, self.case, self.stack = directory, case, stack
        self.environment = {
            **os.environ,
            "PATH": tools_path(),
            "BUILDKIT_PROGRESS": "plain",
            "TMPDIR": str(directory),
        }
        self.engine: MadeEngine | None = None
        rules = case.get("registry")
        self.registry: Registry | None = None
        if rules is not None:
            host = own_address() if case.get("own_address") else "127.0.0.1"
            self.registry = stack.enter_context(registry(host=host))
            if case.get("tls"):
                encrypt(self.registry, directory)
        if case.get("engine"):
            self.engine = stack.enter_context(own_engine(case["engine"], is_quota=case.get("quota", False)))
            self.environment["DOCKER_HOST"] = self.engine.host
        if case.get("cut"):
            self.line = stack.enter_context(engine_line(directory, self.environment))
        if self.registry and rules is not None and not case.get("own_address"):
            self._keep_base_image(self.registry)
            put_image_index(self.registry)
            self.registry.rules = [Rule(text.replace("@REGISTRY@", self.address)) for text in rules]

    def docker(self, *arguments: str, check: bool = True, environment: dict[str, str] | None = None) -> bytes:
        """Run the docker client and return all that it printed."""
        command = ["docker", *arguments]
        own = {**self.environment, **(environment or {})}
        result = subprocess.run(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert not check or result.returncode == 0, result.stdout.decode()
        return result.stdout

    def lose_layers(self) -> None:
        """Remove the layers that the engine has, as a careless cleaning would."""
        assert self.engine
        for layer in (self.engine.directory / "data" / "overlay2").iterdir():
            shutil.rmtree(layer)

    def fill(self, megabytes: int) -> None:
        """Fill the engine's disk except for some space."""
        assert self.engine
        disk = os.statvfs(self.engine.directory / "data")
        size = disk.f_bavail * disk.f_frsize - (megabytes << 20)
        (self.engine.directory / "data" / "ballast").write_bytes(bytes(max(0, size)))

    def kill(self, what: str, image: str) -> None:
        """Kill the docker client that builds `image`, or the engine."""
        for pid in self._processes(what, image):
            os.kill(pid, signal.SIGKILL)

    def _processes(self, what: str, image: str = "") -> Iterator[int]:
        marks = {"client": f"--tag\0{image}\0", "engine": f"--bridge\0{self.engine and self.engine.bridge}\0"}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if marks[what].encode() in path.read_bytes():
                    yield int(path.parent.name)

    def _keep_base_image(self, server: Registry) -> None:
        name = f"{server.address}/base:1"
        self.docker("tag", BASE_IMAGE, name)
        self.docker("push", name)
        is_pulled = self.case.get("engine") and self.case["kind"] == "build"
        self.docker("rmi", name, *([BASE_IMAGE] if is_pulled else []))

    @property
    def address(self) -> str:
        """Return the address of the registry."""
        return self.registry.address if self.registry else self.case.get("address", NAMED)


def own_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


def encrypt(server: Registry, directory: Path) -> None:
    """Have a registry speak HTTPS, with a certificate that only it knows."""
    write_certificates(directory / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = (directory / "certificates" / name for name in ("server.pem", "server-key.pem"))
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)


@contextmanager
def small_disk(size: str, directory: Path, *, is_quota: bool, is_loop: bool = False) -> Iterator[Path]:
    """Mount a disk of `size`, in memory or in a file, or a larger one with a quota of `size`, which needs btrfs-progs."""
    disk, mounted = directory / "disk", directory / "data"
    mounted.mkdir()
    if is_quota:
        subprocess.run(["truncate", "--size", "400m", disk], check=True)
        subprocess.run(["mkfs.btrfs", "--quiet", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    elif is_loop:
        subprocess.run(["truncate", "--size", size, disk], check=True)
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mounted], check=True)
    try:
        if is_quota:
            subprocess.run(["btrfs", "quota", "enable", mounted], check=True)
            subprocess.run(["btrfs", "qgroup", "limit", size, mounted], check=True)
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


@contextmanager
def memory_limit(megabytes: int) -> Iterator[list[str]]:
    """Make a control group with so much memory; yield the arguments of buildx that put steps into it."""
    root, name = Path("/sys/fs/cgroup"), f"corpus-{uuid.uuid4().hex[:8]}"
    is_v1 = (root / "memory").is_dir()
    group = root / "memory" / name if is_v1 else root / name
    group.mkdir()
    limit = "memory.limit_in_bytes" if is_v1 else "memory.max"
    (group / limit).write_text(str(megabytes << 20))
    try:
        yield ["--cgroup-parent", f"/{name}"]
    finally:
        with suppress(OSError):
            for inner in group.iterdir():
                if inner.is_dir():
                    inner.rmdir()
            group.rmdir()


@contextmanager
def own_engine(size: str, *, is_quota: bool, is_loop: bool = False, store: str = "") -> Iterator[MadeEngine]:
    """Run an engine with its data on a small disk."""
    directory = Path(tempfile.mkdtemp(prefix="r2d-engine-"))
    made = MadeEngine(root=engines.engine_root(), directory=directory, name=uuid.uuid4().hex[:8], store=store)
    ledger = Ledger(directory / "started.json")
    disk = ExitStack()
    try:
        disk.enter_context(small_disk(size, directory, is_quota=is_quota, is_loop=is_loop))
        made.start(ledger)
        own = {**os.environ, "PATH": tools_path()}
        saved = subprocess.run(
            ["docker", "save", BASE_IMAGE], capture_output=True, check=True, env=own
        ).stdout
        subprocess.run(["docker", "load"], input=saved, check=True, env={**own, "DOCKER_HOST": made.host})
        yield made
    finally:
        for item in ledger.processes:
            item.end()
        made.remove_bridge()
        disk.close()
        shutil.rmtree(directory, ignore_errors=True)


def put_image_index(server: Registry) -> None:
    """Add `/index:1`, a list of images that has none for this platform."""
    kind, manifest = server.manifests["/v2/base/manifests/1"]
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    platform = {"architecture": "s390x", "os": "linux"}
    entry = {"mediaType": kind, "digest": digest, "size": len(manifest), "platform": platform}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    body = json.dumps(index).encode()
    for tag in ("1", f"sha256:{hashlib.sha256(body).hexdigest()}"):
        server.manifests[f"/v2/index/manifests/{tag}"] = (INDEX, body)


def write_repository(name: str, case: dict[str, Any], site: Site, target: Path) -> None:
    """Write the case's files, with placeholders filled in."""
    target.mkdir()
    source = CORPUS / name / "repository"
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        written = target / file.relative_to(source)
        written.parent.mkdir(parents=True, exist_ok=True)
        # Not `read_text`, which makes other ends of lines the same as ours.
        text = file.read_bytes().decode().replace("@BASE@", BASE_IMAGE).replace("@REGISTRY@", site.address)
        encoding = "utf-8"
        if written.suffix in ENCODINGS:
            encoding, written = written.suffix[1:], written.with_suffix("")
        written.write_bytes(text.encode(encoding))
    if case.get("size"):
        (target / "big.bin").write_bytes(os.urandom(case["size"] << 20))
    if case.get("copies"):
        steps = "".join(f"COPY Dockerfile /{number}\n" for number in range(case["copies"]))
        (target / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\n{steps}")


def record_build(name: str, case: dict[str, Any], site: Site) -> bytes:
    """Run repo2docker and return its output."""
    directory = site.directory / "repository"
    source = case.get("url", str(directory)).replace("@REGISTRY@", site.address)
    write_repository(name, case, site, directory)
    provider = case.get("provider", "Local")
    config = site.directory / "repo2docker_config.py"
    config.write_text(
        f"from repo2docker.contentproviders import {provider}\nc.Repo2Docker.content_providers = [{provider}]\n"
    )
    if case.get("memory"):
        limit = site.stack.enter_context(memory_limit(case["memory"]))
        with config.open("a") as file:
            file.write(f"c.DockerEngine.extra_buildx_build_args = {limit!r}\n")
    image = f"corpus/{name}:{uuid.uuid4().hex}"
    command = [sys.executable, "-m", "repo2docker", "--config", str(config), "--json-logs", "--no-run"]
    command += ["--user-name", "jovyan", "--user-id", "1000", "--image-name", image]
    command += [*case.get("arguments", []), "--", source]
    if case.get("lose"):
        site.lose_layers()
    if "fill" in case:
        site.fill(case["fill"])
    environment = site.environment | case.get("environment", {})
    output = run_build(case, site, command, environment, image)
    tries = 1
    while case.get("cut") and case["cut"].encode() not in output and tries < MAX_CUTS:
        output, tries = run_build(case, site, command, environment, image), tries + 1
    site.docker("rmi", "--force", image, check=False)
    return output.replace(image.encode(), f"corpus/{name}:1".encode())


def run_build(
    case: dict[str, Any], site: Site, command: list[str], environment: dict[str, str], image: str
) -> bytes:
    """Run repo2docker once, with what happens to it."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    output = b""
    for line in process.stdout:
        output += line
        if case.get("kill") and re.search(rb"#\d+ [\d.]+ READY", line):
            site.kill(case["kill"], image)
        if case.get("cut") and re.search(rb"#\d+ [\d.]+ READY", line):
            site.line.cut()
    code = process.wait()
    assert code == case.get("code", 1), output.decode()[-2000:]
    return output


def record_push(name: str, case: dict[str, Any], site: Site) -> bytes:
    """Push a small image and return docker's output."""
    image = f"{site.address}/{case.get('image', 'the-forbidden-city')}:1"
    (site.directory / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nRUN echo {uuid.uuid4().hex} > /one\nRUN echo {uuid.uuid4().hex} > /two\n"
    )
    if not case.get("absent"):
        site.docker("build", "--tag", image, str(site.directory))
    if "fill" in case:
        site.fill(case["fill"])
    output = site.docker("push", image, check=False, environment=case.get("environment"))
    site.docker("rmi", "--force", image, check=False)
    return output


def clean(output: bytes, site: Site) -> bytes:
    """Return output without the paths and addresses of this machine."""
    text = output.decode("utf-8", "replace")
    found = importlib.util.find_spec("repo2docker")
    assert found
    assert found.origin
    packages = str(Path(found.origin).parents[1])
    for path, shown in (
        (packages, "/usr/lib/python3/site-packages"),
        (str(site.directory), "/build"),
        (sys.base_prefix, "/usr"),
        (site.environment.get("DOCKER_HOST", "-"), "unix:///var/run/docker.sock"),
        (os.environ["RABBIT2DOCKER_TEST_GIT_URL"], "git://127.0.0.1:9418"),
        (site.address if site.registry else NAMED, NAMED),
    ):
        text = text.replace(path, shown)
    text = re.sub(r"127\.0\.0\.1:\d+->", "127.0.0.1:40000->", text)
    text = re.sub(
        r"registry-1\.docker\.io|packagemanager\.posit\.co|[\w-]+\.julialang\.org", "server.example", text
    )
    text = re.sub(r"on (?:\d+\.){3}\d+:53", "on 192.0.2.53:53", text)
    return text.encode()


def record(name: str) -> None:
    """Run a case and write its output."""
    case = cases()[name]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-")))
        site = Site(case, stack, directory)
        recorder = record_push if case["kind"] == "push" else record_build
        output = clean(recorder(name, case, site), site)
    output_of(name).parent.mkdir(exist_ok=True)
    output_of(name).write_bytes(output)


def main() -> None:
    """Record the cases that are named, all, or those that have no output."""
    names = list(cases()) if sys.argv[1:] == ["--all"] else sys.argv[1:]
    failed: list[str] = []
    for name in names or [name for name in cases() if not output_of(name).exists()]:
        sys.stdout.write(f"{name}\n")
        try:
            record(name)
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            sys.stdout.write(f"  {error}\n")
    sys.exit(f"Not recorded: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
