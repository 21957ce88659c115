#!/usr/bin/env python3
"""The builder: runs repo2docker and `docker push` for one attempt, numbers every line, and says how it ended.

One file, standard library only, Python 3.9 or newer: it also runs inside the repo2docker image, as PID 1 of a pod.

Lines go to --log (or standard output), one JSON object each: {"n": 0, "ts": "…", "phase": "building", "text": "…"}.
The result goes to --result (or /dev/termination-log): one JSON object of less than 2 KB, written after the last line.

Exit codes: 0 pushed · 64 bad spec · 65 fetching failed · 66 no environment found · 69 defect of the builder ·
70 build step failed · 71 out of memory · 74 push failed · 75 Docker engine away, disk full, image gone ·
124 deadline or idle limit · 143 cancelled.
"""

# Newer spellings would not run on Python 3.9; and whatever breaks, the result has to be written.
# ruff: noqa: UP006, UP017, UP035, BLE001

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from types import FrameType
from typing import Any, Callable, Dict, Iterable

Spec = Dict[str, Any]
Result = Dict[str, Any]
OnLine = Callable[[str], object]

VERSION = "1"
MAX_LINE_BYTES = 8192
MAX_RESULT_BYTES = 2000
MAX_OPEN_LINE = 1 << 20  # bytes of a line without end that are kept before they are told
TERM_GRACE = 8.0  # seconds between SIGTERM and SIGKILL to children
DRAIN_SECONDS = 2.0  # how long a pipe may stay open after the child has ended
PROGRESS_SECONDS = 0.5  # pause between two lines about the same progress
DISK_PATIENCE = 120.0  # seconds a full disk under the log is waited for
PUSH_PAUSES = (1.0, 3.0, 8.0, 20.0)  # seconds before a push is tried again
ENGINE_CHECK_SECONDS = 5.0

EXIT_CODES = {
    "ok": 0,
    "bad_spec": 64,
    "fetch_failed": 65,
    "ref_not_found": 65,
    "repository_private": 65,
    "no_environment": 66,
    "builder_error": 69,
    "build_step_failed": 70,
    "build_out_of_memory": 71,
    "builder_out_of_memory": 71,
    "push_denied": 74,
    "push_failed": 74,
    "docker_unavailable": 75,
    "disk_full": 75,
    "image_missing": 75,
    "timeout": 124,
    "idle": 124,
    "cancelled": 143,
}
PHASES = ("waiting", "fetching", "building", "pushing")
PASSED_ON = re.compile(
    r"^(PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|DOCKER_\w+|GIT_\w+|SSL_\w+|\w*_CA_BUNDLE|PIP_\w+|XDG_\w+"
    r"|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|BUILDKIT_\w+|BUILDX_\w+|VIRTUAL_ENV|PYTHON\w+)$"
)

# --- Text ---------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
_CURSOR = re.compile(r"\x1b(?:\[[0-9;?]*[A-LN-Za-ln-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[^\[\]])")
_URL_CREDENTIALS = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s'\"?#]+@")
_AUTHORIZATION = re.compile(r"(?i)(authorization:?\s*(?:basic|bearer|token)\s+)\S+")


def clean_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a line fit to be shown: last state of a rewritten line, colours kept, secrets and controls gone."""
    if "\r" in text:
        parts = [part for part in text.split("\r") if part]
        text = parts[-1] if parts else ""
    text = _CONTROL.sub("", _CURSOR.sub("", text))
    text = _URL_CREDENTIALS.sub(r"\1***@", text)
    text = _AUTHORIZATION.sub(r"\1***", text)
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text.rstrip()


def encode_lines(
    number: int, stamp: str, phase: str, text: str, progress: dict[str, int] | None = None
) -> list[bytes]:
    """Return the JSON lines for a text: one, or several where it would be longer than MAX_LINE_BYTES."""
    line = {"n": number, "ts": stamp, "phase": phase, "text": text}
    if progress:
        line["progress"] = progress
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
    if len(data) <= MAX_LINE_BYTES:
        return [data]
    half = len(text) // 2
    first = encode_lines(number, stamp, phase, text[:half])
    return first + encode_lines(number + len(first), stamp, phase, text[half:], progress)


def now() -> str:
    """Return the time as RFC 3339 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- What went wrong ----------------------------------------------------------------------------------------


