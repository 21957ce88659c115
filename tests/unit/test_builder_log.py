"""Lines of the builder's log: coalesced where a program rewrites them, and without values that must stay secret."""

import base64
import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.builder import BUILDER_COMMAND, BUILDER_PATH, builder
from rabbit2docker.consumer.builder.builder import (
    REWRITE_SECONDS,
    RewrittenLines,
    clean_text,
    encode_lines,
    known_secrets,
)
from rabbit2docker.consumer.executors.builder_io import parse_line
from tests.chaos.clock import find_library

PASSWORD = "p@ss/w0'rd+x"


class Written:
    """The lines that RewrittenLines writes while its clock is turned by hand."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 100.0
        self.rewritten = RewrittenLines(self.lines.append, clock=lambda: self.now)

    def feed(self, *texts: str, seconds: float = 0.0) -> list[str]:
        """Feed texts, `seconds` apart, and return all lines so far."""
        for text in texts:
            self.rewritten.feed(text)
            self.now += seconds
        return self.lines


def test_three_thousand_states_of_one_line_become_a_handful_of_lines_with_the_last() -> None:
    states = [f"{number}%\r" for number in range(3000)]
    written = Written().feed(f"#5 0.627 {states[0]}", *states[1:], "3000%\r\n", seconds=20 / 3000)
    assert 3 <= len(written) <= 6
    assert written[-1] == "#5 0.627 3000%"
    assert all(line.startswith("#5 0.627 ") for line in written)


def test_lines_that_are_not_rewritten_pass_at_once() -> None:
    assert Written().feed("Using DockerBuildPack builder\n", "#1 DONE 0.0s\n", "plain") == [
        "Using DockerBuildPack builder",
        "#1 DONE 0.0s",
        "plain",
    ]


def test_a_text_of_several_lines_keeps_each_of_them() -> None:
    assert Written().feed("one\ntwo\r\n\nthree 1\rthree 2\nfour") == ["one", "two", "three 2", "four"]


def test_the_last_state_stays_when_another_step_speaks_or_the_output_ends() -> None:
    written = Written()
    assert written.feed("#5 0.1 half\r", "#6 0.2 other\n") == ["#5 0.1 half", "#6 0.2 other"]
    written.feed("#5 0.3 \r", "done 99%\r", "   \r")
    written.rewritten.end_line()
    assert written.lines[2:] == ["#5 0.3 done 99%"]


def test_a_state_that_was_shown_is_not_repeated_at_the_end_of_its_line() -> None:
    written = Written()
    written.feed("10%\r", seconds=REWRITE_SECONDS)
    assert written.feed("20%\r", "20%\r\n") == ["20%"]


@given(st.lists(st.text(alphabet="ab# 1.\r\n", max_size=12), max_size=8))
def test_the_last_state_of_every_line_is_written(texts: list[str]) -> None:
    written = Written()
    written.feed("".join(texts))
    written.rewritten.end_line()
    expected = [
        states[-1]
        for line in "".join(texts).split("\n")
        if (states := [state for state in line.split("\r") if state.strip()])
    ]
    assert written.lines == expected


@pytest.mark.parametrize(
    "line",
    [
        "docker build --build-arg TOKEN=abc .",
        "docker build --build-arg=TOKEN=abc .",
        "docker build --build-arg TOKEN='abc' .",
        'docker build --build-arg TOKEN="abc \\" abc" .',
        "docker build --build-arg 'TOKEN=abc abc' .",
        "['docker', '--build-arg', 'TOKEN=abc abc', '.']",
        """['docker', '--build-arg', "TOKEN=it's abc", '.']""",
        r"""['docker', '--build-arg', 'TOKEN=abc\' "abc', '.']""",
        "['docker', '--build-arg', 'TOKEN=abc",
    ],
)
def test_command_lines_show_the_names_of_build_arguments_without_the_values(line: str) -> None:
    cleaned = clean_text(line)
    assert "abc" not in cleaned
    assert "TOKEN=***" in cleaned
    assert cleaned.endswith((".", "'.']", "***"))


@pytest.mark.parametrize("prefix", ["", "x", "xy", "user:"])
def test_values_of_build_arguments_are_redacted_in_every_encoding(prefix: str) -> None:
    secrets = known_secrets(
        {"build_args": {"A": PASSWORD, "B": "true", "C": "3.11", "D": "multi\nline-value-two"}}, {}
    )
    for line in (
        f"{prefix}{PASSWORD} is here",
        f"https://git.example/?token={prefix}{quote(PASSWORD, safe='')}&x",
        f"Basic: {base64.b64encode((prefix + PASSWORD).encode()).decode()}",
        f"Basic: {base64.urlsafe_b64encode((prefix + PASSWORD + 'tail').encode()).decode()}",
        f"https://git.example/?token={prefix}{quote(PASSWORD, safe='').lower()}&x",
        json.dumps({"password": prefix + PASSWORD}),
        repr({"password": prefix + PASSWORD, "other": '"'}),
        f"+ curl --user {shlex.quote(prefix + PASSWORD)}",
        r"+ curl --user 'user:p@ss/w0'\''rd+x'",
        "see line-value-two",
    ):
        cleaned = clean_text(line, secrets)
        assert "***" in cleaned
        assert PASSWORD not in cleaned
        assert not any(secret in cleaned for secret in secrets)
    assert clean_text("true 3.11 multi", secrets) == "true 3.11 multi"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clone https://ada:to/ken@git.example/a", "clone https://***@git.example/a"),
        ("clone https://ada:p/q/r+s=@git.example/a", "clone https://***@git.example/a"),
        (
            "GET https://git.example/a?private_token=abc&x=1",
            "GET https://git.example/a?private_token=***&x=1",
        ),
        ("GET https://s3.example/a?X-Amz-Signature=abc", "GET https://s3.example/a?X-Amz-Signature=***"),
        ('{"Authorization": "Bearer abc"}', '{"Authorization": "Bearer ***"}'),
        ("{'authorization': 'Basic abc=='}", "{'authorization': 'Basic ***'}"),
        ("> Authorization: token abc", "> Authorization: token ***"),
        ("see https://git.example:8443/owner/repo@main", "see https://git.example:8443/owner/repo@main"),
        ("see https://git.example/a?keyword=abc", "see https://git.example/a?keyword=abc"),
    ],
)
def test_credentials_in_addresses_and_headers_are_redacted_however_they_are_written(
    line: str, expected: str
) -> None:
    assert clean_text(line).replace("https://ada:***@", "https://***@") == expected


def test_credentials_of_registries_and_git_are_redacted(tmp_path: Path) -> None:
    pair = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    config = {"auths": {"registry.example": {"auth": pair}, "other.example": {"identitytoken": "identity-1"}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "git").write_text("https://ada:git%2Fsecret@git.example\n")
    (tmp_path / ".netrc").write_text("machine git.example login ada password netrc-secret\n")
    environment = {
        "DOCKER_CONFIG": str(tmp_path),
        "HOME": str(tmp_path),
        "GIT_CONFIG_VALUE_0": f"store --file={tmp_path / 'git'}",
        "GIT_CONFIG_VALUE_1": "Authorization: Bearer header-secret",
    }
    secrets = known_secrets({}, environment)
    said = f"{PASSWORD} {pair} identity-1 git%2Fsecret git/secret netrc-secret header-secret ada"
    assert clean_text(said, secrets) == "*** *** *** *** *** *** *** ada"


def test_credentials_in_the_configuration_of_git_are_redacted(tmp_path: Path) -> None:
    (tmp_path / "stored").write_text("https://ada:stored-secret@git.example\n")
    (tmp_path / "more").write_text(
        '[http "https://a.example"]\n\textraHeader = "PRIVATE-TOKEN: included-secret"\n'
    )
    basic = base64.b64encode(b"x-access-token:basic-secret").decode()
    (tmp_path / ".gitconfig").write_text(
        f"""[include]
    path = more
