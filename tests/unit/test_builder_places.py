"""The places of a build and what can be read in them: with scripts for repo2docker and docker."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.builder import BUILDER_COMMAND, BUILDER_PATH, builder
from tests.support.repositories import GitServer, Repository
from tests.support.waiting import eventually_blocking

SECRET = "planted-5ecret"
SECONDS = f"{100000 + os.getpid()}"  # of a process that is not to be left behind
DIGEST = "sha256:" + "ab" * 32
DOCKER = """#!/bin/bash
case "$1" in
version) echo 28.0;;
image) echo 1234;;
push) echo "one: digest: {digest} size: 950";;
tag*) ;;
*) printf '%s\\0' "$@" > {directory}/arguments; cat > {directory}/archive; echo "$DOCKER_CONFIG"; exit {code};;
esac
"""
# In the place of `python -m repo2docker`: it prints what it finds.
READER = """#!/bin/bash
for last; do :; done
{script}
"""
BUILD = (
    'cd "$last"; docker buildx build --progress plain --load --build-arg A=1 --tag any "$last" || exit 1\n'
)
# Backwards, as the builder redacts what it knows.
SEARCH = f"""
{{
env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; cat "$last/link-to-secret"
grep --recursive --no-messages --binary-files=text "{SECRET[:-1]}[{SECRET[-1]}]" SEARCHED
}} 2>&1 | rev | grep {SECRET[::-1]}
"""


class Bench:
    """A directory to run the builder in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.environment: dict[str, str] = {}
        self.before: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        for name in ("bin", "git", "home", "docker-config"):
            (directory / name).mkdir()
        self.script("docker", DOCKER.format(digest=DIGEST, directory=directory, code=0))
        self.repo2docker(BUILD)

    def script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def repo2docker(self, script: str) -> None:
        self.script("python", READER.format(script=script))

    def repository(self, files: dict[str, str | bytes]) -> Repository:
        return Repository("one", files, GitServer(self.directory / "git", str(self.directory / "git")))

    def start(self, source: Path | str, **spec: Any) -> "subprocess.Popen[bytes]":
        """Start a builder for the content of a directory, as for content that repo2docker fetches itself."""
        defaults = {
            "repo_url": str(source),
            "content_provider": "Local",
            "image": "registry.example/one:1",
            "python": str(self.bin / "python"),
            "workdir": str(self.directory / "work"),
            "push_retries": 0,
            "docker_wait_seconds": 1,
            "timeout_seconds": 100,
        }
        (self.directory / "spec.json").write_text(json.dumps(defaults | spec))
        program = [*self.before, *BUILDER_COMMAND]
        command = [*program, "--spec", str(self.directory / "spec.json")]
        command += ["--log", str(self.directory / "log"), "--result", str(self.directory / "result.json")]
        path = f"{self.bin}:{os.environ['PATH']}"
        environment = {"HOME": str(self.directory / "home"), "PATH": path, **self.environment}
        self.started.append(subprocess.Popen(command, env=environment))
        return self.started[-1]

    def run(self, source: Path | str, **spec: Any) -> dict[str, Any]:
        """Run to the end and return the result."""
        assert self.start(source, **spec).wait(100) is not None
        return self.result()

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return result

    def texts(self) -> list[str]:
        return [json.loads(line)["text"] for line in (self.directory / "log").read_text().splitlines()]

    def view(self, *readable: Path) -> dict[str, Any]:
        """Return the part of the spec that confines what reads the repository."""
        python = [sys.prefix, sys.base_prefix]
        hidden = [str(self.directory / "docker-config")]
        return {"readable": [str(self.bin), *python, *map(str, readable)], "hidden": hidden}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A directory in the place of a repository."""
    path = tmp_path / "content"
    path.mkdir()
    (path / "Dockerfile").write_text("FROM base\n")
    return path


class TestConfinement:
    def test_a_planted_secret_is_found_nowhere_by_what_reads_the_repository(
        self, bench: Bench, content: Path
    ) -> None:
        (bench.directory / "home" / ".git-credentials").write_text(f"https://me:{SECRET}@git.example\n")
        (bench.directory / "docker-config" / "config.json").write_text(json.dumps({"note": SECRET}))
        (bench.directory / "elsewhere").write_text(SECRET)
        (content / "link-to-secret").symlink_to(bench.directory / "elsewhere")
        bench.environment = {
            "DOCKER_CONFIG": str(bench.directory / "docker-config"),
            "DOCKER_AUTH_CONFIG": SECRET,
            "GIT_CONFIG_VALUE_0": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "PIP_INDEX_URL": f"https://{SECRET}@pypi.example",
        }
        bench.repo2docker(SEARCH.replace("SEARCHED", str(bench.directory)) + BUILD)
        # Without the confinement, the same search finds them: the test can fail.
        assert bench.run(content)["reason"] == "ok", bench.texts()
        assert sum(SECRET[::-1] in text for text in bench.texts()) > 3
        (bench.directory / "log").unlink()
        bench.repo2docker(SEARCH.replace("SEARCHED", "/etc /home /root /run /tmp /var /work") + BUILD)
        assert bench.run(content, confine=bench.view(content))["reason"] == "ok", bench.texts()
        assert not [text for text in bench.texts() if SECRET[::-1] in text or SECRET in text]
        assert SECRET.encode() not in (bench.directory / "archive").read_bytes()
        assert bench.texts().count(str(bench.directory / "docker-config")) == 1, "only the client has it"

    def test_it_cannot_change_the_machine_and_ends_with_its_processes(
        self, bench: Bench, content: Path
    ) -> None:
        for name in ("one", "two"):
            (bench.directory / name).mkdir()
        bench.repo2docker(
            f"""
            touch {bench.bin}/new {bench.directory}/one/new /usr/new /new
            umount {bench.bin} /usr; mount -t tmpfs none /tmp
            echo 1 > /proc/sys/vm/swappiness
            cat /etc/shadow
            setsid sleep {SECONDS} > /dev/null 2>&1 &
            """
            + BUILD
        )
        assert bench.run(content, confine=bench.view(content))["reason"] == "ok", bench.texts()
        said = "\n".join(bench.texts())
        assert said.count("Read-only file system") >= 4
        assert "/etc/shadow: No such file" in said
        assert "denied" in said or "superuser" in said
        assert not (bench.bin / "new").exists()
        sleeping = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_readable(path)]
        assert f"sleep\0{SECONDS}\0".encode() not in sleeping

    def test_git_cannot_read_what_is_for_the_registry_while_it_fetches(self, bench: Bench) -> None:
        config = bench.directory / "docker-config" / "config.json"
        config.write_text(f"note: {SECRET}\n")
        bench.environment = {"DOCKER_AUTH_CONFIG": SECRET}
        search = f"{{ cat {config}; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -a ^DOCKER_AUTH; }} >&2"
        git = shutil.which("git")
        bench.script("git", f'#!/bin/sh\ncase "$*" in *" fetch "*) {search};; esac\nexec {git} "$@"\n')
        fetched: dict[str, Any] = {
            "content_provider": "Git",
            "allow_private_addresses": True,
            "fetch_retries": 0,
        }
        # Without the confinement, it can: the test can fail.
        bench.run("http://127.0.0.1:1/one", **fetched)
        assert {f"DOCKER_AUTH_CONFIG={SECRET}", f"note: {SECRET}"} <= set(bench.texts())
        (bench.directory / "log").unlink()
        bench.run("http://127.0.0.1:1/one", confine=bench.view(), **fetched)
        assert any("config.json: No such file" in text for text in bench.texts())
        assert not any(SECRET in text for text in bench.texts())

    def test_a_signal_that_ends_the_command_is_passed_on(self, bench: Bench, content: Path) -> None:
        bench.repo2docker("kill -KILL $$")
        result = bench.run(content, confine=bench.view(content))
        assert result["reason"] == "builder_out_of_memory", result

    def test_a_kernel_that_gives_no_namespaces_is_named(self, bench: Bench, content: Path) -> None:
        # Programs that are confined can have no namespaces of their own.
        for name in ("root", "tmp"):
            (bench.directory / name).mkdir()
        readable = [sys.prefix, sys.base_prefix, str(BUILDER_PATH.parent)]
        view = {"root": str(bench.directory / "root"), "home": str(bench.directory), "readable": readable}
        bench.before = [*BUILDER_COMMAND, "--confine", json.dumps(view), "--"]
        result = bench.run(content, confine=bench.view(content))
        assert result["reason"] == "builder_error"
        assert result["message"].startswith("The builder cannot separate the repository's files: ")


def is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


class TestDoor:
    @pytest.mark.parametrize(
        "command",
        [
            "docker run --volume /:/host base cat /host/etc/shadow",
            "docker push registry.example/other:1",
            "docker login",
            "docker image inspect other:1",
            'docker buildx build --secret id=x,src=/etc/passwd --tag any "$last"',
            'docker buildx build --build-arg HOME --tag any "$last"',
            'docker buildx build --build-context a=/etc --tag any "$last"',
            'docker buildx build --cache-from type=local,src=/etc --tag any "$last"',
            'docker buildx build --output type=local,dest=/etc --tag any "$last"',
            'docker buildx build --file -x --tag any "$last"',
            'docker buildx build --push --tag any "$last"',
        ],
    )
    def test_the_engine_does_nothing_but_build_the_image(
        self, bench: Bench, content: Path, command: str
    ) -> None:
        bench.repo2docker(f"{command} || echo refused\n{BUILD}")
        assert bench.run(content)["reason"] == "ok", bench.texts()
        assert "refused" in bench.texts()
        assert "The builder does not allow this command of the engine." in bench.texts()

    def test_the_directory_is_sent_without_what_dockerignore_names(self, bench: Bench, content: Path) -> None:
        (content / ".dockerignore").write_text(
            "# comment\n*.log\nignored\n!kept.log\nDockerfile\n.dockerignore\n"
        )
        for name in ("a.log", "kept.log", "ignored/file", "sub/file", "with space"):
            (content / name).parent.mkdir(exist_ok=True)
            (content / name).write_text(name)
        (content / "link").symlink_to("/etc/passwd")
        assert bench.run(content)["reason"] == "ok", bench.texts()
        listed = ["tar", "--list", "--file", str(bench.directory / "archive")]
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\n")
        assert {name.rstrip("/") for name in names if name} == {
            ".", "Dockerfile", "kept.log", "sub", "sub/file", "with space", "link",
        }  # fmt: skip
        with tarfile.open(bench.directory / "archive") as archive:
            assert archive.getmember("link").linkname == "/etc/passwd", "what it leads to is not sent"
        command = (bench.directory / "arguments").read_text().split("\0")[:-1]
        assert command[:-2] == [
            *("buildx", "build", "--progress", "plain", "--load", "--build-arg", "A=1"),
            *("--tag", "registry.example/one:1", "--iidfile"),
        ]

    def test_a_client_that_fails_or_is_killed_fails_for_repo2docker_in_the_same_way(
        self, bench: Bench, content: Path
    ) -> None:
        bench.repo2docker('docker buildx build --tag any "$last"; echo "code $?"; exit 1')
        for code, seen in (("3", "code 3"), ("1; kill -KILL $$", "code 137")):
            text = DOCKER.format(digest=DIGEST, directory=bench.directory, code=code)
            bench.script("docker", text.replace("exit 1; kill", "kill"))
            bench.run(content)
            assert seen in bench.texts()

    def test_a_build_that_is_cancelled_ends_the_client(self, bench: Bench, content: Path) -> None:
        text = DOCKER.format(digest=DIGEST, directory=bench.directory, code=0)
        wait = f"echo $$ > {bench.directory}/pid; exec sleep 1000"
        bench.script("docker", text.replace("*) printf", f"*) {wait}; printf"))
        process = bench.start(content, confine=bench.view(content))
        eventually_blocking(lambda: (bench.directory / "pid").exists() and read(bench.directory / "pid"))
        process.terminate()
        assert process.wait(60) == 143
        pid = int(read(bench.directory / "pid"))
        eventually_blocking(lambda: not Path(f"/proc/{pid}").exists())


def read(path: Path) -> str:
    return path.read_text().strip()


class Servers:
    """The processes of a pod's other containers."""

    def __init__(self, bench: Bench) -> None:
        self.directory = bench.directory / "attempt"
        self.directory.mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._bench = bench

    def start(self, name: str, **variables: str) -> None:
        command = [sys.executable, "-I", str(BUILDER_PATH), "--serve", str(self.directory / f"{name}.sock")]
        path = f"{self._bench.bin}:{os.environ['PATH']}"
        self.processes[name] = subprocess.Popen(command, env={"PATH": path, "HOME": "/nowhere", **variables})

    def spec(self, *names: str) -> dict[str, Any]:
        sockets = {name: str(self.directory / f"{name}.sock") for name in names}
        return {"containers": {"directory": str(self.directory), **sockets}}