class Ended(Exception):
    """The attempt is over; carries the result's reason and message."""

    def __init__(self, reason: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.more = more


# First match wins. Wording seen from repo2docker 2026.4, docker 26 and 28, git 2.39 and 2.47.
_ENGINE_GONE = (
    r"Cannot connect to the Docker daemon|error reading from server: EOF|failed to receive status|error during connect"
    r"|transport is closing|dial unix .*sock|dial tcp .*connect: connection refused.*docker|client is closing"
    r"|[Dd]ocker commandline client must be installed|closing transport"
)
_DISK_FULL = r"[Nn]o space left on device|[Dd]isk quota exceeded"
_BEFORE_BUILDING = ("waiting", "fetching")  # later, a build step may print anything
FAILURES = (
    (PHASES, _ENGINE_GONE, "docker_unavailable", "The Docker engine went away during the build."),
    (PHASES, r"buildx plugin must be installed", "docker_unavailable", "The docker client lacks its buildx plugin."),
    (_BEFORE_BUILDING,
     r"could not read Username|Authentication failed|terminal prompts disabled|Permission denied \(publickey",
     "repository_private", "The repository asks for credentials."),
    (_BEFORE_BUILDING,
     r"Failed to check out ref|couldn't find remote ref|Remote branch .* not found|unknown revision|not our ref"
     r"|Could not parse object|reference is not a tree|'git', 'reset', '--hard', .* returned non-zero",
     "ref_not_found", "The repository has no such version."),
    (PHASES, r"Subdirectory .* does not exist", "no_environment", "The repository has no such subdirectory."),
    (PHASES, r"No environment specification found", "no_environment",
     "repo2docker found nothing to build in the repository."),
)  # fmt: skip
_STEP_FAILED = re.compile(r'process "(?P<step>.+?)" did not complete successfully: exit code: (?P<code>\d+)')
_BUILDKIT = re.compile(r"^#\d+ |failed to solve|ERROR: failed to build")
_PUSH_DENIED = re.compile(
    r"(?i)\bdenied\b|unauthorized|authentication required|no basic auth|forbidden|insufficient_scope|name invalid"
)
_PUSH_IMAGE_GONE = re.compile(r"(?i)image does not exist locally|No such image|tag does not exist")
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64}) size: (\d+)")
_LAYER = re.compile(r"^([0-9a-f]{12}): (.+)$")  # not longer: a tag is often 40 such digits
_STEP = re.compile(r"^#\d+ \[(?:[\w.-]+ +)?(\d+)/(\d+)\] ")


def classify_build(phase: str, lines: list[str], code: int) -> tuple[str, str, str | None]:
    """Return (reason, message, failed_step) for a repo2docker that ended with `code`, from its last lines."""
    text = "\n".join(lines)
    # A full disk shows in the words of whatever step meets it first, and is not that step's fault.
    if re.search(_DISK_FULL, text):
        return "disk_full", "The disk of the build machine is full.", None
    failed_steps = list(_STEP_FAILED.finditer(text))
    if failed_steps:
        step, step_code = failed_steps[-1]["step"], int(failed_steps[-1]["code"])
        shown = re.sub(r"^/bin/(?:ba)?sh -l?c ", "RUN ", step)[:300]
        if step_code == 137:
            return "build_out_of_memory", f"The step `{shown}` was killed, most likely out of memory.", shown
        return "build_step_failed", f"The step `{shown}` ended with exit code {step_code}.", shown
    for phases, pattern, reason, message in FAILURES:
        if phase in phases and re.search(pattern, text):
            return reason, message, None
    if code == -signal.SIGKILL:
        return "builder_out_of_memory", "repo2docker was killed, most likely out of memory.", None
    last = next((line for line in reversed(lines) if line.strip()), "")[:300]
    if phase in ("waiting", "fetching"):
        return "fetch_failed", f"The repository could not be fetched: {last}", None
    if any(_BUILDKIT.search(line) for line in lines):
        return "build_step_failed", f"The image could not be built: {last}", None
    return "no_environment", f"repo2docker cannot build the repository as it is: {last}", None


