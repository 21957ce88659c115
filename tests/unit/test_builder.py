"""The builder, run as a process with scripts in the place of repo2docker and docker."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.builder import BUILDER_COMMAND
from rabbit2docker.consumer.builder.builder import (
    EXIT_CODES,
    MAX_LINE_BYTES,
    MAX_RESULT_BYTES,
    AttemptEnded,
    Engine,
    Log,
    clean_text,
    encode_lines,
    encode_result,
    split_build_options,
)
from rabbit2docker_schemas.reasons import FailureReason
from tests.support.disks import a_small_disk, fill
from tests.support.waiting import eventually_blocking

DIGEST = "sha256:" + "ab" * 32
TAG = "0123456789abcdef0123456789abcdef01234567"
PUSHED = f"""
echo "The push refers to repository [registry.example/one]"
echo "aaaaaaaaaaaa: Preparing"; echo "bbbbbbbbbbbb: Preparing"
echo "aaaaaaaaaaaa: Layer already exists"; echo "bbbbbbbbbbbb: Pushed"
echo "{TAG}: digest: {DIGEST} size: 950"
"""
JSON_LINE = 'echo \'{"message": "%s", "phase": "%s"}\'\n'


class Bench:
    """A directory to run the builder in, with its fake commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.docker()
        self.repo2docker("echo building")

    def _script(self, name: str, text: str) -> str:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\ncd {self.directory}\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def docker(
        self,
        *,
        version: str = "echo 28.0",
        images: str = "echo 1234",
        push: str = PUSHED,
        others: str = "true",
    ) -> None:
        self._script(
            "docker",
            f'case "$1" in\nversion) {version};;\nimage) {images};;\npush) {push}\n;;\n*) {others};;\nesac',
        )

    def repo2docker(self, text: str) -> None:
        self._script("fake-repo2docker", text)

    def without_fetch(self) -> dict[str, Any]:
        """Return the part of a spec with which repo2docker is called in full, for content that it fetches itself."""
        return {
            "repo2docker_command": None,
            "python": str(self.bin / "fake-repo2docker"),
            "content_provider": "Zenodo",
        }

    def start(self, **spec: Any) -> "subprocess.Popen[bytes]":
        defaults = {
            "repo_url": "https://git.example/one",
            "image": f"registry.example/one:{TAG}",
            "ref": TAG,
            "docker_wait_seconds": 1,
            "push_retries": 1,
            "timeout_seconds": 60,
            "idle_seconds": 60,
            "workdir": str(self.directory / "work"),
            "repo2docker_command": [str(self.bin / "fake-repo2docker")],
        }
        (self.directory / "spec.json").write_text(json.dumps(defaults | spec))
        command = [*BUILDER_COMMAND, "--spec", str(self.directory / "spec.json")]
        command += ["--log", str(self.log), "--result", str(self.directory / "result.json")]
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "RABBIT2DOCKER_SECRET": "x"}
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def run(self, **spec: Any) -> dict[str, Any]:
        """Run to the end, check what holds for every result, and return it."""
        process = self.start(**spec)
        code = process.wait(50)
        raw = (self.directory / "result.json").read_bytes()
        assert len(raw) < 2048
        result: dict[str, Any] = json.loads(raw)
        assert result["exit_code"] == code == EXIT_CODES[result["reason"]]
        assert result["lines"] == len(self.lines())
        assert not (self.directory / "work").exists()
        return result

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_bytes().splitlines()]
        assert [line["n"] for line in lines] == list(range(len(lines)))
        return lines

    def texts(self) -> list[str]:
        return [line["text"] for line in self.lines()]

    def wait_for(self, text: str) -> None:
        eventually_blocking(lambda: self.log.exists() and text in self.log.read_text())

    def calls(self) -> list[list[str]]:
        """Return the arguments of each call of the fake docker that KEEP_CALLS has kept."""
        kept = (self.directory / "calls").read_text().split("\0\n")
        return [call.split("\0") for call in kept if call]

    def pids(self) -> list[int]:
        """Return the process ids that scripts have written to `pids`."""
        return [int(word) for word in (self.directory / "pids").read_text().split()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def none_runs(pids: list[int]) -> None:
    eventually_blocking(lambda: not any(is_running(pid) for pid in pids))


def test_a_build_that_succeeds_ends_with_the_digest_of_the_image(bench: Bench) -> None:
    bench.repo2docker(JSON_LINE % ("Cloning", "fetching") + JSON_LINE % ("#4 [2/5] RUN pip", "building"))
    result = bench.run(repo2docker_version="2026.4.0")
    assert (result["reason"], result["digest"], result["size"]) == ("ok", DIGEST, 1234)
    assert result["repo2docker_version"] == "2026.4.0"
    assert result["phase"] == "pushing"
    assert list(result["timings"]) == ["waiting", "fetching", "building", "pushing"]
    lines = bench.lines()
    assert [(line["phase"], line["text"]) for line in lines[:2]] == [
        ("fetching", "Cloning"),
        ("building", "#4 [2/5] RUN pip"),
    ]
    assert lines[1]["progress"] == {"step": 2, "steps": 5}
    assert [line["progress"] for line in lines if "progress" in line][-1] == {
        "layers_done": 2,
        "layers_total": 2,
    }
    assert {line["phase"] for line in lines[2:]} == {"pushing"}


def test_a_phase_never_goes_back(bench: Bench) -> None:
    bench.repo2docker(JSON_LINE % ("one", "building") + JSON_LINE % ("two", "fetching"))
    bench.run()
    assert [line["phase"] for line in bench.lines()[:2]] == ["building", "building"]


def test_line_numbers_continue_in_an_existing_log_even_after_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    log.write("building", "zero")
    log.write("building", "one")
    assert Log(str(path)).number == 2
    with path.open("ab") as file:
        file.write(b'{"n": 2, "te')
    again = Log(str(path))
    again.write("building", "three")
    lines = path.read_bytes().split(b"\n")
    assert json.loads(lines[3])["n"] == 3
    assert json.loads(lines[3])["text"] == "three"


def test_output_is_cleaned_of_controls_credentials_and_secrets(bench: Bench) -> None:
    bench.repo2docker(
        r"""printf '10%%\r20%%\r100%%\n'
printf 'https://user:p@ss@git.example/one and Authorization: Bearer abc.def\n'
printf 'bad \377 byte\n\n  \n\033[2Kcursor \033[31mred\033[0m\n'
printf 'hunter222 is said\n'
printf 'no newline'"""
    )
    bench.run(build_args={"PASSWORD": "hunter222"})
    assert bench.texts()[:7] == [
        "100%",
        "https://***@git.example/one and Authorization: Bearer ***",
        "bad \N{REPLACEMENT CHARACTER} byte",
        "cursor \x1b[31mred\x1b[0m",
        "*** is said",
        "no newline",
        "The push refers to repository [registry.example/one]",
    ]


def test_progress_that_rewrites_its_line_becomes_one_line(bench: Bench) -> None:
    bench.repo2docker("for i in $(seq 20000); do printf '%0100d%%\\r' $i; done; echo")
    bench.run()
    assert bench.texts()[0] == f"{20000:0100d}%"
    assert bench.texts()[1].startswith("The push refers")


def test_states_that_repo2docker_passes_on_one_by_one_become_one_line(bench: Bench) -> None:
    states = [json.dumps({"message": f"{number}%\r", "phase": "building"}) for number in range(1, 300)]
    first = json.dumps({"message": "#5 0.1 0%\r", "phase": "building"})
    last = json.dumps({"message": "300%\r\n", "phase": "building"})
    bench.repo2docker("cat <<'end'\n" + "\n".join([first, *states, last]) + "\nend")
    bench.run()
    assert bench.texts()[0] == "#5 0.1 300%"
    assert bench.texts()[1].startswith("The push refers")


def test_output_that_the_engine_dropped_is_reported_where_it_is_missing(bench: Bench) -> None:
    clipped = "[output clipped, log limit 200KiB/s reached]"
    bench.repo2docker(
        JSON_LINE % (f"#5 0.1 {clipped}\\n", "building") + JSON_LINE % (f"echo {clipped}", "building")
    )
    bench.run()
    engine_said, other = bench.lines()[:2]
    assert engine_said["clipped"]
    assert engine_said["text"] == (
        "#5 0.1 [The Docker engine dropped output of this step: an unknown number of lines is missing here. "
        "Its limit is 200KiB/s, which the operator can raise.]"
    )
    assert "clipped" not in other
    assert other["text"] == f"echo {clipped}"


OPTION = "--DockerEngine.extra_buildx_build_args"
SHOW_CONFIG = 'while [ "$1" != --config ]; do shift; done; cat "$2"; echo; shift 2; printf "%s\\n" "$@"'
BUILD = "docker buildx build --progress plain --load --tag any $PWD/bin\n"
KEEP_CALLS = """printf "%s\\0" "$@" >> calls; echo >> calls"""


@pytest.mark.parametrize(
    ("force", "arguments", "builds_anew"),
    [(False, [], False), ("cache", [], True), (True, ["--no-cache", "--pull"], True)],
)
def test_the_engine_gets_labels_the_operators_arguments_and_those_of_a_forced_build(
    bench: Bench, force: bool | str, arguments: list[str], builds_anew: bool
) -> None:
    bench.repo2docker(f"{SHOW_CONFIG}\n{BUILD}")
    bench.docker(others=KEEP_CALLS)
    label = "a \"b\" 'c' $HOME\nd"
    operators = ["--DockerEngine.extra_buildx_build_args=['--network=host', '--quiet']", "--debug"]
    bench.run(
        **bench.without_fetch(),
        force=force,
        labels={"one": label},
        repo2docker_args=[*operators, "--DockerEngine.extra_buildx_build_args=--ssh=x"],
    )
    [build, *_] = bench.calls()
    image = f"registry.example/one:{TAG}"
    assert build[:7] == ["buildx", "build", "--progress", "plain", "--load", "--tag", image]
    expected = ["--network=host", "--quiet", "--ssh=x", "--label", f"one={label}", *arguments, "--iidfile"]
    assert build[7:-2] == expected
    assert build[-1] == "-"
    assert ("Repo2Docker.find_image = lambda self: False" in bench.texts()) == builds_anew
    assert "--debug" in bench.texts()
    assert operators[0] not in bench.texts()


def test_the_origin_is_written_over_other_labels_and_is_reported_as_the_image_has_it(bench: Bench) -> None:
    bench.repo2docker(f"{SHOW_CONFIG}\n{BUILD}")
    labels = {
        "org.opencontainers.image.created": "2026-01-01T12:00:00Z",
        "io.rabbit2docker.build-id": "of-the-image",
        "other": "x y",
    }
    bench.docker(others=KEEP_CALLS, images=f"echo '1234 {json.dumps(labels)}'")
    result = bench.run(
        **bench.without_fetch(),
        labels={"one": "1", "io.rabbit2docker.build-id": "forged"},
        provenance={"io.rabbit2docker.build-id": "b1", "org.opencontainers.image.source": "https://x"},
    )
    [build, *_] = bench.calls()
    given = dict(build[at + 1].split("=", 1) for at, word in enumerate(build) if word == "--label")
    created = given.pop("org.opencontainers.image.created")
    assert datetime.fromisoformat(created).tzinfo is not None
    assert given == {
        "one": "1",
        "io.rabbit2docker.build-id": "b1",
        "org.opencontainers.image.source": "https://x",
    }
    assert result["size"] == 1234
    assert result["provenance"] == {"created": "2026-01-01T12:00:00Z", "build_id": "of-the-image"}


def test_an_origin_that_fills_the_result_is_left_out() -> None:
    result = {"reason": "ok", "provenance": {"version": "v" * MAX_RESULT_BYTES}, "message": "kept"}
    assert json.loads(encode_result(result)) == {"reason": "ok", "message": "kept"}


@pytest.mark.parametrize(
    ("arguments", "others", "passed_on"),
    [
        (["--debug", "--X.y=1"], ["--debug", "--X.y=1"], []),
        ([f"{OPTION}=--network=host", "--debug"], ["--debug"], ["--network=host"]),
        ([OPTION, "--network=host", "--debug"], ["--debug"], ["--network=host"]),
        ([f"{OPTION}=['--ssh', 'x']", f"{OPTION}=--quiet"], [], ["--ssh", "x", "--quiet"]),
    ],
)
def test_arguments_of_the_operator_for_the_engine_are_kept(
    arguments: list[str], others: list[str], passed_on: list[str]
) -> None:
    assert split_build_options(arguments) == (others, passed_on)


def test_an_argument_of_the_operator_that_is_no_list_is_reported() -> None:
    with pytest.raises(AttemptEnded, match="which is no list"):
        split_build_options([f"{OPTION}=[--ssh"])


def test_each_push_is_of_the_image_that_was_built_whatever_has_its_name_by_then(bench: Bench) -> None:
    bench.repo2docker(BUILD)
    id_file = """while [ $# -gt 0 ] && [ "$1" != --iidfile ]; do shift; done; [ -z "$2" ] || echo sha256:1234 > "$2" """
    bench.docker(
        push=f"{KEEP_CALLS}; [ -e once ] || {{ touch once; exit 1; }}\n{PUSHED}",
        others=f"{KEEP_CALLS}; {id_file}",
    )
    bench.run()
    image = f"registry.example/one:{TAG}"
    assert [call for call in bench.calls() if call[0] in ("tag", "push")] == [
        ["tag", "sha256:1234", image],
        ["push", image],
    ] * 2


def test_a_forced_build_uses_a_base_image_that_the_engine_alone_has(bench: Bench) -> None:
    failure = "ERROR: failed to solve: base:1: failed to resolve source metadata for docker.io/library/base:1: not found"
    bench.repo2docker(BUILD)
    fails_once = (
        f'{KEEP_CALLS}\nif [ ! -e again ]; then touch again; echo "{failure}"; exit 1; fi; echo built'
    )
    bench.docker(images='echo [\\"base@sha256:0\\"]', others=fails_once)
    assert bench.run(force=True)["reason"] != "ok"
    (bench.directory / "again").unlink()
    (bench.directory / "calls").unlink()
    bench.docker(images="echo []", others=fails_once)
    bench.log.unlink()
    # An address given as a build argument is redacted, and found nevertheless.
    base = {"BASE": "docker.io/library/base:1"}
    assert bench.run(force=True, build_args=base)["reason"] == "ok"
    builds = [call for call in bench.calls() if call[:2] == ["buildx", "build"]]
    assert ["--pull" in build for build in builds] == [True, False]
    assert ["--no-cache" in build for build in builds] == [True, True]
    assert any(line.startswith("The base image *** exists in") for line in bench.texts())


@pytest.fixture
def engine_with_data(tmp_path: Path) -> Iterator[Engine]:
    """Yield an engine whose data is in `tmp_path / "data"`, a small disk."""
    path = tmp_path / "engine"
    answer = json.dumps({"DockerRootDir": str(tmp_path / "data")}).encode()

    def serve(engine_socket: socket.socket) -> None:
        with suppress(OSError):  # shut down
            while True:
                connection, _ = engine_socket.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answer)

    with a_small_disk(tmp_path / "data", "40m"), socket.socket(socket.AF_UNIX) as engine_socket:
        engine_socket.bind(str(path))
        engine_socket.listen()
        serving = Thread(target=serve, args=(engine_socket,))
        serving.start()
        runner = Mock(workdir=str(tmp_path), environment={"DOCKER_HOST": f"unix://{path}"})
        yield Engine({"image": "one"}, runner)
        engine_socket.shutdown(socket.SHUT_RDWR)
        serving.join()