@pytest.fixture
def servers(bench: Bench) -> Iterator[Servers]:
    made = Servers(bench)
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()


class TestContainers:
    def test_each_part_of_a_build_runs_in_its_container_and_they_end_with_the_builder(
        self, bench: Bench, servers: Servers
    ) -> None:
        repository = bench.repository({"Dockerfile": "FROM base\n", "a": "1"})
        bench.repo2docker(f'echo "reads: $WHERE"; cat "$last/a"; {BUILD}')
        real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
        bench.script(
            "git",
            f'#!/bin/sh\n[ -z "$GIT_CONFIG_VALUE_0" ] || echo "fetches: $GIT_CONFIG_VALUE_0" >&2\nexec {real} "$@"\n',
        )
        servers.start("fetch", GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="r2d.x", GIT_CONFIG_VALUE_0="in fetch")
        process = bench.start(
            f"http://127.0.0.1:1/{repository.name}", ref=repository.head(), content_provider="Git",
            allow_private_addresses=True, fetch_retries=0, **servers.spec("fetch", "cage"),
        )  # fmt: skip
        servers.start("cage", XDG_WHERE="in cage")
        process.wait(100)
        assert bench.result()["reason"] == "fetch_interrupted", bench.texts()
        assert any("fetches: in fetch" in text for text in bench.texts())
        for server in servers.processes.values():
            assert server.wait(60) == 0

    def test_repo2docker_runs_in_the_cage(self, bench: Bench, content: Path, servers: Servers) -> None:
        bench.repo2docker(f'echo "reads: $XDG_WHERE"; {BUILD}')
        servers.start("cage", XDG_WHERE="in cage")
        assert bench.run(content, **servers.spec("cage"))["reason"] == "ok", bench.texts()
        assert "reads: in cage" in bench.texts()
        assert servers.processes["cage"].wait(60) == 0

    def test_a_killed_container_is_not_taken_for_a_build_that_fails(
        self, bench: Bench, content: Path, servers: Servers
    ) -> None:
        step = bench.directory / "step"
        bench.repo2docker(f"echo $$ > {step}; echo started; exec sleep 1000")
        servers.start("cage")
        process = bench.start(content, **servers.spec("cage"))
        eventually_blocking(lambda: (bench.directory / "log").exists() and "started" in bench.texts())
        servers.processes["cage"].kill()
        os.kill(int(step.read_text()), signal.SIGKILL)  # with a container, all of its processes end
        assert process.wait(60) == 71
        assert bench.result()["reason"] == "builder_out_of_memory"

    def test_a_build_that_is_cancelled_ends_what_runs_in_other_containers(
        self, bench: Bench, content: Path, servers: Servers
    ) -> None:
        bench.repo2docker("echo started; sleep 1000; echo no")
        servers.start("cage")
        process = bench.start(content, **servers.spec("cage"))
        eventually_blocking(lambda: (bench.directory / "log").exists() and "started" in bench.texts())
        for each in (servers.processes["cage"], process):
            each.terminate()  # as the kubelet does
        assert process.wait(60) == 143
        assert servers.processes["cage"].wait(60) == 0

    def test_a_server_whose_builder_never_comes_ends_with_the_pod(self, servers: Servers) -> None:
        servers.start("cage")
        eventually_blocking(lambda: (servers.directory / "cage.sock").exists())
        servers.processes["cage"].terminate()
        assert servers.processes["cage"].wait(60) == 0