def classify_push(lines: list[str]) -> tuple[str, str]:
    """Return (reason, message) for a push that failed, from its output."""
    text = "\n".join(lines)
    last = next((line for line in reversed(lines) if line.strip()), "no message")[:300]
    if _PUSH_IMAGE_GONE.search(text):
        return "image_missing", "The image was removed from the Docker engine before it was pushed."
    if _PUSH_DENIED.search(text):
        return "push_denied", f"The registry refused the image: {last}"
    if re.search(_ENGINE_GONE, text):
        return "docker_unavailable", "The Docker engine went away during the push."
    return "push_failed", f"The image could not be pushed: {last}"


# --- Input and output ---------------------------------------------------------------------------------------


class Log:
    """Numbered lines. Each is one write to a file opened for appending, so a kill cannot tear those before it."""

    def __init__(self, path: str | None) -> None:
        self.number = 0
        # Asked while a full disk is waited for.
        self.give_up: Callable[[], bool] = lambda: False
        if path:
            self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._continue()
        else:
            self.fd = os.dup(1)

    def _continue(self) -> None:
        """Number on from what is there; a torn last line is ended, so that it does not spoil the next one."""
        last = b"\n"
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return
        while chunk := os.read(self.fd, 1 << 20):
            self.number += chunk.count(b"\n")
            last = chunk[-1:]
        if last != b"\n":
            self._write_all(b"\n")
            self.number += 1

    def write(self, phase: str, text: str, progress: dict[str, int] | None = None) -> None:
        """Write a text as one line or more; a full disk is waited for, then raised as Ended."""
        for data in encode_lines(self.number, now(), phase, text, progress):
            self._write_all(data)
            self.number += 1

    def _write_all(self, data: bytes) -> None:
        until = time.monotonic() + DISK_PATIENCE
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except OSError as error:
                if not is_full(error) or self.give_up() or time.monotonic() > until:
                    raise Ended("disk_full", f"The log cannot be written: {error.strerror}.") from error
                time.sleep(1)


def is_full(error: BaseException) -> bool:
    """Tell whether an error means that there is no space."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class ResultFile:
    """Where the result goes. Its space is taken at the beginning, so that a disk which fills up can still hold it."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.temporary = f"{path}.new" if path and not path.startswith("/dev/") else None
        if self.temporary:
            # Where this fails, space is waited for at the end.
            with contextlib.suppress(OSError):
                self._fill(self.temporary, None)

    def write(self, result: Result) -> None:
        """Write the result, as one step where the directory allows it; a full disk is waited for."""
        data = encode_result(result)
        if self.path and not self.temporary:
            with open(self.path, "wb") as file:
                file.write(data)
        until = time.monotonic() + DISK_PATIENCE
        while self.path and self.temporary:
            try:
                self._fill(self.temporary, data)
                os.rename(self.temporary, self.path)
                return
            except OSError as error:
                if not is_full(error) or time.monotonic() > until:
                    raise
                time.sleep(1)

    @staticmethod
    def _fill(path: str, data: bytes | None) -> None:
        # Not truncated before it is written: that would give back the space.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if data is None:
                os.posix_fallocate(fd, 0, MAX_RESULT_BYTES)
                return
            os.truncate(fd, os.pwrite(fd, data, 0))
            os.fsync(fd)
        finally:
            os.close(fd)