[url "https://ada:instead-secret@git.example/"]
    insteadOf = https://git.example/
[url "https://ghp_0123456789abcdef@other.example/"]
    insteadOf = https://other.example/
[http "https://b.example"]
    extraHeader = "Authorization: Basic {basic}"
[credential]
    helper = store --file {tmp_path / "stored"}
    helper = "!f() {{ echo username=me; echo password=helper-secret; }}; f"
"""
    )
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "https_proxy": "http://me:proxy-secret@proxy",
    }
    secrets = known_secrets({}, environment)
    said = [
        "stored-secret",
        "included-secret",
        "instead-secret",
        "ghp_0123456789abcdef",
        "basic-secret",
        basic,
    ]
    said += ["helper-secret", "proxy-secret"]
    assert [clean_text(text, secrets) for text in said] == ["***"] * len(said)
    assert clean_text("ada git.example", secrets) == "ada git.example"


def test_credentials_that_helpers_of_docker_have_are_redacted(tmp_path: Path) -> None:
    for name in ("one", "two"):
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(
            f'#!/bin/sh\nread server\necho "{{\\"Username\\": \\"me\\", \\"Secret\\": \\"{name}-$server-secret\\"}}"\n'
        )
        program.chmod(0o755)
    config = {
        "auths": {"a.example": {}, "b.example": {}},
        "credsStore": "one",
        "credHelpers": {"b.example": "two", "c.example": "missing"},
        "HttpHeaders": {"X-Meta": "header-secret"},
        "proxies": {"default": {"httpProxy": "http://me:proxy-secret@proxy"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = f"{tmp_path}:{os.environ['PATH']}"
    secrets = known_secrets({}, {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path), "PATH": path})
    said = ["one-a.example-secret", "two-b.example-secret", "header-secret", "proxy-secret"]
    assert [clean_text(text, secrets) for text in said] == ["***"] * len(said)


def test_helpers_of_docker_are_asked_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "HELPER_SECONDS", 120.0)
    program = tmp_path / "docker-credential-slow"
    # Each waits for all of them.
    program.write_text(
        f"""#!/bin/sh