def test_a_disk_that_was_full_is_remembered_after_the_engine_has_removed_the_files(
    engine_with_data: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Event()
    statvfs = os.statvfs

    def look(path: str) -> os.statvfs_result:
        disk = statvfs(path)
        if disk.f_bavail == 0:
            seen.set()
        return disk

    monkeypatch.setattr("os.statvfs", look)
    with engine_with_data.watched_disk() as disk:
        assert not disk.was_full()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "data" / "big").write_bytes(bytes(41 << 20))
        assert seen.wait(60)
    (tmp_path / "data" / "big").unlink()
    assert disk.was_full()


def test_a_disk_is_not_watched_where_it_cannot_be_seen() -> None:
    engine = Engine({"image": "one"}, Mock(workdir="/nowhere", environment={"DOCKER_HOST": "tcp://engine"}))
    with engine.watched_disk() as disk:
        assert not disk.was_full()


def test_a_long_line_is_written_in_parts(bench: Bench) -> None:
    bench.repo2docker("head -c 50000 /dev/zero | tr '\\0' 'x'; echo; echo after")
    bench.run()
    assert all(len(line) <= MAX_LINE_BYTES for line in bench.log.read_bytes().splitlines(keepends=True))
    texts = bench.texts()
    assert "".join(texts[: texts.index("after")]) == "x" * 50000