def encode_result(result: Result) -> bytes:
    """Return the result as at most MAX_RESULT_BYTES of JSON; shortens its texts where they are too long."""
    result = dict(result)
    while True:
        data = (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        key = max(("message", "failed_step", "image"), key=lambda name: len(result.get(name) or ""))
        if len(data) <= MAX_RESULT_BYTES or not result.get(key):
            return data
        result[key] = result[key][: len(result[key]) * 2 // 3]


# --- Children -----------------------------------------------------------------------------------------------


class Guard:
    """A process of its own that ends the children should the builder be killed without a chance to do so."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writer)
            self._watch(reader)
        os.close(reader)
        os.set_inheritable(self.writer, False)

    @staticmethod
    def _watch(reader: int) -> None:
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            # Above all the builder's own files: what waits for its end must not wait for the guard.
            for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
                if fd != reader:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            group, news = 0, b""
            while data := os.read(reader, 4096):
                *lines, news = (news + data).split(b"\n")
                group = int(lines[-1]) if lines else group
            if group:
                for number, pause in ((signal.SIGTERM, 3), (signal.SIGKILL, 0)):
                    os.killpg(group, number)
                    time.sleep(pause)
        except Exception:
            pass
        finally:
            os._exit(0)

    def watch(self, group: int) -> None:
        """Name the process group to end; 0 for none."""
        os.write(self.writer, b"%d\n" % group)

    def close(self) -> None:
        """Dismiss the guard."""
        self.watch(0)
        os.close(self.writer)
        os.waitpid(self.pid, 0)


class Attempt:
    """One attempt from beginning to end."""

    def __init__(self, spec: Spec, log: Log) -> None:
        self.spec = spec
        self.log = log
        self.phase = "waiting"
        self.timings: dict[str, float] = {}
        self.entered = self.started = self.last_line = time.monotonic()
        self.tail: list[str] = []
        self.stopped_by: int | None = None
        self.workdir = self._make_workdir()
        self.environment = self._environment()
        self.waker, waked = socket.socketpair()
        self.waker.setblocking(False)
        waked.setblocking(False)
        self.wakened = waked
        self.guard = Guard()
        signal.set_wakeup_fd(waked.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes _select when a child ends
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        log.give_up = lambda: self.stopped_by is not None

    def _make_workdir(self) -> str:
        if not self.spec.get("workdir"):
            return tempfile.mkdtemp(prefix="r2d-")
        path = str(self.spec["workdir"])
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
        environment.update(
            TMPDIR=self.workdir,
            GIT_TERMINAL_PROMPT="0",
            GIT_SSH_COMMAND="ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new",
            PYTHONUNBUFFERED="1",
            BUILDKIT_PROGRESS="plain",
        )
        if self.spec.get("docker_host"):
            environment["DOCKER_HOST"] = self.spec["docker_host"]
        return environment

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number

    # -- lines

    def enter(self, phase: str) -> None:
        """Go on to a phase, and book the time spent in the one before."""
        if phase != self.phase:
            moment = time.monotonic()
            self.timings[self.phase] = round(self.timings.get(self.phase, 0.0) + moment - self.entered, 3)
            self.phase, self.entered = phase, moment

    def say(self, text: str, progress: dict[str, int] | None = None) -> None:
        """Write a text as lines of the current phase."""
        for line in text.split("\n"):
            line = clean_text(line, self.spec.get("redact") or ())
            if line:
                self.tail = [*self.tail[-79:], line]
                self.log.write(self.phase, line, progress)

    # -- time

    def _limit(self) -> tuple[float, str]:
        """Return the moment of the next deadline and what it means."""
        limits = []
        if self.spec.get("timeout_seconds"):
            limits.append((self.started + self.spec["timeout_seconds"], "timeout"))
        if self.spec.get("idle_seconds"):
            limits.append((self.last_line + self.spec["idle_seconds"], "idle"))
        return min(limits, default=(float("inf"), ""))

    def check(self) -> None:
        """Raise Ended when a signal came or a deadline has passed."""
        if self.stopped_by is not None:
            raise Ended("cancelled", "The build was cancelled.", signal=int(self.stopped_by))
        moment, reason = self._limit()
        if time.monotonic() >= moment:
            seconds = self.spec[f"{reason}_seconds"]
            said = {
                "timeout": f"The build took longer than {seconds} seconds and was ended.",
                "idle": f"The build printed nothing for {seconds} seconds and was ended.",
            }
            raise Ended(reason, said[reason])

    def pause(self, seconds: float) -> None:
        """Sleep, but wake for signals and deadlines; a pause of our own is not idleness."""
        until = time.monotonic() + seconds
        self.last_line = until
        while time.monotonic() < until:
            self.check()
            self._select([], min(until, self._limit()[0]))
        self.check()

    def _select(self, fds: list[int], until: float) -> list[int]:
        """Wait until one of `fds` can be read, a signal comes, or `until`; return the ready ones."""
        timeout = max(0.0, min(until - time.monotonic(), 3600.0))
        waker = self.waker.fileno()
        ready = select.select([*fds, waker], [], [], timeout)[0]
        if waker in ready:
            with contextlib.suppress(BlockingIOError):
                self.waker.recv(4096)
        return [fd for fd in ready if fd != waker]

    # -- children

    def run(self, command: list[str], on_line: OnLine, seconds: float | None = None) -> int:
        """Run a command and hand over each line it prints; return its code.

        Raises Ended for signals and deadlines. After `seconds` it is ended, and its code is that of the signal.
        """
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.workdir,
                start_new_session=True,
            )
        except OSError as error:
            on_line(f"{command[0]}: {error.strerror}")
            return 127
        output = child.stdout
        assert output is not None
        self.guard.watch(child.pid)
        self.last_line = time.monotonic()
        try:
            if not self._read(child, output.fileno(), on_line, time.monotonic() + (seconds or float("inf"))):
                self._end(child)
        except Ended:
            self._end(child)
            raise
        finally:
            # Before the child is waited for: until then nobody else can have its number.
            self._end_group(child.pid, signal.SIGKILL)
            child.wait()
            output.close()
            self.guard.watch(0)
            self._reap()
        return child.returncode

    def _read(self, child: subprocess.Popen[bytes], fd: int, on_line: OnLine, until: float) -> bool:
        """Read to the end of the output and of the child; False when `until` comes before."""
        rest, is_open, drained = b"", True, float("inf")
        while is_open or not self._has_exited(child):
            self.check()
            moment = time.monotonic()
            if moment >= until:
                return False
            if drained == float("inf") and self._has_exited(child):
                # A grandchild may hold the pipe open: what it still has to say must come soon.
                drained = moment + DRAIN_SECONDS
            if moment >= drained:
                break
            if self._select([fd] if is_open else [], min(self._limit()[0], until, drained)):
                data = os.read(fd, 65536)
                self.last_line = time.monotonic()
                rest = self._hand_over(rest + data, on_line)
                is_open = bool(data)
        if rest:
            on_line(rest.decode("utf-8", "replace"))
        return True

    @staticmethod
    def _hand_over(data: bytes, on_line: OnLine) -> bytes:
        """Hand over the whole lines, return the rest."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            on_line(line.decode("utf-8", "replace"))
        if b"\r" in rest:
            # Progress that rewrites its line, maybe for hours: only its last state will be shown.
            head, _, tail = rest.rpartition(b"\r")
            rest = head.rpartition(b"\r")[2] + b"\r" + tail
        if len(rest) > MAX_OPEN_LINE:
            on_line(rest.decode("utf-8", "replace"))
            rest = b""
        return rest

    @staticmethod
    def _has_exited(child: subprocess.Popen[bytes]) -> bool:
        """Tell whether the child has ended, and leave it to be waited for."""
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        self._end_group(child.pid, signal.SIGTERM)
        until = time.monotonic() + TERM_GRACE
        while not self._has_exited(child) and time.monotonic() < until:
            self._select([], until)

    @staticmethod
    def _end_group(group: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)

    def _reap(self) -> None:
        """Collect orphans that became children of PID 1."""
        while os.getpid() == 1:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] in (0, self.guard.pid):
                    return
            except ChildProcessError:
                return

    # -- steps

    def wait_for_engine(self) -> None:
        """Wait until the Docker engine answers."""
        patience = self.spec.get("docker_wait_seconds", 60)
        give_up = time.monotonic() + patience
        told = False
        while True:
            output: list[str] = []
            left = max(1.0, give_up - time.monotonic())
            command = ["docker", "version", "--format", "{{.Server.Version}}"]
            if self.run(command, output.append, left) == 0:
                return
            if not told:
                where = self.environment.get("DOCKER_HOST", "its default socket")
                self.say(f"Waiting for the Docker engine at {where}: {' '.join(output)[-300:]}")
                told = True
            if time.monotonic() >= give_up:
                raise Ended("docker_unavailable", f"The Docker engine did not answer for {patience} seconds.")
            self.pause(min(1.0, max(0.0, give_up - time.monotonic())))

    def build(self) -> None:
        """Run repo2docker."""
        self.enter("fetching")
        code = self.run(self._repo2docker(), self._on_build_line)
        if code != 0:
            reason, message, step = classify_build(self.phase, self.tail, code)
            if reason == "ref_not_found" and self.spec.get("ref"):
                message = f"The repository has no version {self.spec['ref']}."
            raise Ended(reason, message, failed_step=step)

    def _repo2docker(self) -> list[str]:
        spec = self.spec
        if spec.get("repo2docker_command"):
            return list(spec["repo2docker_command"])
        provider = spec.get("content_provider") or "Git"
        if not provider.isidentifier():
            raise Ended("bad_spec", f"{provider!r} is not the name of a content provider.")
        config = os.path.join(self.workdir, "repo2docker_config.py")
        with open(config, "w", encoding="utf-8") as file:
            # By default other providers ask third-party hosts about the URL before Git is tried.
            file.write(f"from repo2docker.contentproviders import {provider}\n")
            file.write(f"c.Repo2Docker.content_providers = [{provider}]\n")
        command = [
            spec.get("python") or sys.executable,
            "-m",
            "repo2docker",
            "--config",
            config,
            "--json-logs",
        ]
        command += ["--no-run", "--user-name", spec.get("user_name", "jovyan")]
        command += ["--user-id", str(spec.get("user_id", 1000)), "--image-name", spec["image"]]
        for option, value in (("--ref", "ref"), ("--subdir", "subdir"), ("--appendix", "appendix")):
            if spec.get(value):
                command += [option, spec[value]]
        for option, values in (("--build-arg", "build_args"), ("--label", "labels")):
            for name, value in (spec.get(values) or {}).items():
                command += [option, f"{name}={value}"]
        return [*command, *(spec.get("repo2docker_args") or []), "--", spec["repo_url"]]

    def _on_build_line(self, raw: str) -> None:
        text, phase = raw, None
        if raw.startswith("{"):
            try:
                line = json.loads(raw)
                text, phase = str(line["message"]), line.get("phase")
            except (ValueError, KeyError, TypeError):
                pass
        if phase in PHASES and PHASES.index(phase) > PHASES.index(self.phase):
            self.enter(phase)
        match = _STEP.match(text)
        self.say(text, {"step": int(match[1]), "steps": int(match[2])} if match else None)

    def push(self) -> str | None:
        """Push the image, again if what failed may pass; return its digest, or None where the push did not say it."""
        self.enter("pushing")
        pauses = [*PUSH_PAUSES, *([PUSH_PAUSES[-1]] * 10)][: self.spec.get("push_retries", 4)]
        for pause in [*pauses, None]:
            pusher = Pusher(self)
            code = self.run(["docker", "push", self.spec["image"]], pusher.on_line)
            pusher.report(force=True)
            if code == 0:
                return pusher.digest
            reason, message = classify_push(pusher.lines)
            if reason in ("push_denied", "image_missing") or pause is None:
                raise Ended(reason, message)
            self.say(f"{message} Trying again in {pause:.0f} s.")
            self.pause(pause)
        raise AssertionError("unreachable")

    def image_size(self) -> int | None:
        """Return the bytes of the image in the engine, or None."""
        output: list[str] = []
        code = self.run(
            ["docker", "image", "inspect", "--format", "{{.Size}}", self.spec["image"]], output.append
        )
        return int(output[0]) if code == 0 and output and output[0].isdigit() else None

    def carry_out(self) -> Result:
        """Do it all; return the result's own part."""
        self.wait_for_engine()
        self.build()
        size = self.image_size()
        digest = self.push() if self.spec.get("push", True) else None
        return {"digest": digest, "size": size}

    def close(self) -> None:
        """Remove the working directory and dismiss the guard."""
        signal.set_wakeup_fd(-1)
        self.guard.close()
        shutil.rmtree(self.workdir, ignore_errors=True)


class Pusher:
    """Reads the output of `docker push`: counts layers, finds the digest."""

    DONE = ("Pushed", "Layer already exists", "Mounted from")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.layers: dict[str, bool] = {}
        self.lines: list[str] = []
        self.digest: str | None = None
        self.reported_at = 0.0
        self.reported: tuple[int, int] | None = None

    def on_line(self, raw: str) -> None:
        """Take one line: progress of a layer is counted, everything else is told."""
        match = _LAYER.match(raw.strip())
        if match and not _DIGEST.search(raw):
            self.layers[match[1]] = match[2].startswith(self.DONE)
            self.report()
            return
        self.lines = [*self.lines[-39:], raw]
        found = _DIGEST.search(raw)
        if found:
            self.report(force=True)
            self.digest = found[1]
        self.attempt.say(raw)

    def report(self, force: bool = False) -> None:
        """Tell how many layers are pushed, at most twice a second."""
        done, total = sum(self.layers.values()), len(self.layers)
        moment = time.monotonic()
        if (done, total) == self.reported or not total:
            return
        if force or moment - self.reported_at >= PROGRESS_SECONDS:
            self.reported, self.reported_at = (done, total), moment
            self.attempt.say(f"Pushed {done} of {total} layers", {"layers_done": done, "layers_total": total})


# --- Main ---------------------------------------------------------------------------------------------------


def read_spec(arguments: argparse.Namespace) -> Spec:
    """Return the spec; raises Ended(bad_spec)."""
    try:
        if arguments.spec_env:
            spec: Any = json.loads(os.environ[arguments.spec_env])
        else:
            with open(arguments.spec, encoding="utf-8") as file:
                spec = json.load(file)
    except (OSError, ValueError, KeyError) as error:
        raise Ended("bad_spec", f"The builder cannot read its spec: {error!r}") from error
    if missing := [
        name for name in ("repo_url", "image") if not isinstance(spec, dict) or not spec.get(name)
    ]:
        raise Ended("bad_spec", f"The builder's spec lacks {' and '.join(missing)}.")
    return dict(spec)


def repo2docker_version(spec: Spec) -> str | None:
    """Return the version of repo2docker: as told, or of the one beside this interpreter, or None."""
    if spec.get("repo2docker_version"):
        return str(spec["repo2docker_version"])
    try:
        from importlib.metadata import version

        return version("jupyter-repo2docker")
    except Exception:
        return None


def attempt_result(arguments: argparse.Namespace) -> Result:
    """Run the attempt and return the result, whatever happens."""
    result: Result = {"v": 1, "reason": "builder_error", "message": "", "digest": None, "size": None}
    attempt = log = None
    spec: Spec = {}
    try:
        log = Log(arguments.log)
        spec = read_spec(arguments)
        result["image"] = spec["image"]
        attempt = Attempt(spec, log)
        result.update(attempt.carry_out(), reason="ok", message="The image is in the registry.")
    except Ended as end:
        result.update(end.more, reason=end.reason, message=end.message)
        if log and end.reason != "disk_full":
            _last_word(attempt, log, end.message)
    except BaseException as error:
        if is_full(error):
            result.update(reason="disk_full", message=f"The disk of the build machine is full: {error}.")
        else:
            result.update(reason="builder_error", message=f"The builder broke: {error!r}")
    if attempt:
        result["phase"] = attempt.phase
        attempt.enter("over")
        result["timings"] = attempt.timings
        attempt.close()
    result["lines"] = log.number if log else 0
    result["exit_code"] = EXIT_CODES[result["reason"]]
    result["repo2docker_version"] = repo2docker_version(spec)
    return result


def _last_word(attempt: Attempt | None, log: Log, message: str) -> None:
    try:
        if attempt:
            attempt.say(message)
        else:
            log.write("waiting", clean_text(message))
    except Ended:
        pass


def main() -> int:
    """Parse the arguments, run the attempt, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="builder.py"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", metavar="FILE", help="JSON file that says what to build")
    source.add_argument("--spec-env", metavar="NAME", help="environment variable with that JSON, for pods")
    parser.add_argument("--log", metavar="FILE", help="append lines to this file instead of standard output")
    parser.add_argument(
        "--result", metavar="FILE", help="write the result there (default: /dev/termination-log)"
    )
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args()
    target = arguments.result or ("/dev/termination-log" if os.path.exists("/dev/termination-log") else None)
    place = ResultFile(target)
    result = attempt_result(arguments)
    place.write(result)
    return int(result["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