read server
touch {tmp_path}/asked-$server
until [ $(ls {tmp_path} | grep -c asked) = 5 ]; do sleep 0.05; done
echo '{{"Username": "me", "Secret": "secret-of-'$server'"}}'
"""
    )
    program.chmod(0o755)
    servers = [f"{letter}.example" for letter in "abcde"]
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": dict.fromkeys(servers, "slow")}))
    path = f"{tmp_path}:{os.environ['PATH']}"
    secrets = known_secrets({}, {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path), "PATH": path})
    assert {f"secret-of-{server}" for server in servers} <= set(secrets)


def test_no_helper_is_asked_where_no_line_is_written(tmp_path: Path) -> None:
    for name, text in {
        "docker": "exit 1",
        "docker-credential-slow": f"touch {tmp_path}/asked",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "config.json").write_text('{"credHelpers": {"a.example": "slow"}}')
    environment = {**os.environ, "DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [*BUILDER_COMMAND, "--check-engine", "5"]
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 75
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"auths": 1}', '{"auths": {"a": {"auth": "%%%"}, "b": null}}']
)
def test_an_unreadable_configuration_holds_no_secrets(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert set(known_secrets({}, {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)})) <= {"%%%"}


def test_a_clipped_line_says_so_to_programs() -> None:
    [data] = encode_lines(3, "2026-01-01T00:00:00Z", "building", "dropped", is_clipped=True)
    line = parse_line(data)
    assert line is not None
    assert line.clipped


@pytest.mark.parametrize("taken", [0, 20])
def test_a_line_that_the_disk_had_no_space_for_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """The disk takes so many bytes of a line, and the builder has lines to write once there is space again."""
    path = tmp_path / "log.jsonl"
    log = builder.Log(str(path))
    log.write("building", "before")
    space = taken

    def write(fd: int, data: bytes) -> int:
        nonlocal space
        if space <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real_write(fd, data[:space])
        space -= count
        return count

    real_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        full.setattr(builder, "DISK_PATIENCE", 0.0)
        with pytest.raises(builder.AttemptEnded) as refused:
            log.write("building", "during")
        assert refused.value.reason == "disk_full"
    log.write("building", "after")
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["text"] for line in lines] == ["before", *(["during"] if taken else []), "after"]
    assert [line["n"] for line in lines] == list(range(log.number))


def test_a_line_that_was_cut_is_whole_once_there_is_space_whatever_ended_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as `time.sleep` itself, which fails where libfaketime sets the clock of a process."""
    path = tmp_path / "log.jsonl"
    log = builder.Log(str(path))
    real_write = os.write

    def write(fd: int, data: bytes) -> int:
        if path.stat().st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[:20])

    def sleep(_: float) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        full.setattr(builder, "sleep", sleep)
        with pytest.raises(ValueError, match="a defect"):
            log.write("building", "during")
    log.write("building", "after")
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(line["n"], line["text"]) for line in lines] == [(0, "during"), (1, "after")]
    assert log.number == 2


def test_a_wait_for_space_needs_no_clock_that_can_be_set() -> None:
    library = find_library()
    if library is None:
        pytest.skip("libfaketime is needed")
    program = (
        f"import sys; sys.path.append({str(BUILDER_PATH.parent)!r}); import builder; builder.sleep(0.01)"
    )
    environment = {"LD_PRELOAD": str(library), "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    assert subprocess.run([sys.executable, "-I", "-S", "-c", program], env=environment).returncode == 0


def test_a_result_that_fits_only_in_part_waits_for_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    real_write, tried = os.pwrite, []

    def write(fd: int, data: bytes, offset: int) -> int:
        tried.append(data)
        return real_write(fd, data[:10] if len(tried) == 1 else data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(builder, "DISK_PAUSE", 0.0)
    builder.ResultFile(str(path)).write({"reason": "ok", "message": "The image is in the registry."})
    assert json.loads(path.read_text())["reason"] == "ok"
    assert len(tried) == 2