@given(st.text(max_size=300), st.integers(0, 40))
def test_encoded_lines_are_short_and_hold_the_whole_text(text: str, repeat: int) -> None:
    cleaned = clean_text(text * repeat)
    parts = [json.loads(data) for data in encode_lines(7, "now", "building", cleaned)]
    assert [part["n"] for part in parts] == list(range(7, 7 + len(parts)))
    assert "".join(part["text"] for part in parts) == cleaned.encode("utf-8", "replace").decode()
    assert all(
        len(data) <= MAX_LINE_BYTES and data.count(b"\n") == 1
        for data in encode_lines(7, "now", "building", cleaned)
    )


def test_urls_without_credentials_are_unchanged() -> None:
    for text in ("https://git.example/a@b", "https://git.example?to=a@b", "mail me@example.org"):
        assert clean_text(text) == text


def test_settings_of_the_service_do_not_reach_repo2docker(bench: Bench) -> None:
    bench.repo2docker("env")
    bench.run()
    assert not any("RABBIT2DOCKER" in text for text in bench.texts())
    assert any(text.startswith("TMPDIR=") for text in bench.texts())


def test_sigterm_ends_the_children_and_the_result_is_cancelled(bench: Bench) -> None:
    bench.repo2docker("sleep 300 & echo $$ $! > pids; echo started; wait")
    process = bench.start()
    bench.wait_for("started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 143
    assert json.loads((bench.directory / "result.json").read_text())["reason"] == "cancelled"
    none_runs(bench.pids())


def test_children_that_ignore_sigterm_are_killed(bench: Bench) -> None:
    bench.repo2docker("trap '' TERM; sleep 300 & echo $$ $! > pids; echo started; wait; sleep 300")
    process = bench.start()
    bench.wait_for("started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 143
    none_runs(bench.pids())


def test_a_killed_builder_leaves_no_children_and_no_result(bench: Bench) -> None:
    bench.repo2docker("sleep 300 & echo $$ $! > pids; echo started; wait")
    process = bench.start()
    bench.wait_for("started")
    process.kill()
    process.wait(10)
    none_runs(bench.pids())
    assert not (bench.directory / "result.json").exists()


def test_a_builder_that_ended_leaves_no_process(bench: Bench) -> None:
    bench.repo2docker("sleep 300 & echo $! > pids; echo started")
    process = bench.start()
    assert process.wait(40) == 0
    none_runs(bench.pids())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_build_over_its_timeout_is_ended(bench: Bench) -> None:
    bench.repo2docker("echo $$ > pids; while sleep 0.2; do echo tick; done")
    result = bench.run(timeout_seconds=1)
    assert (result["reason"], result["exit_code"]) == ("timeout", 124)
    assert result["message"] == "The build took longer than 1 seconds and was ended."
    none_runs(bench.pids())


def test_a_build_over_its_idle_limit_is_ended(bench: Bench) -> None:
    bench.repo2docker("echo first; sleep 300")
    result = bench.run(idle_seconds=1)
    assert (result["reason"], result["exit_code"]) == ("idle", 124)


def test_a_push_is_repeated_after_a_failure_that_may_pass(bench: Bench) -> None:
    fail_once = 'if [ ! -e tried ]; then touch tried; echo "received unexpected HTTP status: 503"; exit 1; fi'
    bench.docker(push=f"{fail_once}\n{PUSHED}")
    result = bench.run()
    assert (result["reason"], result["digest"]) == ("ok", DIGEST)
    assert any("Trying again in 1 s" in text for text in bench.texts())


def test_a_pause_between_pushes_is_not_idle_time(bench: Bench) -> None:
    fail_once = 'if [ ! -e tried ]; then touch tried; echo "timeout"; exit 1; fi'
    bench.docker(push=f"{fail_once}\n{PUSHED}")
    assert bench.run(idle_seconds=0.9)["reason"] == "ok"


def test_a_denied_push_is_not_repeated(bench: Bench) -> None:
    bench.docker(
        push="echo pushed >> pushes; echo 'denied: requested access to the resource is denied'; exit 1"
    )
    result = bench.run(push_retries=4)
    assert (result["reason"], result["exit_code"]) == ("push_denied", 74)
    assert (bench.directory / "pushes").read_text() == "pushed\n"


def test_the_builder_waits_for_an_engine_that_does_not_answer(bench: Bench) -> None:
    bench.docker(
        version="if [ ! -e asked ]; then touch asked; echo Cannot connect to the Docker daemon; exit 1; fi"
    )
    assert bench.run(docker_wait_seconds=30)["reason"] == "ok"
    assert "Waiting for the Docker engine" in bench.texts()[0]


@pytest.mark.parametrize("version", ["echo Cannot connect; exit 1", "sleep 300"])
def test_an_engine_that_never_answers_ends_the_attempt(bench: Bench, version: str) -> None:
    bench.docker(version=version)
    result = bench.run()
    assert (result["reason"], result["exit_code"], result["phase"]) == ("docker_unavailable", 75, "waiting")


def test_a_machine_without_the_docker_command_is_reported(bench: Bench) -> None:
    (bench.bin / "docker").write_text("no program")
    (bench.bin / "docker").chmod(0o644)
    environment = {"PATH": str(bench.bin)}
    (bench.directory / "spec.json").write_text(
        json.dumps({"repo_url": "x", "image": "y", "docker_wait_seconds": 1})
    )
    command = [*BUILDER_COMMAND, "--spec", str(bench.directory / "spec.json")]
    ended = subprocess.run(
        [*command, "--result", str(bench.directory / "result.json")],
        env=environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    assert ended.returncode == 75
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["n"] for line in lines] == list(range(len(lines)))
    assert "docker: " in lines[0]["text"]


@pytest.mark.parametrize("spec", ["", "[]", '{"image": "y"}', "{"])
def test_an_invalid_spec_ends_with_bad_spec(bench: Bench, spec: str) -> None:
    (bench.directory / "bad.json").write_text(spec)
    command = [*BUILDER_COMMAND, "--spec", str(bench.directory / "bad.json")]
    command += ["--log", str(bench.log), "--result", str(bench.directory / "result.json")]
    assert subprocess.run(command, check=False).returncode == 64
    assert json.loads((bench.directory / "result.json").read_text())["reason"] == "bad_spec"


def test_a_builder_that_waits_for_disk_space_obeys_sigterm(bench: Bench) -> None:
    bench.log.symlink_to("/dev/full")
    bench.repo2docker("echo $$ > pids; echo one; sleep 300")
    process = bench.start()
    eventually_blocking(lambda: (bench.directory / "pids").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (75, 143)
    result = json.loads((bench.directory / "result.json").read_text())
    # Either may come first; the promise is that neither delays the other.
    assert result["reason"] in ("disk_full", "cancelled")
    assert result["lines"] == 0
    none_runs(bench.pids())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with a_small_disk(tmp_path / "disk", "256k") as disk:
        yield disk


def test_a_builder_that_starts_on_a_full_disk_waits_for_space(small_disk: Path, bench: Bench) -> None:
    ballast = fill(small_disk)
    process = bench.start(workdir=str(small_disk / "work"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually_blocking(lambda: children.read_text() or process.poll() is not None)  # its guard comes first
    assert process.poll() is None
    ballast.unlink()
    process.wait()
    assert json.loads((bench.directory / "result.json").read_text())["reason"] == "ok"


def test_the_engine_is_asked_although_the_disk_is_full(
    small_disk: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(small_disk)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setenv("PATH", f"{bench.bin}:{os.environ['PATH']}")
    assert subprocess.run([*BUILDER_COMMAND, "--check-engine", "5"]).returncode == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("OSError: [Errno 28] No space left on device: 'environment.yml'", "disk_full"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk_full"),
        ("FileNotFoundError: [Errno 2] No usable temporary directory found in ['/tmp']", "disk_full"),
        ("ValueError: a name\nOSError: [Errno 28] No space left on device", "no_environment"),
        ("ValueError: [Errno 28] No space left on device", "no_environment"),
    ],
)
def test_a_full_disk_that_repo2docker_meets_is_not_the_users(bench: Bench, error: str, reason: str) -> None:
    trace = f'Traceback (most recent call last):\n  File "/x/repo2docker/app.py", line 1, in build\n{error}'
    message = f"Error during build: {error.partition(': ')[2]}"
    record = {"message": message, "phase": "failed", "exc_info": trace}
    bench.repo2docker(f"cat <<'END'\n{json.dumps(record)}\nEND\nexit 1")
    result = bench.run()
    assert result["reason"] == reason
    # It was tried once more, as there was space by then.
    assert bench.texts().count("There is space on the disk of the build machine again. Trying again.") == (
        reason == "disk_full"
    )


def test_the_result_is_written_even_to_a_full_disk(small_disk: Path, bench: Bench) -> None:
    bench.repo2docker(f"head -c 1000000 /dev/zero > {small_disk}/filler; echo after; sleep 300")
    command = [*BUILDER_COMMAND, "--spec", str(_written_spec(bench))]
    command += ["--log", str(small_disk / "log.jsonl"), "--result", str(small_disk / "result.json")]
    process = subprocess.Popen(command, env={**os.environ, "PATH": f"{bench.bin}:{os.environ['PATH']}"})
    eventually_blocking(lambda: os.statvfs(small_disk).f_bavail == 0)
    process.send_signal(signal.SIGTERM)
    process.wait(40)
    assert json.loads((small_disk / "result.json").read_text())["reason"] in ("disk_full", "cancelled")


def _written_spec(bench: Bench) -> Path:
    path = bench.directory / "full.json"
    command = [str(bench.bin / "fake-repo2docker")]
    path.write_text(json.dumps({"repo_url": "x", "image": "y", "repo2docker_command": command}))
    return path


def test_the_result_names_the_failed_step(bench: Bench) -> None:
    bench.repo2docker(
        JSON_LINE % ("Using", "building")
        + """echo 'ERROR: failed to solve: process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1'
exit 1"""
    )
    result = bench.run()
    assert (result["reason"], result["failed_step"]) == ("build_step_failed", "RUN pip install nope")
    assert result["message"] == "The step `RUN pip install nope` ended with exit code 1."


@pytest.mark.parametrize("error", ["exit code: 1", "exit code: 137"])
def test_a_step_that_fails_because_its_engine_died_is_not_the_users_fault(bench: Bench, error: str) -> None:
    bench.docker(version="[ ! -e dead ] || { echo Cannot connect to the Docker daemon; exit 1; }")
    bench.repo2docker(
        JSON_LINE % ("Using", "building")
        + f"""touch dead
echo 'ERROR: failed to solve: process "/bin/sh -c pip install x" did not complete successfully: {error}'
exit 1"""
    )
    result = bench.run()
    assert (result["reason"], result["failed_step"]) == ("docker_unavailable", "RUN pip install x")
    assert "Cannot connect to the Docker daemon. Because of that: The step `RUN pip" in result["message"]


def test_a_step_that_fails_while_its_engine_is_restarted_is_not_the_users_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The next engine answers at once, at another socket of the same name.
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bench.directory}/engine.sock")
    (bench.directory / "engine.sock").touch()
    (bench.directory / "next.sock").touch()
    failure = 'ERROR: failed to solve: process "/bin/sh -c x" did not complete successfully: exit code: 1'
    bench.repo2docker(
        JSON_LINE % ("Using", "building") + f"mv next.sock engine.sock\necho '{failure}'\nexit 1"
    )
    result = bench.run()
    assert result["reason"] == "docker_unavailable"
    assert result["message"].startswith("The Docker engine was restarted during the build. Because of that: ")


@pytest.mark.parametrize(
    ("restart", "reason"), [("mv next.sock engine.sock\n", "docker_unavailable"), ("", "image_missing")]
)
def test_an_image_that_its_engine_lost_in_a_restart_is_not_missed_but_built_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, restart: str, reason: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bench.directory}/engine.sock")
    (bench.directory / "engine.sock").touch()
    (bench.directory / "next.sock").touch()
    bench.docker(push=f"{restart}echo 'An image does not exist locally with the tag: one'; exit 1")

    assert bench.run(push_retries=4)["reason"] == reason
    assert not [text for text in bench.texts() if "Trying again" in text]


def test_the_builder_only_asks_the_engine_if_that_is_all_it_is_to_do(bench: Bench) -> None:
    command = [*BUILDER_COMMAND, "--check-engine", "5"]
    environment = {**os.environ, "PATH": f"{bench.bin}:{os.environ['PATH']}", "DOCKER_HOST": "tcp://engine:1"}

    def check() -> tuple[int, str]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert check() == (0, "")
    bench.docker(version="echo Cannot connect; exit 1")
    assert check() == (75, "The Docker engine at tcp://engine:1 does not answer: Cannot connect.\n")


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        ("", 1, "fetch_failed"),
        (JSON_LINE % ("Downloading", "fetching"), 1, "fetch_failed"),
        (JSON_LINE % ("Using it", "building"), 1, "no_environment"),
        (JSON_LINE % ("Cloning", "fetching") + "kill -9 $$", None, "builder_out_of_memory"),
    ],
)
def test_an_end_of_repo2docker_without_the_engine_is_judged(
    bench: Bench, lines: str, code: int | None, reason: str
) -> None:
    bench.repo2docker(f"{lines}\nexit {code}" if code else lines)
    assert bench.run()["reason"] == reason


NO_BASE = """ERROR: failed to solve: one/two:3: failed to resolve source metadata for docker.io/one/two:3: unexpected status \
from HEAD request to https://registry.example/v2/one/two/manifests/3: %s"""


def test_a_build_is_repeated_while_the_registry_of_its_base_image_limits_requests(bench: Bench) -> None:
    failed = JSON_LINE % ("Using", "building") + f"echo '{NO_BASE % '429 Too Many Requests'}'; exit 1"
    bench.repo2docker(f"if [ ! -e tried ]; then touch tried; {failed}; fi")
    assert bench.run(idle_seconds=0.9)["reason"] == "ok"
    assert any(text.endswith("429 Too Many Requests. Trying again in 1 s.") for text in bench.texts())


def test_a_build_with_a_private_base_image_is_tried_once(bench: Bench) -> None:
    failed = JSON_LINE % ("Using", "building") + f"echo '{NO_BASE % '401 Unauthorized'}'; exit 1"
    bench.repo2docker(f"echo built >> builds; {failed}")
    assert bench.run()["reason"] == "base_image_private"
    assert (bench.directory / "builds").read_text() == "built\n"


def test_a_lasting_failure_of_a_push_is_tried_once(bench: Bench) -> None:
    bench.docker(push="echo pushed >> pushes; echo 'name unknown: no such repository'; exit 1")
    result = bench.run(push_retries=4)
    assert (result["reason"], result["exit_code"]) == ("push_rejected", 74)
    assert (bench.directory / "pushes").read_text() == "pushed\n"


def test_the_verdict_is_in_the_result_and_not_in_the_log(bench: Bench) -> None:
    bench.repo2docker("echo first; exit 1")
    result = bench.run()
    assert result["message"]
    assert bench.texts() == ["first"]


def test_secrets_are_removed_from_the_verdict(bench: Bench) -> None:
    step = 'process "/bin/sh -c login hunter2hunter2" did not complete successfully: exit code: 1'
    bench.repo2docker(JSON_LINE % ("Using", "building") + f"echo 'ERROR: failed to solve: {step}'; exit 1")
    result = bench.run(build_args={"PASSWORD": "hunter2hunter2"})
    assert (result["message"], result["failed_step"]) == (
        "The step `RUN login ***` ended with exit code 1.",
        "RUN login ***",
    )


def test_every_reason_of_the_builder_is_in_the_schemas() -> None:
    assert set(EXIT_CODES) - {"ok", "cancelled"} <= {reason.value for reason in FailureReason}


def test_an_encoded_result_never_exceeds_its_maximum_size() -> None:
    for key in ("message", "failed_step", "image"):
        data = encode_result({"reason": "ok", "message": "", key: "\N{SNOWMAN}" * 5000})
        assert len(data) <= MAX_RESULT_BYTES
        assert json.loads(data)["reason"] == "ok"