class TestDockerignore:
    """The rules of https://github.com/moby/patternmatcher, which is what docker's client follows in a directory."""

    PATHS = (
        "a.py", "b.txt", "pkg/c.py", "pkg/deep/d.py", "pkg/deep/e.txt", "data/f.bin", "[x]", "$y", "src/.git/g",
        "src/h.py", ".dockerignore", "name with\nnewline",
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ("*\n!**/*.py", "a.py pkg/c.py pkg/deep/d.py src/h.py"),
            ("**\n!src/**", "src/.git src/.git/g src/h.py"),
            ("*\n!pkg\npkg/deep\n!pkg/deep/e.txt", "pkg pkg/c.py pkg/deep/e.txt"),
            ("*\n!/pkg/deep/", "pkg/deep pkg/deep/d.py pkg/deep/e.txt"),
            ("*\n!?.py\n!\\[x]", "[x] a.py"),
            ("*\n![ab].*\n!$y", "$y a.py b.txt"),
            ("*\n![^a].*", "b.txt"),
            ("*\n!x/../data/./f.bin", "data/f.bin"),
            ("\ufeff*\r\n! b.txt \r\n", "b.txt"),
            ("**/.git\n#*\n.\n/\n", None),
        ],
    )
    def test_the_context_has_what_docker_would_send(
        self, tmp_path: Path, rules: str, expected: str | None
    ) -> None:
        for path in self.PATHS:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(path)
        (tmp_path / "loop").symlink_to(".")
        (tmp_path / ".dockerignore").write_bytes(rules.encode())
        shim: dict[str, Any] = {}
        exec(builder.DOCKER.partition("arguments = sys.argv")[0], shim)
        found = set(shim["included"](tmp_path, "Dockerfile", shim["ignored"](tmp_path, "Dockerfile")))
        every = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert found == (
            set(expected.split()) if expected is not None else every - {"src/.git", "src/.git/g"}
        )
