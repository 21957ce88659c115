#!/usr/bin/env python3
"""The builder: runs repo2docker and `docker push` for one attempt, numbers the lines, and writes a result.

One file, standard library only, Python 3.9 or newer: it also runs inside the repo2docker image, as PID 1 of a pod.

Lines go to --log (or standard output), one JSON object each: {"n": 0, "ts": "…", "phase": "building", "text": "…"}.
The result goes to --result (or /dev/termination-log): one JSON object of less than 2 KB, written after the last line.

Exit codes: 0 pushed · 64 bad spec · 65 fetching failed or refused · 66 no environment found · 69 defect of the builder ·
70 build step failed, base image missing · 71 out of memory · 74 push failed · 75 Docker engine or registry of the base
image unavailable, disk full, image removed ·
124 deadline or idle limit · 143 cancelled.
"""

# Python 3.9 lacks newer spellings, and the result has to be written after any failure.
# ruff: noqa: UP006, UP007, UP017, UP035, UP045, BLE001

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import errno
import fcntl
import functools
import ipaddress
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.parse
from datetime import datetime, timezone
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    TypeVar,
    Union,
)

if TYPE_CHECKING:  # their import takes as long as all others; functions do it that need them
    import http.client
    import ssl

Spec = Dict[str, Any]
Result = Dict[str, Any]
OnLine = Callable[[str], object]
Progress = Dict[str, int]
WriteLine = Callable[[str, Optional[Progress]], object]
T = TypeVar("T")
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

VERSION = "1"
MAX_LINE_BYTES = 8192
ORIGIN = {
    "created": "org.opencontainers.image.created",
    "version": "org.opencontainers.image.version",
    "request_id": "io.rabbit2docker.request-id",
    "build_id": "io.rabbit2docker.build-id",
    "builder": "io.rabbit2docker.version",
}  # labels that the result repeats
NAME_LABEL = "io.rabbit2docker.image"
MAX_RESULT_BYTES = 2000
MAX_WARNINGS = 3
MAX_WARNING = 250  # characters
MAX_OPEN_LINE = 1 << 20  # bytes of an unfinished line that are kept before they become a line of their own
TERM_GRACE = 8.0  # seconds between SIGTERM and SIGKILL for children
DRAIN_SECONDS = 2.0  # time that a pipe may stay open after the child has ended
PROGRESS_SECONDS = 0.5  # pause between two lines about progress of a push
REWRITE_SECONDS = 5.0  # pause between two states of a line that is rewritten with carriage returns
GATE_PAUSE = 0.05  # seconds between two looks whether images are still being removed
CLEANING_SECONDS = 600.0  # time that a cleaning of the engine's disk may take
CLEANING_PAUSE = 0.1
DISK_PATIENCE = 120.0  # seconds to wait for space on a full disk
DISK_PAUSE = 1.0  # seconds between two looks whether there is space
FULL_BELOW_BYTES = 32 << 20  # a step that met a full disk has often removed a little of what it wrote
FULL_BELOW_FILES = 100
FILLED_PER_SECOND = 2 << 30  # bytes that a fast disk takes; the more space is left, the later it is looked at
WATCH_SECONDS = (0.01, 1.0)  # shortest and longest time between two looks at the engine's disk
FULL_FOR = 60.0  # seconds for which a full disk explains what a build step prints
BASE_IMAGE_PAUSES = (
    1.0,
    5.0,
    15.0,
)  # seconds before a build is repeated whose base image could not be pulled
PUSH_PAUSES = (1.0, 3.0, 8.0, 20.0)  # seconds before a push is repeated; the last one recurs
ENGINE_CHECK_SECONDS = 10.0  # time that the engine has to answer after a build has failed
COMMAND_NOT_FOUND = 127  # as the shell returns it

EXIT_CODES = {
    "ok": 0,
    "bad_spec": 64,
    "fetch_failed": 65,
    "fetch_interrupted": 65,
    "submodule_failed": 65,
    "unsafe_repository": 65,
    "repository_too_large": 65,
    "ref_not_found": 65,
    "repository_private": 65,
    "credentials_refused": 65,
    "host_key_refused": 65,
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
    "engine_error": 75,
    "lookup_failed": 75,
    "base_image_unavailable": 75,
    "base_image_missing": 70,
    "base_image_private": 70,
    "push_rejected": 74,
    "timeout": 124,
    "idle": 124,
    "cancelled": 143,
}
PHASES = ("waiting", "fetching", "building", "pushing")
# Arguments of the operator that this program has to merge with its own.
_BUILD_OPTION = "--DockerEngine.extra_buildx_build_args"
INHERITED = re.compile(
    r"^(PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|DOCKER_\w+|GIT_\w+|SSL_\w+|\w*_CA_BUNDLE|PIP_\w+|XDG_\w+"
    r"|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|BUILDKIT_\w+|BUILDX_\w+|VIRTUAL_ENV|PYTHON\w+)$"
)

# --- Text ---------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
_CURSOR = re.compile(r"\x1b(?:\[[0-9;?]*[A-LN-Za-ln-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[^\[\]])")
# Matches begin at a fixed text, and repetitions are limited or cannot overlap: the time for a line must not grow with the
# square of its length.
_URL_CREDENTIALS = re.compile(r"(://)[^/\s'\"?#]+@")
# A password with a slash is not correct there, and is pasted nevertheless. A port is no password.
_URL_SLASHED_PASSWORD = re.compile(r"(://[^/\s'\"?#@:]{0,200}:)(?!\d{1,5}/)[^\s'\"@]{1,300}@")
_URL_TOKEN = re.compile(
    r"(?i)([?&](?:[\w-]{0,40}[_-])?(?:token|key|apikey|password|passwd|secret|sig|signature)=)[^&\s'\"#]+"
)
_AUTHORIZATION = re.compile(
    r"(?i)(authorization['\"]?\s{0,5}[:=]?\s{0,5}['\"]?(?:basic|bearer|token)\s{1,5})[^\s'\"]+"
)
# Of a command line, or of its Python list: `--build-arg NAME=value`, `'--build-arg', 'NAME=value'`.
_BUILD_ARGUMENT = re.compile(
    r"""(--build-arg(?:['"],\ |[= ])(?P<quote>['"])\w+=)(?:\\.|(?!(?P=quote)).)*"""
    r"""|(--build-arg[= ]\w+=)(?:'[^']*'?|"(?:\\.|[^"\\])*"?|\S*)"""
)


def clean_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a line as users may see it: the last state of a rewritten line, without secrets and control characters.

    Colours are kept.
    """
    if "\r" in text:
        parts = [part for part in text.split("\r") if part]
        text = parts[-1] if parts else ""
    text = _CONTROL.sub("", _CURSOR.sub("", text))
    text = _URL_SLASHED_PASSWORD.sub(r"\1***@", _URL_CREDENTIALS.sub(r"\1***@", text))
    text = _AUTHORIZATION.sub(r"\1***", _URL_TOKEN.sub(r"\1***", text))
    if "--build-arg" in text:
        text = _BUILD_ARGUMENT.sub(lambda match: f"{match[1] or match[3]}***", text)
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text.rstrip()


def encode_lines(
    number: int,
    stamp: str,
    phase: str,
    text: str,
    progress: Progress | None = None,
    is_clipped: bool = False,
) -> list[bytes]:
    """Return a text as a JSON line, or as several where it would exceed MAX_LINE_BYTES."""
    line: dict[str, Any] = {"n": number, "ts": stamp, "phase": phase, "text": text}
    if progress:
        line["progress"] = progress
    if is_clipped:
        line["clipped"] = True
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
    if len(data) <= MAX_LINE_BYTES:
        return [data]
    half = len(text) // 2
    first = encode_lines(number, stamp, phase, text[:half])
    return first + encode_lines(number + len(first), stamp, phase, text[half:], progress)


def timestamp() -> str:
    """Return the current time in RFC 3339 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RewrittenLines:
    """Coalesces lines that a program rewrites with carriage returns: their last state, and one every few seconds.

    repo2docker passes on each state as a text of its own, which ends with the carriage return.
    """

    def __init__(self, write: OnLine, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._is_open = False
        self._prefix = ""
        self._held: str | None = None
        self._shown: str | None = None
        self._shown_at = 0.0

    def feed(self, text: str) -> None:
        """Process a text: states of a line, or several lines."""
        *lines, rest = text.split("\n")
        for line in lines:
            self._feed_line(line)
            self.end_line()
        if rest:
            self._feed_line(rest)
            if not rest.endswith("\r"):
                self.end_line()

    def _feed_line(self, line: str) -> None:
        # Only the first state bears the number of the build step. All are output of that step, whatever they say.
        prefix = _STEP_OUTPUT.match(line)
        if prefix:
            self.end_line()
            self._prefix, line = prefix[0], line[prefix.end() :]
        if not self._is_open:
            self._is_open, self._shown_at = True, self._clock()
        # The cursor returns without erasing anything, so a blank state is none.
        states = [state for state in line.split("\r") if state.strip()]
        if states:
            self._held = self._prefix + states[-1]
        if self._clock() - self._shown_at >= REWRITE_SECONDS:
            self._show()

    def end_line(self) -> None:
        """Write the last state of the current line. Nothing rewrites it any more."""
        self._show()
        self._is_open, self._prefix, self._shown = False, "", None

    def _show(self) -> None:
        if self._held is not None and self._held != self._shown:
            self._write(self._held)
            self._shown, self._shown_at = self._held, self._clock()
        self._held = None


# --- Secrets ------------------------------------------------------------------------------------------------

MIN_SECRET = 4  # characters; shorter ones are part of many words
MIN_ARGUMENT = 8  # the same for build arguments, whose values are often words: `true`, `3.11`
MIN_ENCODED = 6
_CREDENTIALS_FILE = re.compile(r"--file[= ]'?([^\s']+)")
_NETRC_PASSWORD = re.compile(r"\bpassword\s+(\S+)")
_URL_USER = re.compile(r"://([^/\s:@]*)(?::([^/\s@]+))?@")
# `http.extraHeader`, with whatever name a host gives to its tokens.
_HEADER = re.compile(
    r"(?im)(?:authorization|private-token|job-token|x-[\w-]*(?:token|key|auth)[\w-]*)\s*[:=].*|extraheader .*:.*"
)
_HELPER_PASSWORD = re.compile(r"""\bpassword=([^\s"';]+)""")  # of a credential helper that is a line of shell
HELPER_SECONDS = 10.0  # for all helpers of a kind together
HELPERS_AT_ONCE = 8
MIN_TOKEN = 16  # characters of a user in a URL that is not just a name


def known_secrets(spec: Spec, environment: Mapping[str, str]) -> list[str]:
    """Return what no line may show, in every form: values of build arguments, credentials of registries and of git.

    Longest first, so that no part of a secret is left over when another one is contained in it.
    """
    values = {
        line.strip()
        for value in (spec.get("build_args") or {}).values()
        for line in [value, *value.splitlines()]
        if len(line.strip()) >= MIN_ARGUMENT
    }
    access = spec.get("git") or {}
    credentials = {*_registry_secrets(environment), *_git_secrets(environment), *_access_secrets(access)}
    values.update(value for value in credentials if len(value) >= MIN_SECRET)
    return sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)


def _registry_secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield passwords and tokens of docker's configuration, and those that its credential helpers have."""
    directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "/"), ".docker")
    try:
        config = json.loads(_read_text(os.path.join(directory, "config.json")))
    except ValueError:
        return
    if not isinstance(config, dict):
        return
    for entry in _entries(config.get("auths")).values():
        for name, value in _entries(entry).items():
            if name in ("password", "identitytoken", "registrytoken", "auth") and value:
                yield str(value)
        with contextlib.suppress(ValueError):
            encoded = str(_entries(entry).get("auth") or "")
            yield base64.b64decode(encoded).decode().partition(":")[2].strip("\0")
    for value in _entries(config.get("HttpHeaders")).values():
        yield from str(value).split()[-1:]
    for proxies in _entries(config.get("proxies")).values():
        yield from _url_passwords(" ".join(map(str, _entries(proxies).values())))
    helpers = {server: str(name) for server, name in _entries(config.get("credHelpers")).items()}
    if config.get("credsStore"):
        helpers.update(
            {
                server: str(config["credsStore"])
                for server in _entries(config.get("auths"))
                if server not in helpers
            }
        )
    yield from _helper_secrets(helpers, environment)


def _entries(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _helper_secrets(helpers: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return what credential helpers of docker have for servers; nothing for those that fail or take too long."""
    if not helpers:
        return []
    import concurrent.futures

    until = time.monotonic() + HELPER_SECONDS
    with concurrent.futures.ThreadPoolExecutor(HELPERS_AT_ONCE) as pool:
        return list(
            pool.map(
                lambda item: _ask_helper(f"docker-credential-{item[1]}", item[0], environment, until),
                helpers.items(),
            )
        )


def _ask_helper(program: str, server: str, environment: Mapping[str, str], until: float) -> str:
    left = until - time.monotonic()
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        if left > 0:
            answer = subprocess.run(
                [program, "get"], input=server.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=dict(environment), timeout=left, check=True,
            )  # fmt: skip
            return str(_entries(json.loads(answer.stdout)).get("Secret") or "")
    return ""


def _git_secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield passwords of the files and variables that git and curl read credentials from."""
    home = environment.get("HOME", "/")
    own = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    configured = [value for name, value in environment.items() if name.startswith("GIT_CONFIG_VALUE_")]
    configured.append(environment.get("GIT_CONFIG_PARAMETERS", ""))
    configured += _git_configuration(environment)
    files = [
        os.path.join(home, ".git-credentials"),
        os.path.join(own, "git", "credentials"),
        *(
            os.path.expanduser(match[1])
            for value in configured
            for match in _CREDENTIALS_FILE.finditer(value)
        ),
    ]
    for text in [*map(_read_text, files), *configured]:
        yield from _url_passwords(text)
        yield from _header_secrets(text)
        yield from _HELPER_PASSWORD.findall(text)
    yield from _NETRC_PASSWORD.findall(_read_text(os.path.join(home, ".netrc")))
    for name in environment:
        if re.fullmatch(r"(?i)https?_proxy", name):
            yield from _url_passwords(environment[name])


def _access_secrets(access: Mapping[str, Any]) -> Iterator[str]:
    """Yield the secrets in the files with the tenant's credentials for git."""
    directory = str(access.get("directory") or "")
    with contextlib.suppress(OSError):
        for name in os.listdir(directory) if directory else ():
            text = _read_text(os.path.join(directory, name))
            if name.startswith("login_"):
                yield text.partition("password=")[2].strip("\n")
            if name.startswith("ssh_key_"):
                yield from (line for line in text.split("\n") if not line.startswith("-----"))


def _git_configuration(environment: Mapping[str, str]) -> list[str]:
    """Return the lines `key value` of the configuration that git has outside of repositories, with included files."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "config", "--list", "--null", "--includes"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**environment, "GIT_DIR": os.devnull}, timeout=HELPER_SECONDS, check=False,
        )  # fmt: skip
        return [item.replace("\n", " ", 1) for item in answer.stdout.decode("utf-8", "replace").split("\0")]
    return []


def _url_passwords(text: str) -> Iterator[str]:
    """Yield the passwords of URLs, and users that are tokens, as written and decoded."""
    for user, password in _URL_USER.findall(text):
        secret = password or (user if len(user) >= MIN_TOKEN else "")
        yield from (secret, urllib.parse.unquote(secret))


def _header_secrets(text: str) -> Iterator[str]:
    """Yield the credentials in HTTP headers."""
    for header in _HEADER.findall(text):
        word = header.split()[-1]
        yield word
        with contextlib.suppress(ValueError):
            yield base64.b64decode(word, validate=True).decode().partition(":")[2]


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it may appear in a line: plain, quoted by programs and shells, encoded in URLs and in base64."""
    yield _CONTROL.sub("", value)
    in_urls = {urllib.parse.quote(value), urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value)}
    in_urls.update([re.sub("%..", lambda match: match[0].lower(), form) for form in in_urls])
    in_shells = {shlex.quote(value).strip("'"), value.replace("'", r"'\''")}
    encoded = {json.dumps(value)[1:-1], repr(value)[1:-1], *in_urls, *in_shells}
    for shift in range(3):
        encoded.update(
            _base64_core(value.encode("utf-8", "replace"), shift, altchars) for altchars in (b"+/", b"-_")
        )
    yield from (form for form in encoded if len(form) >= MIN_ENCODED)


def _base64_core(value: bytes, shift: int, altchars: bytes) -> str:
    """Return the characters that stand for `value` within any base64 text that has it at offset 3n + `shift`."""
    text = base64.b64encode(b"\0" * shift + value, altchars).decode()
    return text[(0, 2, 3)[shift] : (shift + len(value)) * 8 // 6]


# --- Failures -----------------------------------------------------------------------------------------------


class AttemptEnded(Exception):
    """The attempt is over, for a reason and with a message that become part of the result."""

    may_pass = False
    """True if repeating the step that failed may help."""

    def __init__(self, reason: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.more = more


class FetchFailed(AttemptEnded):
    """A repository or submodule could not be fetched."""

    def __init__(self, reason: str, message: str, *, may_pass: bool = False) -> None:
        super().__init__(reason, message)
        self.may_pass = may_pass


class BuildFailed(AttemptEnded):
    """repo2docker failed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason, verdict.message, failed_step=verdict.step)
        self.may_pass = verdict.reason in PASSING_BUILD_FAILURES


class PushFailed(AttemptEnded):
    """A push failed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason, verdict.message)
        self.may_pass = verdict.reason in PASSING_PUSH_FAILURES


def sentence(text: str) -> str:
    """Return a text with an end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


# A repository chooses the words that its steps print and the names of its files and images. So a failure is judged by
# the error of the program that ended, which its place in the output identifies, and within that error by the parts
# that this program writes itself. Wording of repo2docker 2026.4, docker 26 to 28 and buildx 0.13 to 0.24.
PASSING_PUSH_FAILURES = ("push_failed", "docker_unavailable")  # a push is repeated after these
PASSING_BUILD_FAILURES = ("base_image_unavailable",)  # and a build after these
# An engine that dies takes its steps along, which fail in any way that a network or a killed process can fail in.
FAILURES_OF_A_LOST_ENGINE = (
    "build_step_failed",
    "build_out_of_memory",
    "base_image_unavailable",
    "engine_error",
)
STEP, BASE, ENGINE, CLIENT, PUSH = "step", "base image", "engine", "client", "push"
_FULL = r"(?:no space left on device|disk quota exceeded)$"
_LOST = (
    r"error reading from server|transport is closing|closing transport|client is closing|code = Unavailable"
    r"|connection reset by peer$|graceful_stop|failed to receive status"
)
# Rows: the program that reported the error, a pattern for its error, reason, and message; the first match decides.
# `reasons.py` has what follows from a reason: category, whether another attempt is made, hint.
SIGNALS = (
    (STEP, r"exit code: 137\b", "build_out_of_memory",
     "The step `{step}` was killed, most likely because it ran out of memory."),
    (STEP, r"exit code: (?P<code>\d+)\b", "build_step_failed", "The step `{step}` ended with exit code {code}."),
    (STEP, _LOST + r"|/libnetwork/", "docker_unavailable",
     "The connection to the Docker engine was lost while the step `{step}` ran: {error}"),
    (STEP, r"", "build_step_failed", "The step `{step}` could not be run: {error}."),
    (BASE, r"(?i)\b429 too many|toomanyrequests", "base_image_unavailable",
     "The registry limits how often it can be asked for the base image {image}: {error}"),
    (BASE, r"\b5\d\d [A-Z]", "base_image_unavailable",
     "The registry failed when it was asked for the base image {image}: {error}"),
    (BASE, r"(?i)\b40[13] [A-Z]|access denied|authorization failed|insufficient_scope|unauthorized|\bdenied\b",
     "base_image_private", "The base image {image} does not exist or requires a login: {error}"),
    (BASE, r"no match for platform|no matching manifest", "base_image_missing",
     "The base image {image} does not exist for the platform of this service: {error}"),
    (BASE, _FULL, "disk_full", "The disk of the Docker engine is full: {error}"),
    (BASE, r"not found$|manifest unknown", "base_image_missing", "The base image {image} does not exist: {error}"),
    (BASE, r"", "base_image_unavailable", "The base image {image} could not be pulled: {error}"),
    (ENGINE, r"^(?:failed to create LLB definition: )?dockerfile parse error", "build_step_failed",
     "The Dockerfile cannot be read: {error}"),
    (ENGINE, _FULL, "disk_full", "The disk of the Docker engine is full: {error}"),
    (ENGINE, _LOST, "docker_unavailable", "The connection to the Docker engine was lost during the build: {error}"),
    (ENGINE, r"max depth exceeded$", "build_step_failed",
     "The image would have more layers than the Docker engine can stack, about 125: {error}"),
    (ENGINE, r"snapshot \S+ does not exist|layer does not exist|failed to (?:get|load|export|register) (?:layer|state|edge)"
     r"|content digest \S+: not found|missing content|failed to (?:prepare|mount|commit) \S+",
     "engine_error", "The Docker engine failed: {error}"),
    (ENGINE, r"^(?:failed to compute cache key: )?failed to calculate checksum of ref \S+: .*not found$",
     "build_step_failed", "A file that is to be copied into the image does not exist: {error}"),
    (ENGINE, r"", "build_step_failed", "The image could not be built: {error}"),
    (CLIENT, _LOST + r"|Cannot connect to the Docker daemon|error during connect|dial (?:unix|tcp)|\bEOF$",
     "docker_unavailable", "The connection to the Docker engine was lost during the build: {error}"),
    (CLIENT, r"client must be installed: .* returned non-zero", "docker_unavailable",
     "The Docker engine did not answer: {error}"),
    (CLIENT, r"client must be installed", "docker_unavailable", "The docker client does not work: {error}"),
    (CLIENT, r"", "engine_error", "The Docker engine or its client failed: {error}"),
    (PUSH, r"^(?:An image does not exist locally|tag does not exist|No such image)", "image_missing",
     "The image was removed from the Docker engine before it was pushed."),
    (PUSH, r"^(?:Cannot connect to the Docker daemon|error during connect)|^(?:ERROR: )?rpc error: code = Unavailable",
     "docker_unavailable", "The connection to the Docker engine was lost during the push: {error}"),
    (PUSH, r"^(?:denied|unknown|unsupported): .*(?:quota|storage|exceed.*limit)|\b507 Insufficient", "push_rejected",
     "The registry has no room for the image: {error}"),
    (PUSH, r"\b413 (?:Request|Payload|Content)|HTTP 413 |^size invalid", "push_rejected",
     "The registry, or a proxy before it, does not accept a layer as large as this: {error}"),
    (PUSH, r"^name unknown|\b404 Not Found|HTTP 404 ", "push_rejected",
     "The registry has no repository for the image: {error}"),
    (PUSH, r"\bx509: |server gave HTTP response to HTTPS client", "push_rejected",
     "The Docker engine and the registry do not agree on encryption: {error}"),
    (PUSH, r"^(?:unauthorized|authentication required)|\b401 Unauthorized|HTTP 401 ", "push_denied",
     "The registry does not accept the credentials of the service: {error}"),
    (PUSH, r"^(?:denied|no basic auth credentials|push access denied)|\b403 Forbidden|HTTP 403 |insufficient_scope",
     "push_denied",
     "The registry does not let the service push the image: {error}"),
    (PUSH, r"^(?:name|tag|manifest) invalid|^unsupported|\b40[05] [A-Z]|HTTP 40[05] ", "push_rejected",
     "The registry does not accept the image: {error}"),
    (PUSH, r"^write .*" + _FULL, "disk_full", "The disk of the Docker engine is full: {error}"),
    (PUSH, r"", "push_failed", "The image could not be pushed: {error}"),
)  # fmt: skip
# Functions of repo2docker that read a file whose name their errors may lack.
_READERS = (
    (r"buildpacks/base\.py", "binder_dir", "binder"),
    (r"buildpacks/base\.py", "runtime", "runtime.txt"),
    (r"buildpacks/base\.py", "get_preassemble_scripts", "apt.txt"),
    (r"buildpacks/(?:docker|legacy/__init__)\.py", "", "Dockerfile"),
    (r"buildpacks/conda/__init__\.py", "environment_yaml", "environment.yml"),
    (r"buildpacks/pipfile/__init__\.py", "", "Pipfile"),
    (r"buildpacks/python/__init__\.py", "", "pyproject.toml"),
    (r"buildpacks/julia/julia_project\.py", "", "Project.toml"),
)
_DISK_ERRORS = (
    ("OSError", rf"\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT})\] "),
    (
        "FileNotFoundError",
        r"\[Errno 2\] No usable temporary directory found in ",
    ),  # `tempfile` tries to write
)
_NO_SPACE = re.compile(r"[Nn]o space left on device|[Dd]isk quota exceeded")
_STEP_ERROR = re.compile(
    r'process "(?P<step>(?:[^"\\]|\\.)*)" did not complete successfully: (?P<error>.*)', re.DOTALL
)
_CLIENT_ERROR = re.compile(r"(?:ERROR|error): (?P<error>.*)")
_SOLVE = re.compile(r"(?:failed to build: )?(?:failed to solve: )(?P<error>.*)", re.DOTALL)
_METADATA = re.compile(
    r"(?:\S+: )?failed to resolve source metadata for (?P<image>\S+): (?P<error>.*)", re.DOTALL
)
_VERTEX = re.compile(
    r"#(?P<number>\d+) (?:ERROR: (?P<error>.*)|(?P<name>(?:\[|resolve |docker-image|exporting |COPY |ADD ).*))"
)
_PULLING = re.compile(r"(?:\[[^\]]*\] FROM |\[internal\] load metadata for |.*docker-image://)(?P<image>\S+)")
_SOURCE_LINE = re.compile(r"[^\s:]+:(\d+)$")
_MARKED_LINE = re.compile(r" *\d+ \| >>> \s*(?P<word>\w+)")
_INSTRUCTION = re.compile(r"(?:\[[^\]]*\] )?(?P<text>(?P<word>COPY|ADD|RUN|WORKDIR) .*)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\'\s]*\'')
_NOISE = re.compile(r"^(?:failed to compute cache key: )?failed to calculate checksum of ref \S+: ")
_URL = re.compile(r"https?://[^\s\"]+?(?=:? |:?$)")
_FRAME = re.compile(r'  File "(?P<file>.*)", line \d+, in (?P<function>.*)')
_ADVICE = (
    "View build details",
    "Learn more",
    "What's next",
    " 1 warning",
)  # printed around the client's error
_USAGE = "See 'docker "  # follows what the client says about its arguments
BYTE_ORDER_MARK = "\ufeff"
BYTE_ORDER_MARK_TEXT = (
    "The file begins with a byte order mark, which cannot be seen: save it as UTF-8 without one."
)
_TRACEBACK = "Traceback (most recent call last):\n"
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64}) size: (\d+)")
_LAYER = re.compile(r"^([0-9a-f]{12}): (.+)$")  # not longer: a tag is often 40 such digits
_STEP = re.compile(r"^#\d+ \[(?:[\w.-]+ +)?(\d+)/(\d+)\] ")
_STEP_OUTPUT = re.compile(r"^#\d+ \d+\.\d+ ")
_CLIPPED = re.compile(r"^(#\d+ \d+\.\d+ )\[output clipped, log limit (\S+) reached\]\s*$")
_LOCAL_SOURCE = re.compile(r"Picked Local content provider\.|Using local repo /")
_BASE_UNRESOLVED = re.compile(r"^ERROR: .*failed to solve: .*failed to resolve source metadata for (\S+?): ")


class Verdict:
    """The judgement about a failed command: reason and message, and the step that failed, if any."""

    def __init__(self, reason: str, message: str, step: str | None = None) -> None:
        self.reason = reason
        self.message = sentence(message)
        self.step = step


def judge(speaker: str, error: str, **details: str) -> Verdict:
    """Look up what an error means that `speaker` reported."""
    error = " ".join(error.split())
    # Names of files, images and URLs are the repository's words.
    bare = _URL.sub("URL", _QUOTED.sub('""', error))
    for name in (details.get("image", ""), details.get("image", "").partition("/")[2]):
        bare = bare.replace(name, "IMAGE") if name else bare
    for program, pattern, reason, message in SIGNALS:
        found = re.search(pattern, bare, re.DOTALL)
        if program == speaker and found:
            shown = message.format(**{"error": _NOISE.sub("", error)[:600], **details, **found.groupdict()})
            return Verdict(reason, shown, details.get("step"))
    raise AssertionError(f"no row for {speaker}")


class RaisedError:
    """The exception that ended repo2docker, from its log record."""

    def __init__(self, message: str, trace: str) -> None:
        self.text = message.partition("Error during build: ")[2] or message
        self.met_full_disk = any(
            trace.endswith(f"\n{kind}: {self.text}") and re.match(pattern, self.text)
            for kind, pattern in _DISK_ERRORS
        )
        """True if repo2docker itself had no space for a file."""
        # The text of an exception may contain anything, the frames above it only repo2docker's own code.
        frames = trace[: len(trace) - len(self.text)] if trace.endswith(self.text) else trace
        self.met_network = re.search(r'^  File ".*/(?:requests|urllib3)/', frames, re.MULTILINE) is not None
        """True if a request to a server failed, also where repo2docker raised an error of its own for it."""
        self.was_refused = re.match(r"4(?!08|29)\d\d Client Error: ", self.text) is not None
        """True if the server answered that it will not serve the request, now or later."""
        self._frames = [
            (found["file"], found["function"])
            for found in map(_FRAME.match, frames.rpartition(_TRACEBACK)[2].splitlines())
            if found
        ]

    def passed(self, file: str, function: str = "") -> bool:
        """Return whether the exception came through a function of a file, both patterns."""
        return any(
            re.search(rf"repo2docker/{file}$", frame[0]) and (not function or frame[1] == function)
            for frame in self._frames
        )

    def dataset_problem(self) -> Verdict | None:
        """Return the verdict of `give_up_dataset` if that raised the exception."""
        file, function = self._frames[-1] if self._frames else ("", "")
        reason, mark, message = self.text.partition(": ")
        if function != give_up_dataset.__name__ or not file.endswith("/builder.py"):
            return None
        if not mark or reason not in DATASET_REASONS:
            return None
        return Verdict(reason, message)

    def file_read(self) -> str | None:
        """Return the file of the repository that repo2docker was reading."""
        for file, function, name in _READERS:
            if self.passed(file, function):
                is_lock = name == "Pipfile" and self.passed_json()
                return "Pipfile.lock" if is_lock else name
        return None

    def passed_json(self) -> bool:
        """Return whether a JSON file was being read."""
        return any(file.endswith("json/decoder.py") for file, _ in self._frames)


def parse_record(raw: str) -> dict[str, Any] | None:
    """Return a line of repo2docker as a record of its log, None if it is something else."""
    if not raw.startswith("{"):
        return None
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "message" in record else None


# Where an engine keeps the file system of a step; what follows is the path in the image.
_ROOT_IN_ENGINE = re.compile(r"/[^\s:]*/(?:overlay2/\w{10,64}/(?:merged|diff)|snapshots/\d+/fs)(?=/)")


class BuildOutput:
    """The output of repo2docker, of which it keeps what a failure is judged by."""

    MAX_VERTICES = 2000

    def __init__(self) -> None:
        self.raised: RaisedError | None = None
        self.complaint = ""
        """The last record that repo2docker wrote itself, outside of a phase."""
        self.error: str | None = None
        """The error with which the engine's client ended: its last output."""
        self.met_full_disk = False
        """True if the engine's disk was seen full when a line mentioned it."""
        self._fetched: list[str] = []
        self._last = self._said = ""
        self._source = self._marked = ""
        self._names: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._is_continued = False

    def add_raw(self, text: str) -> None:
        """Add a line that is no record of repo2docker."""
        self._last = text
        self._add_engine_line(text)

    def add(self, record: dict[str, Any]) -> None:
        """Add a record of repo2docker's log."""
        text, phase = str(record["message"]), record.get("phase")
        if record.get("exc_info"):
            self.raised = RaisedError(text, str(record["exc_info"]))
        elif phase in (None, "failed"):
            self.complaint = text.strip()
        elif phase == "fetching":
            self._fetched = [*self._fetched[-39:], text.strip()]
        else:
            # repo2docker also splits at carriage returns: what follows one belongs to the same line.
            if not self._is_continued:
                self._add_engine_line(text.rstrip("\r\n"))
            self._is_continued = not text.endswith("\n")

    def _add_engine_line(self, text: str) -> None:
        if found := _CLIENT_ERROR.match(text):
            self.error = found["error"]
        elif found := _VERTEX.match(text):
            kept = self._names if found["name"] else self._failed
            if len(kept) < self.MAX_VERTICES:
                # The first line about a vertex has its name; later ones may look alike.
                kept.setdefault(found["number"], found["name"] or found["error"])
        elif found := _SOURCE_LINE.match(text):
            self._source = text
        elif self._source and not self._marked and (found := _MARKED_LINE.match(text)):
            self._marked = found["word"]
        elif self.error is None and text.startswith(_USAGE) and self._said:
            self.error = self._said
        elif self.error is None and text.strip():
            self._said = text
        elif self.error is not None and text.strip() and not text.startswith(_ADVICE):
            self.error = f"{self.error}\n{text}"[:4000]

    def judge(self, phase: str, code: int) -> Verdict:
        """Judge why repo2docker ended with `code`."""
        raised = self.raised
        if code == -signal.SIGKILL:
            return Verdict(
                "builder_out_of_memory", "repo2docker was killed, most likely because it ran out of memory."
            )
        if raised and (problem := raised.dataset_problem()):
            return problem
        if raised and raised.met_full_disk:
            return Verdict("disk_full", f"{OwnDiskFull.text}: repo2docker had no space for a file.")
        if raised and raised.passed("docker.py"):
            return self._judge_launch(raised) or self._judge_engine()
        if raised and not raised.passed("app.py", "fetch"):
            return self._judge_detection(raised)
        if self.error is not None and phase not in ("waiting", "fetching"):
            return self._judge_engine()
        return self._judge_repo2docker(phase, raised)

    def _judge_launch(self, raised: RaisedError) -> Verdict | None:
        """Judge an engine's client that did not get as far as an error of its own."""
        if raised.passed("docker.py", "container_cli"):
            if "buildx" in raised.text:
                message = "The docker client has no buildx plugin, which repo2docker needs."
                return Verdict("docker_unavailable", message)
            return judge(CLIENT, raised.text)
        if re.search(r"died with <Signals\.SIGKILL: 9>\.$", raised.text):
            message = "The docker client was killed, most likely because the builder ran out of memory."
            return Verdict("builder_out_of_memory", message)
        return None

    def _judge_engine(self) -> Verdict:
        """Judge the error that the engine's client ended with."""
        error = self.error or "it ended without an error message"
        solve = _SOLVE.fullmatch(error)
        if found := _STEP_ERROR.match(solve["error"] if solve else error):
            step = re.sub(r"^/bin/(?:ba)?sh -l?c ", "RUN ", " ".join(go_unquote(found["step"]).split()))[:300]
            verdict = judge(STEP, found["error"], step=step)
            if self.met_full_disk:
                return Verdict("disk_full", f"The disk of the Docker engine is full. {verdict.message}", step)
            return verdict
        if not solve:
            return judge(CLIENT, error)
        return self._judge_solve(solve["error"])

    def _judge_solve(self, error: str) -> Verdict:
        if found := _METADATA.fullmatch(error):
            return judge(BASE, found["error"], image=found["image"])
        vertex = next(
            (self._names.get(n, "") for n, text in self._failed.items() if error.endswith(text)), ""
        )
        if found := _PULLING.match(vertex):
            return judge(BASE, error, image=found["image"].partition("@")[0])
        verdict = judge(ENGINE, _ROOT_IN_ENGINE.sub("", error))
        if verdict.reason == "build_step_failed" and vertex.startswith("exporting "):
            return judge(CLIENT, error)
        if verdict.reason == "build_step_failed" and self._source and "line" not in error:
            return Verdict(verdict.reason, f"{verdict.message.rstrip('.')} ({self._place(vertex)})")
        return verdict

    def _place(self, vertex: str) -> str:
        """Return where the instruction that failed is: a line of the Dockerfile, or ONBUILD of a base image."""
        failed = _INSTRUCTION.match(vertex)
        if failed and self._marked and failed["word"] != self._marked.upper():
            # The engine counts the lines of the trigger, and names this Dockerfile.
            return f"{failed['text'][:300]}, by ONBUILD of its base image"
        return self._source

    def _judge_detection(self, raised: RaisedError) -> Verdict:
        if raised.passed("app.py", "build") and self.complaint.startswith("Subdirectory "):
            return Verdict("no_environment", f"{self.complaint}.")
        text, file = " ".join(raised.text.split())[:600], raised.file_read()
        if BYTE_ORDER_MARK in text:
            text = f"{text.replace(BYTE_ORDER_MARK, '').rstrip('.')}. {BYTE_ORDER_MARK_TEXT}"
        if raised.met_network:
            message = f"A server that lists versions for repo2docker could not be reached: {text}"
            return Verdict("lookup_failed", message)
        if file and file not in text:
            return Verdict("no_environment", f"repo2docker cannot read {file}: {text}")
        return Verdict("no_environment", f"repo2docker cannot build the repository: {text}")

    def _judge_repo2docker(self, phase: str, raised: RaisedError | None) -> Verdict:
        """Judge an end without the engine: while fetching, or where repo2docker gave up by itself."""
        if self.complaint.startswith("No environment specification found"):
            message = "repo2docker found no environment specification in the repository."
            return Verdict("no_environment", message)
        if self.complaint.startswith("Container engine initialization error"):
            return judge(CLIENT, self.complaint)
        own_words = [
            line for line in self._fetched if line.startswith(("fatal: ", "error: "))
        ] or self._fetched
        last = " ".join([raised.text if raised else "", *own_words[-1:]])
        shown = " ".join((last or self.complaint or self._last).split())[:600]
        if phase in ("waiting", "fetching"):
            if raised and raised.met_network and not raised.was_refused:
                return Verdict(
                    "fetch_interrupted", f"The repository's server failed or could not be reached: {shown}"
                )
            return Verdict("fetch_failed", f"The repository could not be fetched: {shown}")
        return Verdict("no_environment", f"repo2docker cannot build the repository: {shown}")


def go_unquote(text: str) -> str:
    """Return the value of a string that Go quoted."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:  # JSON lacks a few of Go's escapes
        return text.replace('\\"', '"')


def judge_push(lines: list[str], image: str, is_under_way: bool) -> Verdict:
    """Judge a failed push by the lines that docker printed besides the progress of layers.

    `is_under_way`: the registry had already accepted a layer, so it knew the credentials.
    """
    errors = [
        line
        for line in lines
        if line.strip() and not line.startswith(("The push refers to", "Using default"))
    ]
    error = "\n".join(errors).strip() or "no message"
    error = error[len("errors:") :].strip() if error.startswith("errors:") else error
    verdict = judge(PUSH, error, image=image.rpartition(":")[0] or image)
    if (
        is_under_way
        and verdict.reason == "push_denied"
        and re.match(r"unauthorized|authentication req", error)
    ):
        return Verdict("push_failed", f"The registry's token ran out during the push: {error}")
    return verdict


# --- Input and output ---------------------------------------------------------------------------------------


class Log:
    """Numbered lines. Each is a single append, so that a kill cannot damage earlier ones."""

    def __init__(self, path: str | None) -> None:
        self.number = 0
        self._rest = b""
        # Checked while waiting for space on a full disk.
        self.give_up: Callable[[], bool] = lambda: False
        if path:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self.fd = once_there_is_space(lambda: os.open(path, flags, 0o600))
            self._resume()
        else:
            self.fd = os.dup(1)

    def _resume(self) -> None:
        """Continue the numbers of an existing file; end an incomplete last line, so that it does not spoil the next."""
        last = b"\n"
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return
        while chunk := os.read(self.fd, 1 << 20):
            self.number += chunk.count(b"\n")
            last = chunk[-1:]
        if last != b"\n":
            self._write_all(b"\n")
            self.number += 1

    def write(
        self, phase: str, text: str, progress: Progress | None = None, is_clipped: bool = False
    ) -> None:
        """Write a text as one line or more. Waits for space on a full disk, then raises AttemptEnded."""
        self._write_rest()
        for data in encode_lines(self.number, timestamp(), phase, text, progress, is_clipped):
            self._write_all(data)
            self.number += 1

    def finish(self) -> None:
        """Write what a full disk has left of a line, if there is space by now."""
        with contextlib.suppress(OSError):
            while self._rest:
                self._rest = self._rest[os.write(self.fd, self._rest) :]

    def _write_all(self, data: bytes) -> None:
        self._rest, size = data, len(data)
        try:
            self._write_rest()
        except BaseException:  # whatever ends the wait
            if len(self._rest) == size:
                self._rest = b""
            else:  # its beginning is in the file, and the next write begins with the rest of it
                self.number += 1
            raise

    def _write_rest(self) -> None:
        try:
            while self._rest:
                written = once_there_is_space(lambda: os.write(self.fd, self._rest), self.give_up)
                self._rest = self._rest[written:]
        except OSError as error:
            raise AttemptEnded("disk_full", f"The log cannot be written: {error.strerror}.") from error


class OwnDiskFull(AttemptEnded):
    """The disk beside the builder is full, which another program may give space to."""

    text = "The disk of the build machine is full"
    gone = "There is space on the disk of the build machine again."

    def __init__(self, message: str) -> None:
        super().__init__("disk_full", message)


def is_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def once_there_is_space(step: Callable[[], T], give_up: Callable[[], object] = lambda: False) -> T:
    """Take a step, again while it meets a full disk. Raises what it raised last, after DISK_PATIENCE or to give up."""
    until = time.monotonic() + DISK_PATIENCE
    while True:
        try:
            return step()
        except OSError as error:
            if not is_full(error) or give_up() or time.monotonic() > until:
                raise
        sleep(DISK_PAUSE)


def try_space(directory: str) -> None:
    """Have the space that the builder needs for a moment. Raises OSError."""
    path = os.path.join(directory, "space")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, MIN_FREE_BYTES)
    finally:
        os.close(fd)
        os.unlink(path)


def sleep(seconds: float) -> None:
    """Sleep. Unlike `time.sleep`, this also works where a library sets the clock of single processes."""
    select.select([], [], [], seconds)


class ResultFile:
    """The file of the result. Its space is reserved at the start, so that it can be written to a full disk."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.temporary = f"{path}.new" if path and not path.startswith("/dev/") else None
        # If this fails, the attempt tries again once there is space, and `write` waits for it.
        with contextlib.suppress(OSError):
            self.reserve()

    def reserve(self) -> None:
        """Reserve the space. Raises OSError."""
        if self.temporary:
            self._fill(self.temporary, None)

    def write(self, result: Result) -> None:
        """Write the result, atomically except to a device. Waits for space on a full disk."""
        data = encode_result(result)
        if self.path and not self.temporary:
            with open(self.path, "wb") as file:
                file.write(data)
        if self.path and self.temporary:
            once_there_is_space(lambda: self._replace(data))

    def _replace(self, data: bytes) -> None:
        if self.path and self.temporary:
            self._fill(self.temporary, data)
            os.rename(self.temporary, self.path)

    @staticmethod
    def _fill(path: str, data: bytes | None) -> None:
        # Truncated only after the write: before, it would give up the reserved space.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if data is None:
                os.posix_fallocate(fd, 0, MAX_RESULT_BYTES)
                return
            if os.pwrite(fd, data, 0) < len(data):  # the disk is full, and the space was not reserved
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.truncate(fd, len(data))
            os.fsync(fd)
        finally:
            os.close(fd)


def encode_result(result: Result) -> bytes:
    """Return the result as at most MAX_RESULT_BYTES of JSON, with its longest texts shortened as needed."""
    result = dict(result)
    while True:
        data = (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        key = max(("message", "failed_step", "image"), key=lambda name: len(result.get(name) or ""))
        if len(data) > MAX_RESULT_BYTES and (result.pop("warnings", None) or result.pop("provenance", None)):
            continue
        if len(data) <= MAX_RESULT_BYTES or not result.get(key):
            return data
        result[key] = result[key][: len(result[key]) * 2 // 3]


# --- Limits -------------------------------------------------------------------------------------------------


class Limits:
    """The conditions that end an attempt early: a signal, the deadline, and the idle limit."""

    def __init__(self, spec: Spec) -> None:
        self.timeout_seconds = spec.get("timeout_seconds")
        self.idle_seconds = spec.get("idle_seconds")
        self.stopped_by: int | None = None
        self._started = self._active_at = time.monotonic()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        self.stopped_by = number

    def restart_idle(self, at: float | None = None) -> None:
        """Count the idle time from `at`, or from now."""
        self._active_at = time.monotonic() if at is None else at

    def next(self) -> float:
        """Return the monotonic time of the next limit."""
        return min(self._deadline(), self._idle_at())

    def check(self) -> None:
        """Raise AttemptEnded if a signal came or a limit has passed."""
        if self.stopped_by is not None:
            raise AttemptEnded("cancelled", "The build was cancelled.", signal=int(self.stopped_by))
        deadline, idle_at = self._deadline(), self._idle_at()
        if time.monotonic() < min(deadline, idle_at):
            return
        if deadline <= idle_at:
            message = f"The build took longer than {self.timeout_seconds} seconds and was ended."
            raise AttemptEnded("timeout", message)
        message = f"The build printed nothing for {self.idle_seconds} seconds and was ended."
        raise AttemptEnded("idle", message)

    def _deadline(self) -> float:
        return self._started + self.timeout_seconds if self.timeout_seconds else float("inf")

    def _idle_at(self) -> float:
        return self._active_at + self.idle_seconds if self.idle_seconds else float("inf")


# --- Places -------------------------------------------------------------------------------------------------
#
# Three kinds of programs, and what each can read:
#
# - The builder itself and the engine's client: the registries' credentials, and the engine. They read nothing of a
#   repository; its files pass through the client as the bytes of an archive.
# - `builder.py --fetch` with git: the credentials for git. It reads what servers send, and runs nothing of it.
# - repo2docker, and what it starts: the repository. No credentials, and no engine: it calls a command named `docker`
#   that asks the builder, who has a build of this image made and nothing else.
#
# In pods, each has a container of its own, where `builder.py --serve` starts the commands. On one machine, the last two
# have namespaces of their own for mounts and processes.

PLACE_SECONDS = 120.0  # time for the other containers of a pod to start
MAX_MESSAGE = 1 << 20
LOST = -int(
    signal.SIGKILL
)  # exit code of a command whose container is gone: the kernel ends one that needs too much memory
Message = Dict[str, Any]


class Child:
    """A command that runs, with the reading end of its output."""

    signs: Sequence[int] = ()
    """Descriptors that become readable when it ends; none where SIGCHLD reports it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self.group = process.pid
        self.output = process.stdout.fileno()

    def has_exited(self) -> bool:
        """Return whether it has ended, without collecting it."""
        return has_exited(self._process.pid)

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        signal_group(self.group, number)

    def collect(self) -> int:
        """Kill what is left of its process group, and return its exit code."""
        # In this order: until it is collected, no other process can have its number.
        self.signal(signal.SIGKILL)
        code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


def has_exited(pid: int) -> bool:
    """Return whether a child of this process has ended, without collecting it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, which may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class Place:
    """The place where commands run. Here, processes see what the builder sees."""

    def start(self, command: list[str], environment: dict[str, str], directory: str) -> Child:
        """Start a command. Raises OSError."""
        return Child(
            subprocess.Popen(
                self.wrapped(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )
        )

    def wrapped(self, command: list[str]) -> list[str]:
        """Return the command that is run in the place of `command`."""
        return command

    def close(self) -> None:
        """Give the place up."""


# As a module, so that its compiled form is used where it could be stored.
_MODULE_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
_START = f"import sys; sys.path.append({_MODULE_DIRECTORY!r}); import builder; sys.exit(builder.main())"
THIS_PROGRAM = [sys.executable, "-I", "-S", "-c", _START]


class Confined(Place):
    """A place with namespaces of its own, in which only a part of the machine's files exists."""

    def __init__(self, view: View) -> None:
        self._view = view

    def wrapped(self, command: list[str]) -> list[str]:
        """Return the command that enters the namespaces and runs `command` there."""
        return [*THIS_PROGRAM, "--confine", json.dumps(self._view._asdict()), "--", *command]


class Container(Place):
    """Another container of the pod, where `builder.py --serve` starts the commands."""

    def __init__(self, path: str, limits: Limits) -> None:
        """Connect to the server at a socket, which may be on its way. Raises AttemptEnded."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        name, until = os.path.basename(path).partition(".")[0], time.monotonic() + PLACE_SECONDS
        while True:
            limits.check()
            try:
                self._connection.connect(path)
                return
            except OSError as error:
                if time.monotonic() > until:
                    message = f"The container `{name}` of the build pod did not start: {error.strerror}."
                    raise AttemptEnded("builder_error", message) from error
            sleep(0.05)

    def start(self, command: list[str], environment: dict[str, str], directory: str) -> Child:
        """Have the command started there, in a directory that both containers have."""
        reader, writer = os.pipe()
        request = {"command": command, "environment": environment}
        with contextlib.suppress(OSError):  # the container is gone, as the child will find
            socket.send_fds(self._connection, [json.dumps(request).encode()], [writer])
        os.close(writer)
        return RemoteChild(self._connection, reader)

    def close(self) -> None:
        """Disconnect, upon which the container ends."""
        self._connection.close()


class RemoteChild(Child):
    """A command in another container."""

    group = 0

    def __init__(self, connection: socket.socket, output: int) -> None:
        self._connection = connection
        self.output = output
        self.signs = [connection.fileno()]
        self._code: int | None = None

    def has_exited(self) -> bool:
        """Return whether the command, or its container, has ended."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self._code = self._receive()
        return self._code is not None

    def signal(self, number: int) -> None:
        """Have a signal sent to the process group of the command."""
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps({"signal": int(number)}).encode())

    def collect(self) -> int:
        """Have the rest of its process group killed, and return its exit code."""
        self.signal(signal.SIGKILL)
        if self._code is None:
            self._code = self._receive()
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps({"collect": True}).encode())
        os.close(self.output)
        return self._code

    def _receive(self) -> int:
        try:
            return int(json.loads(self._connection.recv(MAX_MESSAGE))["code"])
        except (OSError, ValueError):
            return LOST


class Server:
    """The main process of a container that runs the commands of a builder in another one, one at a time."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(1)
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._is_reported = False

    def serve(self) -> None:
        """Wait for the builder, carry out its requests, and return when it has gone."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        connection, _ = self._listener.accept()
        # Nothing that runs here later can take the builder's part.
        self._listener.close()
        os.unlink(self._path)
        # The builder gets the signal, too, and ends the commands.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        while True:
            ready = select.select([connection.fileno(), reader], [], [])[0]
            if reader in ready:
                os.read(reader, 4096)
            if connection.fileno() in ready and not self._answer(connection):
                break
            self._report(connection)
        self._collect()

    def _answer(self, connection: socket.socket) -> bool:
        """Carry out a request; False if the builder has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
        except OSError:
            return False
        if not data:
            return False
        request: Message = json.loads(data)
        if "command" in request:
            self._start(connection, request, descriptors[0])
        elif "signal" in request and self._process is not None:
            signal_group(self._process.pid, request["signal"])
        elif "collect" in request:
            self._collect()
        return True

    def _start(self, connection: socket.socket, request: Message, output: int) -> None:
        own = {name: value for name, value in os.environ.items() if INHERITED.match(name)}
        self._is_reported = False
        try:
            self._process = subprocess.Popen(
                request["command"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**own, **request["environment"]},
                start_new_session=True,
            )
        except OSError as error:
            os.write(output, f"{request['command'][0]}: {error.strerror}\n".encode())
            connection.send(json.dumps({"code": COMMAND_NOT_FOUND}).encode())
        finally:
            os.close(output)

    def _report(self, connection: socket.socket) -> None:
        """Report the end of the command, once."""
        if self._process is None or self._is_reported:
            return
        end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None:
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            self._is_reported = True
            with contextlib.suppress(OSError):
                connection.send(json.dumps({"code": code}).encode())

    def _collect(self) -> None:
        """Kill what is left of the command, and collect what is over."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        with contextlib.suppress(ChildProcessError):
            while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG)[0]:
                pass


class View(NamedTuple):
    """The files that exist in a place of its own."""

    root: str
    """An empty directory that the builder has for this purpose."""
    home: str = ""
    """If set, nothing exists but this directory, which can be written, `readable`, and what programs need of the system."""
    readable: Sequence[str] = ()
    hidden: Sequence[str] = ()
    """What does not exist, if everything else does."""


# Files of the system that programs need. Of /etc no more than this: other files there may hold credentials.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/opt/conda")
_ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "gai.conf", "group", "host.conf", "hosts", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "passwd", "pki/ca-trust", "pki/tls/certs",
    "protocols", "resolv.conf", "services", "ssl/certs", "ssl/openssl.cnf",
)  # fmt: skip
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NEW_USER, _NEW_PROCESSES, _NEW_IPC, _NEW_MOUNTS = 0x10000000, 0x20000000, 0x08000000, 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442  # the number of this system call is the same on all machines
_PIVOT_ROOT = {"x86_64": 155, "ppc64le": 203, "s390x": 217, "armv7l": 218}.get(os.uname().machine, 41)
UNCONFINED = "unconfined"  # file in the root directory of a view that says why there are no namespaces


class Kernel:
    """System calls that Python lacks."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of libc. Raises OSError."""
        if getattr(self._libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    def mount(self, source: str, target: str, kind: str, flags: int) -> None:
        """Mount a file system."""
        self.call(
            "mount",
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            None,
        )

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Show a file or directory at another path, with all that is mounted below it."""
        self.mount(source, target, "", _MS_BIND | _MS_REC)
        self.restrict(target, (_MS_RDONLY if read_only else 0) | _MS_NOSUID, _AT_RECURSIVE)

    def restrict(self, target: str, attributes: int, flags: int = 0) -> None:
        """Set attributes of what is mounted."""
        packed = struct.pack("4Q", attributes, 0, 0, 0)
        arguments = (os.fsencode(target), flags, packed, ctypes.c_size_t(len(packed)))
        self.call("syscall", ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, *arguments)

    def mount_proc(self, target: str) -> None:
        """Mount /proc. Read-only: root may write its switches, whatever power it has given up."""
        self.mount("proc", target, "proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)

    def pivot_root(self, root: str) -> None:
        """Make a mounted directory the root directory, and put everything else out of reach."""
        os.chdir(root)
        self.call("syscall", ctypes.c_long(_PIVOT_ROOT), b".", b".")
        self.call("umount2", b".", _MNT_DETACH)
        os.chdir("/")

    def give_up_power(self) -> None:
        """Keep programs that are started from undoing the mounts, which root could, and from gaining rights."""
        for number in range(64):
            with contextlib.suppress(OSError):
                self.call("prctl", _PR_CAPBSET_DROP, ctypes.c_ulong(number), *[ctypes.c_ulong(0)] * 3)
        self.call("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)


def confine(view: View, command: list[str]) -> int:
    """Run a command in namespaces of its own, and return its exit code. Raises OSError if that is not possible."""
    kernel, user, group = Kernel(), os.getuid(), os.getgid()
    kernel.call("unshare", _NEW_USER | _NEW_PROCESSES | _NEW_IPC)
    maps = ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")
    for name, text in maps:
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)  # for the command, which is in the same process group
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os._exit(_run_first(kernel, view, command, writer, handlers))
    os.close(writer)
    report = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.waitpid(first, 0)
    result = json.loads(report or b"{}")
    if "error" in result:
        raise OSError(*result["error"])
    return int(result.get("code", LOST))


def _run_first(
    kernel: Kernel, view: View, command: list[str], writer: int, handlers: Mapping[signal.Signals, Any]
) -> int:
    """Be the first process of the namespaces: run the command, collect its orphans, report its exit code."""
    try:
        kernel.call("unshare", _NEW_MOUNTS)
        kernel.mount("none", "/", "", _MS_REC | _MS_PRIVATE)
        if view.home:
            make_root(kernel, view)
        else:
            hide(kernel, view)
        kernel.give_up_power()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        child = os.fork()
        if child == 0:
            os.close(writer)
            start_program(command)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)  # the output ends with the command
        while (ended := os.waitpid(-1, 0))[0] != child:
            pass
        os.write(writer, json.dumps({"code": exit_code(ended[1])}).encode())
        return 0
    except OSError as error:
        os.write(writer, json.dumps({"error": [error.errno, error.strerror]}).encode())
        return 1


def start_program(command: list[str]) -> None:
    """Become another program."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(1, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(COMMAND_NOT_FOUND)


def exit_code(status: int) -> int:
    """Return the exit code of a process from its status, negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def make_root(kernel: Kernel, view: View) -> None:
    """Change to a root directory that has what a view allows, and nothing else."""
    kernel.mount("none", view.root, "tmpfs", _MS_NOSUID | _MS_NODEV)
    shown = [
        *_SYSTEM,
        *(f"/etc/{name}" for name in _ETC),
        *view.readable,
        *(f"/dev/{name}" for name in _DEVICES),
    ]
    places = {f"{view.root}/tmp": os.path.join(view.home, "tmp")}
    places.update((view.root + path, path) for path in map(os.path.abspath, shown) if os.path.exists(path))
    places[view.root + view.home] = view.home
    for target in sorted(places):
        source = places[target]
        make_target(source, target)
        kernel.bind(source, target, read_only=not source.startswith((view.home, "/dev/")))
    os.mkdir(f"{view.root}/proc")
    # Where a container hides parts of /proc, the kernel does not let another one be mounted. Programs do without.
    with contextlib.suppress(OSError):
        kernel.mount_proc(f"{view.root}/proc")
    kernel.pivot_root(view.root)
    kernel.restrict("/", _MS_RDONLY)
    os.chdir(view.home)


def make_target(source: str, target: str) -> None:
    """Make a file or directory at which `source` can be shown."""
    if os.path.exists(target):
        return
    if os.path.isdir(source):
        os.makedirs(target)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb"):
        pass


def hide(kernel: Kernel, view: View) -> None:
    """Cover what a view hides, and the other processes."""
    directory = os.getcwd()
    try:
        kernel.mount_proc("/proc")
    except OSError:
        kernel.mount("none", "/proc", "tmpfs", _MS_RDONLY)
    for path in filter(os.path.isdir, view.hidden):
        kernel.mount("none", path, "tmpfs", _MS_RDONLY)
    os.chdir(directory)


# --- Child processes ----------------------------------------------------------------------------------------


class Guard:
    """A separate process that ends the children if the builder is killed."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writer)
            self._run(reader)
        os.close(reader)
        os.set_inheritable(self.writer, False)

    @classmethod
    def _run(cls, reader: int) -> None:
        try:
            cls._isolate(reader)
            groups = cls._last_groups(reader)
            for number, pause in ((signal.SIGTERM, 3), (signal.SIGKILL, 0)) if groups else ():
                for group in groups:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, number)
                sleep(pause)
        except Exception:
            pass
        finally:
            os._exit(0)

    @staticmethod
    def _isolate(reader: int) -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The builder's own files above all: a reader of its pipe must not have to wait for the guard, too.
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd != reader:
                with contextlib.suppress(OSError):
                    os.close(fd)

    @staticmethod
    def _last_groups(reader: int) -> set[int]:
        """Read until the builder is gone; return the process groups that it has left."""
        groups: set[int] = set()
        rest = b""
        while data := os.read(reader, 4096):
            *lines, rest = (rest + data).split(b"\n")
            for number in map(int, lines):
                groups = groups | {number} if number > 0 else groups - {-number}
        return groups

    def watch(self, group: int) -> None:
        """Name a process group to end."""
        os.write(self.writer, b"%d\n" % group)

    def forget(self, group: int) -> None:
        """Take back a process group, which has ended."""
        os.write(self.writer, b"-%d\n" % group)

    def close(self) -> None:
        """End the guard."""
        os.close(self.writer)
        os.waitpid(self.pid, 0)


class LineBuffer:
    """Splits the output of a child into lines."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Pass on the lines that are complete."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._pass_on(line)
        if b"\r" in rest:
            # Progress that rewrites its line, perhaps for hours: only the last state will be shown.
            head, _, tail = rest.rpartition(b"\r")
            rest = head.rpartition(b"\r")[2] + b"\r" + tail
        if len(rest) > MAX_OPEN_LINE:
            self._pass_on(rest)
            rest = b""
        self._rest = rest

    def flush(self) -> None:
        """Pass on an unfinished last line."""
        if self._rest:
            self._pass_on(self._rest)

    def _pass_on(self, line: bytes) -> None:
        self._on_line(line.decode("utf-8", "replace"))


def pauses(seconds: tuple[float, ...], retries: int) -> list[float]:
    """Return the pause before each retry; the last one recurs, ten times at most."""
    return [*seconds, *([seconds[-1]] * 10)][:retries]


class Runner:
    """Runs commands within the limits of the attempt, one at a time, and leaves none of their processes behind."""

    def __init__(self, environment: dict[str, str], workdir: str, limits: Limits) -> None:
        self.environment = environment
        self.workdir = workdir
        self.limits = limits
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self.guard = Guard()
        self._handle_signals()

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.limits.on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes _select when a child ends
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(
        self,
        command: list[str],
        on_line: OnLine,
        seconds: float | None = None,
        *,
        environment: dict[str, str] | None = None,
        watch: Callable[[], float] | None = None,
        place: Place | None = None,
    ) -> int:
        """Run a command, call `on_line` with each line it prints, and return its exit code.

        It is ended after `seconds`; the exit code is then that of the signal. Raises AttemptEnded at the limits, and what
        `watch` raises, which is called while the command runs and returns the time of its next call.
        """
        variables = self.environment if environment is None else environment
        try:
            child = (place or Place()).start(command, variables, self.workdir)
        except OSError as error:
            on_line(f"{command[0]}: {error.strerror}")
            return COMMAND_NOT_FOUND
        if child.group:
            self.guard.watch(child.group)
        self.limits.restart_idle()
        try:
            until = time.monotonic() + (seconds or float("inf"))
            if not self._read(child, LineBuffer(on_line), until, watch or (lambda: float("inf"))):
                self._terminate(child)
        except AttemptEnded:
            self._terminate(child)
            raise
        finally:
            code = self._clean_up(child)
        return code

    def repeat(self, step: Callable[[], T], pauses: Iterable[float], write: OnLine) -> T:
        """Return the result of a step, which is repeated after each pause while its failure may pass.

        Raises its last failure, and AttemptEnded at the limits.
        """
        for seconds in pauses:
            try:
                return step()
            except AttemptEnded as failure:
                if not failure.may_pass:
                    raise
                write(f"{sentence(failure.message)} Trying again in {seconds:.0f} s.")
            self.pause(seconds)
        return step()

    def pause(self, seconds: float) -> None:
        """Sleep. Raises AttemptEnded at the limits; the pause itself does not count as idle time."""
        until = time.monotonic() + seconds
        self.limits.restart_idle(until)
        while time.monotonic() < until:
            self.limits.check()
            self._select([], min(until, self.limits.next()))
        self.limits.check()

    def close(self) -> None:
        """End the guard."""
        signal.set_wakeup_fd(-1)
        self.guard.close()

    def _read(
        self,
        child: Child,
        lines: LineBuffer,
        until: float,
        watch: Callable[[], float],
    ) -> bool:
        """Read to the end of the output and of the child; False if `until` comes first."""
        fd, is_open, drained = child.output, True, float("inf")
        while is_open or not child.has_exited():
            self.limits.check()
            watch_again = watch()
            moment = time.monotonic()
            if moment >= until:
                return False
            if drained == float("inf") and child.has_exited():
                # A grandchild may hold the pipe open; it gets a moment to print what it has left.
                drained = moment + DRAIN_SECONDS
            if moment >= drained:
                break
            next_limit = min(self.limits.next(), until, drained, watch_again)
            signs = [] if child.has_exited() else child.signs
            if fd in self._select([*([fd] if is_open else []), *signs], next_limit):
                data = os.read(fd, 65536)
                self.limits.restart_idle()
                lines.feed(data)
                is_open = bool(data)
        lines.flush()
        return True

    def _select(self, fds: Sequence[int], until: float) -> list[int]:
        """Wait for one of `fds` to be readable, a signal, or `until`; return those that are readable."""
        timeout = max(0.0, min(until - time.monotonic(), 3600.0))
        wakeup = self._wakeup.fileno()
        ready = select.select([*fds, wakeup], [], [], timeout)[0]
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
        return [fd for fd in ready if fd != wakeup]

    def _terminate(self, child: Child) -> None:
        """Send SIGTERM and wait for at most the grace period."""
        child.signal(signal.SIGTERM)
        until = time.monotonic() + TERM_GRACE
        while not child.has_exited() and time.monotonic() < until:
            self._select(child.signs, until)

    def _clean_up(self, child: Child) -> int:
        """Kill what is left of the child's process group, collect the child, and return its exit code."""
        code = child.collect()
        if child.group:
            self.guard.forget(child.group)
        self._collect_orphans()
        return code

    def _collect_orphans(self) -> None:
        """As PID 1, collect processes whose parents are gone."""
        while os.getpid() == 1:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] in (0, self.guard.pid):
                    return
            except ChildProcessError:
                return


# --- Fetching -----------------------------------------------------------------------------------------------

FETCH_PAUSES = (1.0, 3.0, 8.0, 20.0)  # seconds before a fetch is repeated; the last one recurs
MAX_SUBMODULES = 200
MAX_SUBMODULE_DEPTH = 8
MAX_REDIRECTS = 3
NO_HELPER = "credential.helper="  # a setting that withdraws the helpers that are configured
MAX_LINK_STEPS = 40  # as many as the kernel follows
SIZE_CHECK_SECONDS = 1.0
LOOK_UP_SECONDS = 30.0
MIN_FREE_BYTES = 64 * 1024  # with less, a disk is full
DEFAULT_PORTS = {"https": 443, "http": 80, "git": 9418}
SSH_PORT = 22
SCP_LIKE = re.compile(r"([\w-]+@[\w.-]+):(?!//)(.+)")
LOOK_UP = """
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)
    print(*dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found), sep="\\n")
except (OSError, UnicodeError) as error:
    absent = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    sys.exit(3 if getattr(error, "errno", socket.EAI_NONAME) in absent else 4)
"""


class UrlRefused(Exception):
    """The policy for addresses refuses a URL; the text says why, as the rest of a sentence about it."""


class Target(NamedTuple):
    """The endpoint of an allowed URL."""

    scheme: str
    host: str
    port: int


class AddressRules:
    """The service's policy for addresses, applied to what a repository names: submodules, redirects, LFS servers.

    This file cannot import the service's AddressPolicy. A test keeps the two in agreement.
    """

    _NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
    _STRANGE = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]")
    _DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
    _INSIDE_SUFFIXES = (
        ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".lan", ".home.arpa", ".svc",
        ".cluster.local",
    )  # fmt: skip

    def __init__(self, allow_private: bool, ssh_hosts: Iterable[str] = ()) -> None:
        self.allow_private = allow_private
        self._ssh_hosts = frozenset(ssh_hosts)

    def check(self, url: str) -> Target:
        """Check the URL as written, without a DNS lookup. Raises UrlRefused."""
        parts = self._split(url)
        if parts.scheme not in DEFAULT_PORTS and not self._has_ssh_key(parts):
            raise UrlRefused(f"begins with `{parts.scheme}:`, which is not allowed; use https://")
        host = self._plain_host(parts.hostname or "")
        if not self.allow_private:
            self._check_host(host)
        return Target(parts.scheme, host, parts.port or DEFAULT_PORTS.get(parts.scheme, SSH_PORT))

    def _has_ssh_key(self, parts: urllib.parse.SplitResult) -> bool:
        """Return whether the tenant has a key for the host."""
        name, port = (parts.hostname or "").rstrip("."), parts.port or SSH_PORT
        host = f"[{name}]" if ":" in name else name
        names = {f"{host}:{port}", *([host] if port == SSH_PORT else [])}
        return parts.scheme == "ssh" and not names.isdisjoint(self._ssh_hosts)

    def check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        """Check the addresses that a name resolves to. Raises UrlRefused."""
        for address in addresses:
            if not is_public(ipaddress.ip_address(address)):
                raise UrlRefused(f"leads to {host} at {address}, inside the network of the service")

    def _split(self, url: str) -> urllib.parse.SplitResult:
        if url.startswith("-"):
            raise UrlRefused("looks like an option for git")
        if self._STRANGE.search(url):
            raise UrlRefused("contains blanks, control characters or backslashes")
        try:
            parts = urllib.parse.urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UrlRefused("cannot be read") from error
        if not parts.scheme or not url.lower().startswith(f"{parts.scheme}://"):
            raise UrlRefused("is not the address of a repository on the web; use https://")
        if self._DOT_SEGMENT.search(parts.path):
            raise UrlRefused("contains `.` or `..` between slashes")
        user, at, _host = parts.netloc.rpartition("@")
        if at and not (parts.scheme == "ssh" and re.fullmatch(r"\w[\w-]*", user, re.ASCII)):
            raise UrlRefused("contains a user name or a password, or is for SSH; use https:// without a user")
        return parts

    def _plain_host(self, host: str) -> str:
        try:
            if ":" in host:
                if "%" in host:
                    raise UrlRefused("contains no valid host")
                return str(ipaddress.IPv6Address(host))
            host = unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().rstrip(".")
            if not host.isascii():
                host = host.encode("idna").decode("ascii")
        except ValueError as error:
            raise UrlRefused("contains no valid host") from error
        if not self._NAME.fullmatch(host):
            raise UrlRefused("contains no valid host")
        return host

    def _check_host(self, host: str) -> None:
        address = literal_address(host)
        is_inside = (
            not is_public(address)
            if address
            else "." not in host or host.endswith(self._INSIDE_SUFFIXES) or ".svc." in host
        )
        if is_inside:
            raise UrlRefused(f"names {host}, which is inside the network of the service")


def literal_address(host: str) -> Address | None:
    """Return the IP address that a host is written as, in any spelling that programs accept; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if re.fullmatch(r"[0-9a-fx.]+", host) else None
    except OSError:
        return None


def is_public(address: Address) -> bool:
    """Return whether the address is reachable from the internet, also when embedded in an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and any(address in network for network in _CARRIES_IPV4):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner) and int(address) > 1
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


_CARRIES_IPV4 = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))


def shown_url(url: str) -> str:
    """Return the URL for messages: shortened, in one line, and without user or password."""
    return re.sub(r"//[^/?#]*@", "//", "".join(sign if sign.isprintable() else "?" for sign in url))[:200]


def submodule_url(parent: str, url: str) -> str:
    """Return the absolute URL of a submodule; git resolves relative ones against the URL of the parent."""
    if scp_like := SCP_LIKE.fullmatch(url):
        return f"ssh://{scp_like[1]}/{scp_like[2].lstrip('/')}"
    if not url.startswith(("./", "../")):
        return url
    scheme, _, rest = parent.rstrip("/").partition("://")
    parts = rest.split("/")
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            parts.pop()
        if not parts:
            raise UrlRefused("leads out of the host of the repository")
        url = url.partition("/")[2].lstrip("/")
    return f"{scheme}://{'/'.join([*parts, url])}"


def submodule_place(directory: str, path: str, title: str) -> str:
    """Return the directory for a submodule. Raises AttemptEnded if a part of its path is a link or leads out."""
    place = directory
    for part in path.split("/"):
        place = os.path.join(place, part)
        if part in ("", ".", "..") or part.lower() == ".git" or os.path.islink(place):
            message = (
                f"The path of the submodule {shown_url(title)} leads through a link or out of the repository."
            )
            raise AttemptEnded("unsafe_repository", message)
    return place


def unquoted(path: str) -> str:
    """Return a path as git's output quotes it: "d\\303\\251p\\303\\264t"."""
    if not (path.startswith('"') and path.endswith('"')):
        return path
    escapes = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}
    data = bytearray()
    for plain, escape in re.findall(r"([^\\]+)|\\([0-7]{3}|.)", path[1:-1]):
        data += os.fsencode(plain) if plain else bytes([escapes.get(escape) or int(escape, 8)])
    return os.fsdecode(bytes(data))


# What git printed decides, except lines that the server composed (`remote: …`); the URL is removed before the match.
# The first match wins. Wording of git 2.39 and 2.47 with LC_ALL=C.
_GIT_SAYS = (
    (r"returned error: 30[12378]$", "redirected"),
    (r"^fatal: (could not read (Username|Password)|Authentication failed)|returned error: 40[137]$"
     r"|Permission denied \(publickey", "private"),
    (r"^Host key verification failed", "host_key"),
    (
        r"^fatal: repository .* not found|does not appear to be a git repository$|is this a git repository\?$"
        r"|^fatal: remote error: (access denied or repository not exported|no such repository)"
        r"|returned error: 4(04|10|51)$",
        "gone",
    ),
    (r"^fatal: remote error: (git )?upload-pack: not our ref", "absent"),
    (
        r"^error: Server does not allow request for unadvertised object|^fatal: couldn't find remote ref"
        r"|^fatal: dumb http transport does not support shallow capabilities",
        "refused",
    ),
    (r"Could not resolve (host|proxy)|^fatal: unable to look up ", "unresolved"),
    (r"No space left on device$|Disk quota exceeded$|Out of diskspace$", "disk_full"),
    (
        r"SSL certificate problem|certificate verif"
        r"|^fatal: transport '.*' not allowed|^fatal: mismatched algorithms"
        r"|^(error|fatal): invalid path|unable to create file .*: File name too long|^fatal: URL (using bad|rejected)",
        "lasting",
    ),
)  # fmt: skip


def classify_git(lines: list[str], url: str) -> tuple[str, str]:
    """Return (kind, git's own words) for a failed git; the kind is `passing` unless its words say otherwise."""
    ended = (line.strip().rpartition("\r")[2] for line in lines)  # the part that replaces progress
    own = [line for line in ended if line and not line.startswith("remote:")]
    text = [line.replace(url.rstrip("/"), "") for line in own]
    kind = next(
        (kind for pattern, kind in _GIT_SAYS if any(re.search(pattern, line) for line in text)), "passing"
    )
    first = ("error: RPC failed", "Permission denied"), ("fatal: ", "error: ")
    matters = next(
        (n for marks in first for n, line in enumerate(own) if any(mark in line for mark in marks)), -1
    )
    words = own[matters] if own else "git gave no reason."
    if words.endswith(":") and 0 < matters + 1 < len(own):
        words = f"{words} {own[matters + 1]}"
    return kind, clean_text(words)[:300]


class Source(NamedTuple):
    """A repository to fetch: the one of the request, or a submodule."""

    url: str
    ref: str
    """A commit id, or a ref in the absence of one."""
    named: str | None = None
    """The ref at which the commit was found: for servers that give out refs only."""
    path: str = ""
    """Path of the submodule below the repository of the request."""

    @property
    def is_pinned(self) -> bool:
        """True if `ref` is a commit id."""
        return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", self.ref) is not None

    @property
    def title(self) -> str:
        """Beginning of a sentence about it."""
        return (
            f"The submodule {shown_url(self.path)} ({shown_url(self.url)})" if self.path else "The repository"
        )

    def ways(self, depth: int) -> list[list[str]]:
        """Return the arguments for git fetch, the cheapest first."""
        shallow = [f"--depth={depth}"] if depth else []
        every = [] if depth else ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
        ways = [[*shallow, "--", self.url, self.ref, *every]]
        if self.named and self.is_pinned:
            ways.append([*shallow, "--", self.url, self.named, *every])
        return [*ways, ["--", self.url, "+refs/*:refs/remotes/origin/*"]] if self.is_pinned else ways


class TreeEntry(NamedTuple):
    """A submodule in a commit."""

    path: str
    commit: str


class Pointer(NamedTuple):
    """A file whose content Git LFS has."""

    path: str
    oid: str
    size: int


class SizeLimits:
    """The limits on what a repository may bring, with all its submodules."""

    def __init__(self, spec: Spec, directory: str) -> None:
        self.max_bytes = spec.get("max_repository_bytes") or float("inf")
        self.max_files = spec.get("max_repository_files") or float("inf")
        self._directory = directory
        self._files = self._bytes = 0
        self._next = 0.0

    def add(self, size: int, files: int = 1) -> None:
        """Count a file before it is written. Raises AttemptEnded."""
        self._files += files
        self._bytes += size
        self._check(self._files, self._bytes)

    def watch(self) -> float:
        """Check what is on the disk, not too often; return the time of the next check. Raises AttemptEnded."""
        started = time.monotonic()
        if started >= self._next:
            self._check(0, directory_bytes(self._directory))
            # A large tree takes long to look through: at most a tenth of the time is spent on it.
            finished = time.monotonic()
            self._next = finished + max(SIZE_CHECK_SECONDS, 10 * (finished - started))
        return self._next

    def _check(self, files: int, size: int) -> None:
        if files > self.max_files:
            raise AttemptEnded(
                "repository_too_large",
                f"The repository has more than {self.max_files:,} files, the limit of this service.",
            )
        if size > self.max_bytes:
            raise AttemptEnded(
                "repository_too_large",
                f"The repository is larger than {in_bytes(self.max_bytes)}, the limit of this service.",
            )


def in_bytes(number: float) -> str:
    """Return a number of bytes for people."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f} bytes"


def directory_bytes(path: str) -> int:
    """Return the size of all files in a directory that may change in the meantime, without following links."""
    total, left = 0, [path]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        with contextlib.suppress(OSError):
                            total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


class Git:
    """The only caller of git. Nothing that a repository contains configures it or is run by it."""

    # Repositories are made here, so their configuration is ours; the rest is for what an operator may have configured.
    OPTIONS = (
        "core.hooksPath=/dev/null", "core.fsmonitor=false", "fetch.unpackLimit=1", "core.attributesFile=/dev/null", "gc.auto=0",
        "maintenance.auto=false", "submodule.recurse=false", "fetch.recurseSubmodules=false",
        "advice.detachedHead=false", "core.protectHFS=true", "core.protectNTFS=true", "filter.lfs.smudge=",
        "filter.lfs.process=", "filter.lfs.required=false", "http.followRedirects=false", "http.lowSpeedLimit=1",
        "http.lowSpeedTime=60",
    )  # fmt: skip

    def __init__(self, spec: Spec, runner: Runner, sizes: SizeLimits, write: OnLine) -> None:
        self._runner = runner
        self._sizes = sizes
        self._write = write
        self._events = os.path.join(runner.workdir, "git-events.json")
        self.seconds = spec.get("fetch_seconds")
        self._deadline = time.monotonic() + self.seconds if self.seconds else float("inf")

    def local(self, directory: str, *arguments: str, on_line: OnLine | None = None) -> tuple[int, list[str]]:
        """Run git without network, credentials and the operator's configuration; return exit code and output."""
        output: list[str] = []
        environment = caged(self._runner.environment, self._runner.workdir)
        del environment["GIT_DIR"]
        environment["LC_ALL"] = "C"
        code = self._run(directory, arguments, environment, on_line or output.append)
        return code, output

    def remote(
        self, directory: str, *arguments: str, options: Sequence[str] = (), trace: str | None = None
    ) -> tuple[int, list[str]]:
        """Run git with network and credentials; write its lines into the log, and return exit code and last lines."""
        output: list[str] = []

        def on_line(line: str) -> None:
            output[:] = [*output[-79:], line]
            self._write(line)

        inherited = {
            name: value
            for name, value in self._runner.environment.items()
            if name not in _REPOSITORY_VARIABLES
        }
        environment = {
            **inherited,
            # The URL is checked by now; SSH is for an operator who maps https:// to it with url.*.insteadOf.
            "GIT_ALLOW_PROTOCOL": "https:http:git:ssh",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
            "GIT_TRACE2_EVENT": self._events,
            **({"GIT_ASKPASS": ""} if NO_HELPER in options else {}),
            **self._ssh(options),
            **({"GIT_TRACE_CURL": trace, "GIT_TRACE_CURL_NO_DATA": "1"} if trace else {}),
        }
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._events)
        settings = [part for option in options for part in ("-c", option)]
        return self._run(directory, [*settings, *arguments], environment, on_line), output

    @staticmethod
    def _ssh(options: Sequence[str]) -> dict[str, str]:
        """Return the variable for an option about ssh, which would take precedence over it."""
        name = "core.sshCommand="
        commands = [option[len(name) :] for option in options if option.startswith(name)]
        return {"GIT_SSH_COMMAND": commands[-1]} if commands else {}

    def is_readable_by_anybody(self, url: str, options: Sequence[str]) -> bool:
        """Return whether a server lists a repository to those without credentials; False if that cannot be known."""
        environment = caged(self._runner.environment, self._runner.workdir)
        kept = {name: value for name, value in os.environ.items() if name.startswith("GIT_SSL_")}
        environment.update(kept, GIT_ALLOW_PROTOCOL="https:http:git", GIT_ASKPASS="", LC_ALL="C")
        settings = [part for option in options for part in ("-c", option)]
        listing = ["ls-remote", "--quiet", "--", url, "HEAD"]
        return self._run(self._runner.workdir, [*settings, *listing], environment, lambda _: None) == 0

    def server_knows_ids(self) -> bool:
        """Return whether the server of the last call gives out any commit that it has: protocol version 2 does."""
        try:
            with open(self._events, encoding="utf-8", errors="replace") as file:
                return '"key":"negotiated-version","value":"2"' in file.read()
        except OSError:
            return False

    def _run(
        self, directory: str, arguments: Iterable[str], environment: dict[str, str], on_line: OnLine
    ) -> int:
        options = [part for option in self.OPTIONS for part in ("-c", option)]
        code = self.run_in_time(["git", "-C", directory, *options, *arguments], on_line, environment)
        if code == COMMAND_NOT_FOUND:
            raise AttemptEnded("builder_error", "git cannot be started on the build machine.")
        return code

    def run_in_time(self, command: list[str], on_line: OnLine, environment: dict[str, str]) -> int:
        """Run a command within the limits for a fetch. Raises AttemptEnded at these."""
        left = self._deadline - time.monotonic()
        code = self._runner.run(
            command, on_line, max(0.1, left), environment=environment, watch=self._sizes.watch
        )
        if time.monotonic() >= self._deadline:
            raise AttemptEnded(
                "timeout", f"Fetching the repository took longer than {self.seconds} seconds and was ended."
            )
        return code


_REPOSITORY_VARIABLES = frozenset(
    ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
     "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_SHALLOW_FILE", "GIT_TEMPLATE_DIR")
)  # fmt: skip


_NEUTRAL = re.compile(
    r"^(PATH|USER|LANG|LC_\w+|TZ|TMPDIR|SSL_\w+|\w*_CA_BUNDLE|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|PYTHON\w+)$"
)


def caged(environment: Mapping[str, str], directory: str) -> dict[str, str]:
    """Return the environment for programs that read a repository: no credentials, no programs out of the repository."""
    home = environment.get("HOME") or os.path.expanduser("~")
    kept = {name: value for name, value in environment.items() if _NEUTRAL.match(name)}
    for name in ("PATH", "PYTHONPATH"):
        if name in kept:
            # A relative entry would mean the repository, once it is the current directory.
            kept[name] = os.pathsep.join(part for part in kept[name].split(os.pathsep) if os.path.isabs(part))
    return {
        **kept,
        "HOME": os.path.join(directory, "home"),
        "PYTHONUSERBASE": environment.get("PYTHONUSERBASE") or os.path.join(home, ".local"),
        # A repository can contain a directory that git takes for a repository, and that has a configuration which
        # names programs. So git is not to find one.
        "GIT_DIR": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }


class Accounts:
    """The tokens of GitHub Apps for the hosts of the fetch, and for single accounts on them, `HOST/ACCOUNT`."""

    def __init__(self, apps: Mapping[str, Message]) -> None:
        self._apps = apps

    def find(self, url: str) -> tuple[str, Message]:
        """Return the account of a URL and what there is for it; for its host, without a name, if there is nothing."""
        target = endpoint(url)
        hosts = (f"{target.host}:{target.port}", target.host)
        account = self._account(url).lower()
        if target.scheme == "https" and account:
            for host in hosts:
                if found := self._apps.get(f"{host}/{account}"):
                    return account, found
        return "", self._apps.get(hosts[0]) or self._apps.get(hosts[1]) or {}

    def spelled(self, url: str) -> str:
        """Return a URL with its account in lower case, if there is something for it: git distinguishes what hosts do not."""
        with contextlib.suppress(UrlRefused):
            account, _ = self.find(url)
            if account:
                scheme, _, rest = url.partition("://")
                host, _, path = rest.partition("/")
                return f"{scheme}://{host}/{account}{path.lstrip('/')[len(account) :]}"
        return url

    @staticmethod
    def _account(url: str) -> str:
        """Return the first component of the path of a URL, as it is written."""
        return urllib.parse.urlsplit(url).path.lstrip("/").partition("/")[0]


class Fetcher:
    """Fetches the repository of an attempt with its submodules and large files, and looks the tree over."""

    def __init__(self, spec: Spec, runner: Runner, workdir: str, write: OnLine) -> None:
        self._spec = spec
        self._runner = runner
        self._write = write
        self.directory = str(spec.get("directory") or os.path.join(workdir, "repository"))
        self.warnings: list[str] = []
        self._trace = os.path.join(workdir, "redirect.trace")
        self._sizes = SizeLimits(spec, self.directory)
        self._git = Git(spec, runner, self._sizes, write)
        self._given = spec.get("git") or {}
        self._rules = AddressRules(
            bool(spec.get("allow_private_addresses")), self._given.get("ssh_hosts") or ()
        )
        self._accounts = Accounts(self._given.get("apps") or {})
        self._access: GitAccess | None = None
        self._submodules = 0
        self._asks_for_privacy = bool(spec.get("private_image"))
        self.is_private = False
        """True if something came from where credentials are needed; known if the image has another name then."""

    def fetch(self) -> str:
        """Fetch everything, and return the directory. Raises AttemptEnded."""
        source = Source(self._spec["repo_url"], self._spec.get("ref") or "HEAD", self._spec.get("source_ref"))
        self._write(f"Fetching {shown_url(source.url)} ({source.ref})")
        self._fetch(source, self.directory, depth=0)
        check_tree(self.directory, self._spec.get("subdir") or "")
        self._check_runtime()
        return self.directory

    def _check_runtime(self) -> None:
        """Warn of a `runtime.txt` that repo2docker does not understand, as it builds with other versions then."""
        base = os.path.join(self.directory, self._spec.get("subdir") or "")
        for path in (os.path.join(name, "runtime.txt") for name in ("", "binder", ".binder")):
            try:
                with open(os.path.join(base, path), "rb") as file:
                    is_marked = file.read(3) == BYTE_ORDER_MARK.encode()
            except OSError:
                continue
            if is_marked:
                self.warn(f"repo2docker ignores {path}. {BYTE_ORDER_MARK_TEXT}")

    def _fetch(self, source: Source, directory: str, *, depth: int) -> None:
        retries = self._spec.get("fetch_retries", 3)
        commit = self._runner.repeat(
            lambda: self._fetch_once(source, directory), pauses(FETCH_PAUSES, retries), self._write
        )
        entries = self._list(source, directory, commit)
        code, lines = self._git.local(directory, "checkout", "--quiet", "--force", "--detach", commit)
        if code != 0:
            raise self._failure(source, lines, doing="checked out")
        self._git.local(directory, "config", "remote.origin.url", source.url)
        self._git.local(directory, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        self._get_large_files(source, directory)
        if entries:
            self._fetch_submodules(source, directory, commit, entries, depth=depth + 1)

    # -- one repository

    def _fetch_once(self, source: Source, directory: str) -> str:
        asked = source
        for _ in range(MAX_REDIRECTS + 1):
            pins = [*self.checked(asked), *self._credentials(asked)]
            self._make(asked, directory)
            lines: list[str] = []
            for way in asked.ways(self._spec.get("fetch_depth", 1)):
                flags = ["fetch", "--quiet", "--progress", "--no-tags", "--force", "--no-recurse-submodules"]
                code, lines = self._git.remote(directory, *flags, *way, options=pins)
                if code == 0 and (commit := self._commit(asked, directory)):
                    self._note_privacy(asked, pins)
                    return commit
                if code == 0:
                    self._make(asked, directory)  # what has come is shallow, and would stay so
                kind = classify_git(lines, asked.url)[0]
                if kind == "absent" and self._git.server_knows_ids():
                    raise self._no_commit(source)
                if code != 0 and kind not in ("refused", "absent"):
                    break
            else:
                raise self._no_commit(source)
            if classify_git(lines, asked.url)[0] != "redirected":
                raise self._failure(asked._replace(url=source.url), lines, at=asked.url)
            asked = asked._replace(url=self._accounts.spelled(self._redirected(asked, directory, pins)))
            self._write(f"{source.title} redirects to {shown_url(asked.url)}")
        raise self._problem(source, "redirects too many times.")

    def _make(self, source: Source, directory: str) -> None:
        """Make an empty repository; whatever an earlier try left is removed."""
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        # Older versions of git, which know no other kind, do not know the option either.
        kind = ["--object-format=sha256"] if len(source.ref) == 64 and source.is_pinned else []
        code, lines = self._git.local(directory, "init", "--quiet", "--template=", *kind)
        if code != 0:
            raise self._failure(source, lines)

    def _commit(self, source: Source, directory: str) -> str | None:
        """Return the commit that was fetched; None if what came is not the one that is needed."""
        name = source.ref if source.is_pinned else "FETCH_HEAD"
        code, lines = self._git.local(directory, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        return lines[0].strip() if code == 0 and lines else None

    def _list(self, source: Source, directory: str, commit: str) -> list[TreeEntry]:
        """Count the files of a commit before they are checked out, and return its submodules."""
        found: list[TreeEntry] = []

        def on_line(line: str) -> None:
            facts, _, path = line.partition("\t")
            words = facts.split()
            if len(words) != 4:
                return
            if words[1] == "commit":
                found.append(TreeEntry(unquoted(path), words[2]))
            else:
                self._sizes.add(int(words[3]) if words[3].isdigit() else 0)

        code, _ = self._git.local(directory, "ls-tree", "-r", "--long", commit, on_line=on_line)
        if code != 0:
            raise AttemptEnded("fetch_interrupted", f"{source.title} could not be read after it was fetched.")
        return found

    def _note_privacy(self, source: Source, pins: Sequence[str]) -> None:
        """Find out whether what was fetched can be read without credentials. That git has some does not mean it needed them."""
        if not self._asks_for_privacy or self.is_private:
            return
        access = self._git_access()
        url = access.used(source.url)
        parts = urllib.parse.urlsplit(url)
        is_plain = parts.scheme in DEFAULT_PORTS and "@" not in parts.netloc
        options = [*pins, *access.about_connections(url)]
        if not is_plain or not self._git.is_readable_by_anybody(url, options):
            self._note_private(source.title)

    def _note_private(self, title: str) -> None:
        """Have the image named as one of private content."""
        if self._asks_for_privacy and not self.is_private:
            self.is_private = True
            self._write(f"{title} cannot be read without credentials: no other tenant gets the image.")

    # -- addresses

    def checked(self, source: Source) -> list[str]:
        """Check the URL and the addresses of its host; return options that make git connect to those."""
        try:
            target = self._rules.check(source.url)
            if self._rules.allow_private or goes_through_proxy(target):
                return []
            if literal_address(target.host):
                return []
            addresses = self._look_up(source, target)
            self._rules.check_addresses(target.host, addresses)
        except UrlRefused as refusal:
            raise self._problem(source, f"cannot be fetched: its address {refusal}.") from refusal
        if target.scheme == "git":
            return [f"core.gitProxy={self._connector(addresses)}"]
        if target.scheme == "ssh":
            name = target.host if target.port == SSH_PORT else f"[{target.host}]:{target.port}"
            program = shlex.quote(self._connector(addresses)).replace("%", "%%")
            pin = f"-o {shlex.quote(f'ProxyCommand={program} %h %p')} -o HostKeyAlias={name}"
            return [f"core.sshCommand={self._given['ssh_command']} {pin}"]
        return [
            f"http.curloptResolve={host}:{target.port}:{','.join(addresses)}"
            for host in (target.host, f"{target.host}.")
        ]

    def _connector(self, addresses: list[str]) -> str:
        """Return a program that connects git to the addresses of a host; git calls it with host and port."""
        command = shlex.join([*THIS_PROGRAM, "--connect", ",".join(addresses)])
        path = os.path.join(self._runner.workdir, "connect")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {command} "$2"\n')
        os.chmod(path, 0o700)
        return path

    def _credentials(self, source: Source) -> list[str]:
        """Return options that keep credentials from a server that they may not be for."""
        restrictions = self._git_access().restrictions(source.url)
        # What withdraws helpers for all hosts withdraws those of the tenant for this one, too.
        own = self._given.get("config") if NO_HELPER in restrictions else None
        return [*restrictions, *(f"{name}={value}" for name, value in own or ())]

    def _git_access(self) -> GitAccess:
        if self._access is None:
            url = self._spec["repo_url"]
            self._access = GitAccess([url, GitAccess([]).mapped(url)])
        return self._access

    def _look_up(self, source: Source, target: Target) -> list[str]:
        # In a process of its own: the system's resolver cannot be interrupted.
        command = [sys.executable, "-I", "-S", "-c", LOOK_UP, target.host, str(target.port)]
        found: list[str] = []
        code = self._runner.run(command, found.append, LOOK_UP_SECONDS)
        if code == 0:
            return found
        if code == 3:
            raise self._problem(source, f"could not be fetched: there is no host {target.host}.")
        message = f"{source.title} could not be fetched: the name service did not resolve {target.host}."
        raise FetchFailed("fetch_interrupted", message, may_pass=True)

    def _redirected(self, source: Source, directory: str, pins: list[str]) -> str:
        """Return the URL that the server redirects to. git does not follow, so that the address can be checked."""
        self._git.remote(directory, "ls-remote", "--", source.url, "HEAD", options=pins, trace=self._trace)
        try:
            with open(self._trace, encoding="utf-8", errors="replace") as file:
                found = re.findall(r"(?im)<= recv header: location: *(\S+)", file.read())
            # It has the headers that were sent, too.
            os.unlink(self._trace)
        except OSError:
            found = []
        location = urllib.parse.urljoin(f"{source.url.rstrip('/')}/info/refs", found[-1]) if found else ""
        url, service, _ = location.partition("/info/refs")
        if not service:
            raise self._problem(
                source, f"redirects to {shown_url(location) or 'nowhere'}, which is not a git repository."
            )
        return url

    # -- failures

    def _problem(self, source: Source, what: str) -> FetchFailed:
        """Return the failure for a lasting problem of a repository or a submodule."""
        return FetchFailed("submodule_failed" if source.path else "fetch_failed", f"{source.title} {what}")

    def _no_commit(self, source: Source) -> FetchFailed:
        if source.path:
            return self._problem(source, f"has no commit {source.ref}, which the repository refers to.")
        return FetchFailed("ref_not_found", f"The repository has no branch, tag or commit {source.ref}.")

    def _failure(
        self, source: Source, lines: list[str], *, doing: str = "fetched", at: str | None = None
    ) -> FetchFailed:
        kind, words = classify_git(lines, at or source.url)
        if kind == "unresolved":
            target = self._rules.check(at or source.url)
            if not goes_through_proxy(target):
                self._look_up(source, target)  # raises where the name service has an answer, or none
        if kind == "host_key":
            return FetchFailed("host_key_refused", self._host_key_text(source, lines))
        if kind == "private":
            return self._private(source)
        if kind == "gone":
            return self._problem(
                source, f"could not be fetched: there is no git repository at {shown_url(source.url)}."
            )
        # git does not always give the reason for a file that it cannot write.
        if kind == "disk_full" or self._disk_is_full():
            return FetchFailed("disk_full", f"{OwnDiskFull.text}: {words}")
        if kind == "lasting" or doing != "fetched":
            return self._problem(source, f"could not be {doing}: {words}")
        return FetchFailed(
            "fetch_interrupted", f"{source.title} could not be fetched: {words}", may_pass=True
        )

    def _private(self, source: Source) -> FetchFailed:
        """Return the failure for a repository that a login is needed for, or another than the given one."""
        if failure := self._app_failure(source):
            return failure
        if self._had_credentials(source):
            return FetchFailed(
                "credentials_refused",
                f"{source.title} could not be fetched: {shown_host(source.url)} refuses the credentials that the operator "
                "has configured. They have expired, were withdrawn, or are not for this repository.",
            )
        if not source.path:
            return FetchFailed(
                "repository_private",
                "The repository requires credentials: it is private or does not exist.",
            )
        return self._problem(source, "asks for a password: it is private or does not exist.")

    def _app_failure(self, source: Source) -> FetchFailed | None:
        """Return the failure if a GitHub App had no token for the fetch, or one that has expired."""
        account, app = self._accounts.find(source.url)
        if account and not app.get("expires_at"):
            return FetchFailed(
                "repository_private",
                f"{source.title} could not be fetched: it is private or does not exist, and the service has no token for the "
                f"account {account}. {app.get('problem') or ''}".rstrip(),
            )
        if app.get("problem"):
            return FetchFailed("credentials_refused", str(app["problem"]))
        expires_at = app.get("expires_at")
        if not expires_at or time.time() < expires_at:
            return None
        until = time.strftime("%H:%M UTC", time.gmtime(expires_at))
        return FetchFailed(
            "fetch_interrupted",
            f"{source.title} could not be fetched: the token of the GitHub App for this attempt has expired, at {until}. The "
            "next attempt gets a new one.",
        )

    def _had_credentials(self, source: Source) -> bool:
        if endpoint(source.url).scheme == "ssh":
            return True
        return self._access is not None and bool(self._access.login(source.url))

    def _host_key_text(self, source: Source, lines: list[str]) -> str:
        has_changed = any("IDENTIFICATION HAS CHANGED" in line for line in lines)
        what = (
            "has another SSH key than the one that is recorded" if has_changed else "has no recorded SSH key"
        )
        return (
            f"{source.title} could not be fetched: {shown_host(source.url)} {what}. It was given a new key, or another "
            "machine answers in its place."
        )

    # -- submodules

    def _fetch_submodules(
        self, source: Source, directory: str, commit: str, entries: list[TreeEntry], *, depth: int
    ) -> None:
        declared = self._declared(directory, commit)
        for entry in entries:
            url, update = declared.get(entry.path, ("", ""))
            if update == "none":
                continue
            path = f"{source.path}/{entry.path}".lstrip("/")
            self._submodules += 1
            if depth > MAX_SUBMODULE_DEPTH or self._submodules > MAX_SUBMODULES:
                raise AttemptEnded(
                    "submodule_failed",
                    f"The submodule {shown_url(path)} is one too many: at most {MAX_SUBMODULES} submodules, "
                    f"{MAX_SUBMODULE_DEPTH} levels deep, are fetched.",
                )
            wanted = Source(url, entry.commit, path=path)
            if not url:
                raise self._problem(wanted, "has no address: .gitmodules does not name one.")
            try:
                wanted = wanted._replace(url=self._accounts.spelled(submodule_url(source.url, url)))
            except UrlRefused as refusal:
                raise self._problem(wanted, f"cannot be fetched: its address {refusal}.") from refusal
            self._write(
                f"Fetching the submodule {shown_url(path)} from {shown_url(wanted.url)} ({entry.commit})"
            )
            self._fetch(wanted, submodule_place(directory, entry.path, path), depth=depth)

    def _declared(self, directory: str, commit: str) -> dict[str, tuple[str, str]]:
        """Return URL and update mode of each path in .gitmodules, which is read from the commit and not from a file."""
        sections: dict[str, dict[str, str]] = {}
        for key, value in self._config(directory, f"{commit}:.gitmodules"):
            name, _, field = key.rpartition(".")
            sections.setdefault(name, {})[field] = value
        return {
            section["path"].rstrip("/"): (section.get("url", ""), section.get("update", ""))
            for section in sections.values()
            if section.get("path")
        }

    def _config(self, directory: str, blob: str) -> list[tuple[str, str]]:
        """Return keys and values of a file in git's format that is in a commit; nothing if it is not or is broken."""
        code, lines = self._git.local(
            directory, "config", "--no-includes", "--blob", blob, "--null", "--list"
        )
        items = "\n".join(lines).split("\0") if code == 0 else []
        return [(key, value) for key, _, value in (item.partition("\n") for item in items)]

    # -- large files

    def _get_large_files(self, source: Source, directory: str) -> None:
        """Fetch files of Git LFS; warn about those that remain pointers. Raises AttemptEnded for what may pass."""
        settings = dict(self._config(directory, "HEAD:.lfsconfig"))
        pointers = self._wanted(directory, settings)
        if not pointers:
            return
        missing = self._download(source, directory, settings, pointers)
        self._replace_pointers(directory, [pointer for pointer in pointers if pointer.oid not in missing])
        left = [pointer for pointer in pointers if pointer.oid in missing]
        if left:
            where = f" of the submodule {shown_url(source.path)}" if source.path else ""
            are = "file is" if len(left) == 1 else "files are"
            self.warn(
                f"{len(left)} {are} missing{where}, such as {shown_url(left[0].path)}: Git LFS has the content, the image "
                f"has pointers in its place. Reason: {missing[left[0].oid]}"
            )

    def _wanted(self, directory: str, settings: Mapping[str, str]) -> list[Pointer]:
        """Return the pointers that .gitattributes assigns to Git LFS, without those that .lfsconfig leaves out."""
        paths = self._paths(directory, "--", ":(attr:filter=lfs)")
        found = [pointer for path in paths if (pointer := read_pointer(os.path.join(directory, path), path))]
        included, excluded = (
            self._matching(directory, settings.get(f"lfs.fetch{name}", "")) for name in ("include", "exclude")
        )
        wanted = [
            pointer
            for pointer in found
            if (included is None or pointer.path in included) and pointer.path not in (excluded or ())
        ]
        if len(wanted) < len(found):
            self._write(
                f".lfsconfig leaves {len(found) - len(wanted)} files of Git LFS out: they stay pointers."
            )
        return wanted

    def _matching(self, directory: str, patterns: str) -> set[str] | None:
        """Return the files that match a list of patterns as .gitignore has them; None if the list is empty."""
        if not patterns.strip():
            return None
        name = os.path.join(self._runner.workdir, "patterns")
        with open(name, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(part.strip() for part in patterns.split(",")))
        return set(self._paths(directory, "--cached", "--ignored", f"--exclude-from={name}"))

    def _paths(self, directory: str, *arguments: str) -> list[str]:
        _, lines = self._git.local(directory, "ls-files", *arguments)
        return [unquoted(line) for line in lines]

    def _download(
        self, source: Source, directory: str, settings: Mapping[str, str], pointers: list[Pointer]
    ) -> dict[str, str]:
        """Fetch the content of pointers; return why it is missing, by id."""
        sizes = {pointer.oid: pointer.size for pointer in pointers if pointer.oid != UNREADABLE}
        unreadable = {UNREADABLE: "The pointer is broken, or uses an extension of Git LFS."}
        if not sizes:
            return unreadable
        for pointer in pointers:
            self._sizes.add(pointer.size, files=0)
        base = source.url.rstrip("/")
        own = f"{base if base.endswith('.git') else base + '.git'}/info/lfs"
        url = self._accounts.spelled(settings.get("lfs.url") or settings.get("remote.origin.lfsurl") or own)
        job = {
            "url": url,
            "ssh": self._ssh_of_large_files(source, url),
            "trusted": self._spec["repo_url"],
            "allow_private": self._rules.allow_private,
            "directory": os.path.join(directory, LARGE_FILES),
            "objects": sizes,
            "ref": source.named,
        }
        os.makedirs(os.path.join(directory, LARGE_FILES), exist_ok=True)
        files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        self._write(f"Fetching {files} of Git LFS ({in_bytes(sum(sizes.values()))}) from {shown_url(url)}")
        retries = self._spec.get("fetch_retries", 3)
        missing = self._runner.repeat(
            lambda: self._download_once(source, job), pauses(FETCH_PAUSES, retries), self._write
        )
        return {**unreadable, **missing}

    def _ssh_of_large_files(self, source: Source, url: str) -> Message | None:
        """Return how to ask by SSH for the server of Git LFS; None where the repository is not read by SSH itself."""
        if endpoint(source.url).scheme != "ssh" or endpoint(url) != endpoint(source.url):
            return None
        pins = self.checked(source)
        command = pins[0].partition("=")[2] if pins else self._given.get("ssh_command")
        return {"command": command or "ssh", "url": source.url}

    def _download_once(self, source: Source, job: Message) -> dict[str, str]:
        missing: dict[str, str] = {}
        ends: list[Message] = []

        def on_line(raw: str) -> None:
            record = parse_fetch_record(raw)
            missing.update(record.get("missing", {}))
            ends.extend([record] if "end" in record else [])
            if "missing" not in record and "end" not in record:
                self._write(str(record.get("text", raw)))

        path = os.path.join(self._runner.workdir, "large-files.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(job, file)
        self._git.run_in_time(
            [*THIS_PROGRAM, "--large-files", "--spec", path], on_line, self._runner.environment
        )
        if not ends:
            raise AttemptEnded("builder_error", "Fetching files of Git LFS ended without a result.")
        what = (
            f"Files of Git LFS of the submodule {shown_url(source.path)}"
            if source.path
            else "Files of Git LFS"
        )
        if ends[0].get("login"):
            self._note_private(what)
        reason = sentence(ends[0]["end"]) if ends[0]["end"] else ""
        if ends[0].get("disk_full") or self._disk_is_full():
            raise FetchFailed("disk_full", f"{OwnDiskFull.text}: {reason}")
        if ends[0].get("may_pass"):
            raise FetchFailed("fetch_interrupted", f"{what} could not be fetched: {reason}", may_pass=True)
        if reason:
            missing.update(
                (oid, reason) for oid in job["objects"] if not os.path.exists(f"{job['directory']}/{oid}")
            )
        return missing

    def _replace_pointers(self, directory: str, pointers: list[Pointer]) -> None:
        """Put the content in the place of pointers."""
        last = {pointer.oid: pointer for pointer in pointers}
        for pointer in pointers:
            place = os.path.join(directory, pointer.path)
            content = os.path.join(directory, LARGE_FILES, pointer.oid)
            if last[pointer.oid] is not pointer:
                content = shutil.copyfile(content, f"{content}.copy")
            os.chmod(content, stat.S_IMODE(os.lstat(place).st_mode))
            os.replace(content, place)
        shutil.rmtree(os.path.join(directory, LARGE_FILES), ignore_errors=True)
        # Otherwise git, which has no filter here, takes them for changes: `git describe --dirty` becomes a version.
        for start in range(0, len(pointers), 500):
            paths = [pointer.path for pointer in pointers[start : start + 500]]
            self._git.local(directory, "update-index", "--assume-unchanged", "--", *paths)

    def _disk_is_full(self) -> bool:
        return any(
            free_bytes(path) < MIN_FREE_BYTES
            for path in (self._runner.workdir, os.path.dirname(self.directory))
            if os.path.isdir(path)
        )

    def warn(self, text: str) -> None:
        """Write a warning into the log and into the result."""
        self._write(f"Warning: {text}")
        self.warnings.append(text)


def goes_through_proxy(target: Target) -> bool:
    """Return whether a proxy connects, which applies its own rules."""
    # git takes no other variables for http://, and builders do not inherit ALL_PROXY.
    names = {"http": ("http_proxy",), "https": ("https_proxy", "HTTPS_PROXY")}.get(target.scheme, ())
    if not any(os.environ.get(name) for name in names):
        return False
    import urllib.request  # half of the builder's start, for builders behind a proxy only

    return not urllib.request.proxy_bypass(target.host)


def free_bytes(path: str) -> int:
    """Return the space that is left for files in a directory."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def read_pointer(path: str, shown: str) -> Pointer | None:
    """Return what a pointer of Git LFS names; None if the file is not one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, MAX_POINTER_BYTES)
    finally:
        os.close(fd)
    if not text.startswith(POINTER_START):
        return None
    found = _POINTER.fullmatch(text)
    return Pointer(shown, found[1].decode(), int(found[2])) if found else Pointer(shown, UNREADABLE, 0)


def check_tree(root: str, subdir: str) -> None:
    """Refuse a tree in which something is read through a link that leads out of it. Raises AttemptEnded.

    repo2docker and the Docker client read files in three directories: that of the build, its `binder` and its
    `.binder`. No link there may lead out of the repository. Elsewhere, links that lead out are copied into the image as
    links, which nothing on the build machine follows. Sockets, pipes and devices are refused everywhere.
    """
    parts = [part for part in subdir.split("/") if part not in ("", ".")]
    base = None if subdir.startswith("/") else resolved(root, parts)
    if base is None:
        ways = ("/".join(parts[:end]) for end in range(1, len(parts)))
        way = next((way for way in ways if resolved(root, way.split("/")) is None), subdir)
        kind = "link" if os.path.islink(os.path.join(root, way)) else "directory"
        raise unsafe(way, "leads out of the repository and cannot be the directory of the build", kind=kind)
    if not os.path.isdir(os.path.join(root, *base)):
        raise AttemptEnded("no_environment", f"The repository has no directory {shown_url(subdir)}.")
    for name in ("", "binder", ".binder"):
        check_links(root, [*base, name] if name else base)
    check_kinds(root)


def check_links(root: str, parts: list[str]) -> None:
    """Refuse links that lead out of `root` from the directory, and the directory if it is one."""
    directory = resolved(root, parts)
    if directory is None:
        raise unsafe("/".join(parts), "leads out of the repository")
    path = os.path.join(root, *directory)
    if not os.path.isdir(path):
        return
    for name in os.listdir(path):
        if os.path.islink(os.path.join(path, name)) and resolved(root, [*directory, name]) is None:
            target = os.readlink(os.path.join(path, name))
            raise unsafe("/".join([*directory, name]), f"leads out of the repository, to {shown_url(target)}")


def check_kinds(root: str) -> None:
    """Refuse everything that is no file, directory or link."""
    left = [root]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    raise unsafe(
                        os.path.relpath(entry.path, root), "is a device, a pipe or a socket", kind="file"
                    )


def unsafe(path: str, what: str, *, kind: str = "link") -> AttemptEnded:
    """Return the end of an attempt whose repository would have files of the build machine read."""
    return AttemptEnded("unsafe_repository", f"The {kind} {shown_url(path)} {what}.")


def resolved(root: str, parts: list[str]) -> list[str] | None:
    """Return the path below `root` that a path leads to, through links; None if it leads out of `root`.

    The path need not exist. A circle of links leads nowhere, and so not out.
    """
    done: list[str] = []
    left, steps = list(parts), 0
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return None
            done.pop()
            continue
        path = os.path.join(root, *done, part)
        if not os.path.islink(path):
            done.append(part)
            continue
        target, steps = os.readlink(path), steps + 1
        if target.startswith("/"):
            return None
        if steps > MAX_LINK_STEPS:
            return [*done, part]
        left = [*target.split("/"), *left]
    return done


# --- Datasets -----------------------------------------------------------------------------------------------

DATASET_TIMEOUT_SECONDS = 60.0
DATASET_REASONS = ("fetch_failed", "ref_not_found", "repository_too_large", "unsafe_repository")


class DatasetProblem(Exception):
    """A dataset cannot be built; raised within repo2docker, whose log has the text."""


def give_up_dataset(reason: str, message: str) -> None:
    """Raise DatasetProblem in the form that `RaisedError.dataset_problem` recognises."""
    raise DatasetProblem(f"{reason}: {message}")


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute for a while by what `make` makes of it."""
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


class DatasetGuard:
    """Limits what repo2docker's content providers may connect to, download and unpack, while it is entered.

    A dataset can name any address as that of a file, and any host can redirect to one.
    """

    def __init__(self, spec: Spec) -> None:
        self._allows_private = bool(spec.get("allow_private_addresses"))
        self._max_bytes = spec.get("max_dataset_bytes") or float("inf")
        self._max_files = spec.get("max_repository_files") or float("inf")
        self._bytes = 0
        self.problem: tuple[str, str] | None = None
        """Reason and message of what was refused: libraries turn the exception into one of their own."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Apply the limits, and raise DatasetProblem if one was met."""
        import zipfile

        requests: Any = sys.modules["requests"]  # repo2docker's

        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(replaced(socket, "getaddrinfo", self._look_up))
                stack.enter_context(replaced(requests.Response, "iter_content", self._read))
                stack.enter_context(replaced(zipfile.ZipFile, "extractall", self._unpack))
                yield
        except DatasetProblem:
            raise
        except Exception:
            if self.problem:
                give_up_dataset(*self.problem)
            raise

    def _refuse(self, reason: str, message: str) -> None:
        self.problem = (reason, message)
        raise OSError(message)

    def _look_up(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a look-up of names after which a program can connect to allowed addresses only."""
        proxies = {urllib.parse.urlsplit(url).hostname for url in urllib.request.getproxies().values()}

        def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
            found = original(host, *arguments, **options)
            if self._allows_private or host in proxies:  # a proxy applies its own rules
                return found
            for entry in found:
                address = str(entry[4][0]).partition("%")[0]
                if not is_public(ipaddress.ip_address(address)):
                    self._refuse(
                        "unsafe_repository",
                        f"The dataset leads to {host} at {address}, which is inside the network of the service.",
                    )
            return found

        return getaddrinfo

    def _read(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that reads responses within the limit."""

        def iter_content(response: Any, *arguments: Any, **options: Any) -> Iterator[bytes]:
            for chunk in original(response, *arguments, **options):
                self._bytes += len(chunk)
                self._check_bytes(self._bytes)
                yield chunk

        return iter_content

    def _unpack(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that unpacks archives whose content is within the limits."""

        def extractall(archive: Any, *arguments: Any, **options: Any) -> None:
            entries = archive.infolist()
            if len(entries) > self._max_files:
                self._refuse(
                    "repository_too_large",
                    f"The dataset has an archive of more than {self._max_files:,} files, the limit of this service.",
                )
            self._check_bytes(sum(entry.file_size for entry in entries))
            original(archive, *arguments, **options)

        return extractall

    def _check_bytes(self, size: int) -> None:
        if size > self._max_bytes:
            self._refuse(
                "repository_too_large",
                f"The dataset is larger than {in_bytes(self._max_bytes)}, the limit of this service.",
            )


class PinnedDataset:
    """Mixed into a content provider of repo2docker: makes it fetch one version of a dataset, or nothing.

    Most of them fetch what is newest at the time, whatever was resolved: it would get the tag of another version.
    """

    guard: Any
    wanted: str
    source: str
    content_id: Any
    session: Any
    hosts: Any
    version: Any
    _fetch_version: Any

    def __init__(self) -> None:
        super().__init__()
        site = urllib.parse.urlsplit(self.source)
        origin = f"{site.scheme}://{site.netloc}/records/"
        if self._is("Dataverse"):
            # Otherwise it asks a third party for the list of installations. The service has resolved this one.
            self.hosts = [{"hostname": site.netloc}]
        elif self._is("Zenodo") and not any(origin in host["hostname"] for host in self.hosts):
            api = f"{site.scheme}://{site.netloc}/api/records/"
            self.hosts.append({**self.hosts[1], "hostname": [origin], "api": api})

    def detect(self, source: str, ref: str | None = None, extra_args: Any = None) -> Any:
        with self.guard.entered():
            found = self._parent.detect(source, ref, extra_args)
        if found is None:
            give_up_dataset("fetch_failed", f"{shown_url(source)} is not a site that repo2docker knows")
        if not self._is("Dataverse") and not self._is_activity(found):
            self._check(self.content_id)
        return found

    def fetch(self, found: Any, output_dir: str, yield_output: bool = False) -> Iterator[str]:
        with self.guard.entered():
            yield from self._parent.fetch(found, output_dir, yield_output)
            if hasattr(self, "_fetch_version") and not self._is_activity(found):
                # It may have changed while it was downloaded.
                self.version = self._fetch_version(found.get("api_url") or found["host"])
                self._check(self.content_id)
            if not os.listdir(output_dir):
                give_up_dataset("fetch_failed", "The dataset has no files that could be downloaded")

    def urlopen(self, url: str, **options: Any) -> Any:
        return self._request(url, **{"stream": True, **options})

    def _request(self, url: str, **options: Any) -> Any:
        response = self.session.get(url, **{"timeout": DATASET_TIMEOUT_SECONDS, **options})
        if "/api/datasets/:persistentId" in url and response.status_code == 200:
            data = response.json()["data"]
            latest = data["latestVersion"]
            self._check(f"{data['id']}.v{latest['versionNumber']}.{latest['versionMinorNumber']}")
        return response

    def _urlretrieve(self, url: str) -> tuple[str, None]:
        file, path = tempfile.mkstemp(suffix=".zip")
        with os.fdopen(file, "wb") as target:
            for chunk in self.urlopen(url).iter_content(1 << 16):
                target.write(chunk)
        return path, None

    @property
    def _parent(self) -> Any:
        return super()

    def _is(self, name: str) -> bool:
        return type(self).__name__ == name

    def _is_activity(self, found: Any) -> bool:
        return isinstance(found, dict) and bool(found.get("activity_id"))

    def _check(self, found: str) -> None:
        if found != self.wanted:
            give_up_dataset(
                "ref_not_found",
                f"The dataset has changed since the request: it was at version {self.wanted}, and its host has {found} "
                "now. Build again to get the newest version",
            )


def pinned_provider(base: Any, spec: Spec) -> Any:
    """Return a content provider of repo2docker for the one version of a dataset that the specification names."""
    pinned = {
        "guard": DatasetGuard(spec),
        "wanted": str(spec.get("ref") or ""),
        "source": str(spec.get("repo_url") or ""),
    }
    return type(base.__name__, (PinnedDataset, base), pinned)


DATASET_CONFIG = """
import importlib.util, json
spec = importlib.util.spec_from_file_location("builder", {path!r})
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)
c.Repo2Docker.content_providers = [builder.pinned_provider({provider}, json.loads({spec!r}))]
"""
_DATASET_SPEC = ("repo_url", "ref", "allow_private_addresses", "max_dataset_bytes", "max_repository_files")


# --- Large files --------------------------------------------------------------------------------------------
#
# The batch API of Git LFS with its basic transfer, https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
# It runs as a process of its own, as git does: nothing that a server does can hold up the fetch.

LARGE_FILES = os.path.join(".git", "large-files")
LFS_TYPE = "application/vnd.git-lfs+json"
LFS_BATCH = 100  # objects, as git-lfs asks for
LFS_DOWNLOADS = 8  # at a time
SSH_SECONDS = 60
SSH_FAILED = 255  # ssh's own failure, not that of what it has run
MAX_BATCH_BYTES = 8 << 20
MAX_POINTER_BYTES = 1024
HTTP_SECONDS = 60.0  # time without a byte from a server
UNBOUND_URL = "https://unbound.invalid/"
"""Credentials that exist for this URL are bound to no host."""
POINTER_START = b"version https://git-lfs.github.com/spec/"
UNREADABLE = ""  # id of what a pointer does not name
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?"
)


class HttpFailed(Exception):
    """A request that was not answered as it should be."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.may_pass = may_pass


class Proxy(NamedTuple):
    """A proxy for HTTP."""

    host: str
    port: int
    headers: dict[str, str]


_ABOUT_CONNECTIONS = ("proxy", "sslcainfo", "sslcapath", "sslverify")


class GitAccess:
    """Git's configuration for HTTP: what the operator allows to be sent to a server.

    Credentials that are bound to no host are for the host of the repository; a repository may name others.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted = {endpoint(url) for url in trusted}
        self._lock = threading.Lock()
        self._found: dict[tuple[str, ...], str | None] = {}

    def mapped(self, url: str) -> str:
        """Return the URL that the operator has git use in its place, perhaps with credentials."""
        found = self.used(url)
        return found if found.startswith(("https://", "http://")) else url

    def used(self, url: str) -> str:
        """Return the URL that git uses in the place of another one, whatever it is; an empty one if that is unknown."""
        return (self._git("ls-remote", "--get-url", "--", url) or "").strip()

    def about_connections(self, url: str) -> list[str]:
        """Return options for the way to a server, without any that log in there."""
        found = self.settings(url)
        return [f"http.{name}={found[name]}" for name in _ABOUT_CONNECTIONS if name in found]

    def settings(self, url: str) -> dict[str, str]:
        """Return the settings `http.*` for a URL, with names in lower case."""
        lines = (self._git("config", "--get-urlmatch", "http", url) or "").splitlines()
        return {
            name.lower(): value for name, _, value in (line[len("http.") :].partition(" ") for line in lines)
        }

    def header(self, url: str) -> tuple[str, str] | None:
        """Return the header that the operator has git send to a server."""
        name, _, value = self._bound(lambda at: self.settings(at).get("extraheader", ""), url).partition(":")
        return (name.strip(), value.strip()) if name else None

    def login(self, url: str) -> str:
        """Return the value of the header Authorization for a server that asks for a password; empty if there is none."""
        found = self._bound(self._fill, url) or self._netrc(url)
        return f"Basic {base64.b64encode(found.encode()).decode()}" if found else ""

    def trusts(self, url: str) -> bool:
        """Return whether credentials that are bound to no host are for a URL."""
        target = endpoint(url)
        return target in self._trusted or (
            (target.scheme, target.port) == ("https", 443)
            and any(target.host == host for _, host, _ in self._trusted)
        )

    def restrictions(self, url: str) -> list[str]:
        """Return options by which git does not send what is bound to no host to a server that a repository names."""
        if self.trusts(url):
            return []
        # Git withdraws a setting by one that is at least as specific.
        header = [f"http.{url}.extraHeader="] if self.settings(UNBOUND_URL).get("extraheader") else []
        helper = [NO_HELPER] if self._fill(UNBOUND_URL) else []
        return [*header, *helper]

    def _bound(self, look_up: Callable[[str], str], url: str) -> str:
        found = look_up(url)
        return found if not found or self.trusts(url) or found != look_up(UNBOUND_URL) else ""

    def _fill(self, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        question = f"protocol={parts.scheme}\nhost={parts.netloc}\npath={parts.path.lstrip('/')}\n\n"
        answer = dict(
            line.partition("=")[::2]
            for line in (self._git("credential", "fill", question=question) or "").split("\n")
        )
        return (
            f"{answer['username']}:{answer['password']}" if {"username", "password"} <= answer.keys() else ""
        )

    def _netrc(self, url: str) -> str:
        import netrc

        home = os.environ.get("HOME", "/")
        try:
            hosts = netrc.netrc(os.path.join(home, ".netrc")).hosts
        except (OSError, netrc.NetrcParseError):
            return ""
        found = hosts.get(endpoint(url).host) or (hosts.get("default") if self.trusts(url) else None)
        return f"{found[0]}:{found[2]}" if found else ""

    def _git(self, *arguments: str, question: str = "") -> str | None:
        """Return the output of git outside of any repository, None if it failed. It is asked once."""
        with self._lock:
            if (key := (*arguments, question)) not in self._found:
                self._found[key] = self._ask_git(arguments, question)
            return self._found[key]

    @staticmethod
    def _ask_git(arguments: tuple[str, ...], question: str) -> str | None:
        environment = {**os.environ, "GIT_DIR": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                ["git", *arguments], input=question, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment, timeout=HELPER_SECONDS, check=True, encoding="utf-8", errors="surrogateescape",
            ).stdout  # fmt: skip
        return None


def endpoint(url: str) -> Target:
    """Return scheme, host and port of a URL. Raises UrlRefused."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise UrlRefused("cannot be read") from error
    return Target(parts.scheme, (parts.hostname or "").rstrip("."), port)


def joined(base: str, url: str) -> str:
    """Return a URL that is relative to another one. Raises UrlRefused."""
    try:
        return urllib.parse.urljoin(base, url)
    except ValueError as error:
        raise UrlRefused("cannot be read") from error


def basic(user: str) -> str:
    """Return the value of a header for a user with its password, as in a URL."""
    plain = urllib.parse.unquote(user if ":" in user else f"{user}:")
    return f"Basic {base64.b64encode(plain.encode()).decode()}"


class Web:
    """HTTP requests to servers that a repository names: to the addresses that were judged, with credentials of the host."""

    def __init__(self, rules: AddressRules, access: GitAccess) -> None:
        self._rules = rules
        self._access = access
        self._logins: dict[Target, str] = {}
        self.unjudged: set[Target] = set()
        """Endpoints that the operator has chosen."""
        self.has_logged_in = False
        """True once credentials were sent."""

    @contextlib.contextmanager
    def request(
        self, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Have the answer 200, after redirects and a login. Raises HttpFailed, UrlRefused and OSError."""
        sent = {name.lower(): value for name, value in headers.items()}
        for _ in range(MAX_REDIRECTS + 2):
            with contextlib.ExitStack() as opened:
                response = self._send(url, sent, body, opened)
                if response.status == 200:
                    yield response
                    return
                url, sent = self._next(url, sent, response)
        raise HttpFailed(f"{shown_host(url)} redirects too many times.")

    def _next(
        self, url: str, sent: dict[str, str], response: http.client.HTTPResponse
    ) -> tuple[str, dict[str, str]]:
        """Return URL and headers of the request that an answer calls for. Raises HttpFailed and UrlRefused."""
        if response.status in (301, 302, 303, 307, 308):
            target = joined(url, response.headers.get("Location", ""))
            if endpoint(target) != endpoint(url):
                return target, self._plain(sent, url, target)
            known = self._access.login(url)
            if sent.get("authorization") == known != self._access.login(target):
                del sent["authorization"]  # accounts of one host can have logins of their own
            return target, sent
        if response.status == 401 and self._log_in(url, sent):
            return url, sent
        raise self._failure(url, response)

    def keep_login(self, url: str, user: str) -> None:
        """Use a user with its password, as in a URL, for a server that asks for one."""
        self._logins[endpoint(url)] = basic(user)

    @staticmethod
    def _plain(headers: Mapping[str, str], url: str, target: str) -> dict[str, str]:
        """Return the headers for another server: those that say what is asked for."""
        if endpoint(url).scheme == "https" and endpoint(target).scheme != "https":
            raise UrlRefused("leads from https:// to an address without encryption")
        return {name: value for name, value in headers.items() if name in ("accept", "content-type")}

    def _log_in(self, url: str, headers: dict[str, str]) -> bool:
        """Add the credentials for a server; False if there are none, or if it got them."""
        known = self._logins.get(endpoint(url)) or self._access.login(url)
        if not known or headers.get("authorization") == known:
            return False
        headers["authorization"] = known
        self.has_logged_in = True
        return True

    def _send(
        self, url: str, headers: Mapping[str, str], body: bytes | None, opened: contextlib.ExitStack
    ) -> http.client.HTTPResponse:
        import http.client
        import ssl

        target = self._judge(url)
        settings = self._access.settings(url)
        proxy = self._proxy(target, settings)
        extra = dict([header]) if (header := self._access.header(url)) else {}
        self.has_logged_in = self.has_logged_in or bool(extra)
        own = {
            "user-agent": f"rabbit2docker-builder/{VERSION}",
            "accept-encoding": "identity",
            "connection": "close",
        }
        parts = urllib.parse.urlsplit(url)
        path = urllib.parse.quote(
            urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")), safe=_IN_URLS
        )
        if proxy and target.scheme == "http":
            path, extra = f"http://{parts.netloc}{path}", {**extra, **proxy.headers}
        try:
            connection = opened.enter_context(contextlib.closing(self._connect(target, settings, proxy)))
            connection.request("GET" if body is None else "POST", path, body, {**own, **extra, **headers})
            return connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            what = f"the certificate of {shown_host(url)} is not valid: {error.verify_message}."
            raise HttpFailed(what) from error
        except (OSError, http.client.HTTPException) as error:
            what = f"{shown_host(url)} gave no answer: {getattr(error, 'strerror', None) or error}"
            raise HttpFailed(what.strip(), may_pass=True) from error
        except ValueError as error:
            raise HttpFailed(f"{shown_host(url)} is to get a header that is not valid.") from error

    def _judge(self, url: str) -> Target:
        if endpoint(url) in self.unjudged:
            return endpoint(url)
        target = self._rules.check(url)
        if target.scheme not in ("https", "http"):
            raise UrlRefused(f"begins with `{target.scheme}:`; files of Git LFS come from https:// only")
        return target

    def _connect(
        self, target: Target, settings: Mapping[str, str], proxy: Proxy | None
    ) -> http.client.HTTPConnection:
        import http.client

        context = tls_context(settings) if target.scheme == "https" else None
        host, port = (proxy.host, proxy.port) if proxy else (target.host, target.port)
        connection = (
            http.client.HTTPSConnection(host, port, timeout=HTTP_SECONDS, context=context)
            if context
            else http.client.HTTPConnection(host, port, timeout=HTTP_SECONDS)
        )
        if proxy and context:
            connection.set_tunnel(target.host, target.port, proxy.headers)
        elif not proxy:
            plain = connect_to(self._addresses(target), target.port)
            connection.sock = context.wrap_socket(plain, server_hostname=target.host) if context else plain
        return connection

    def _addresses(self, target: Target) -> list[str]:
        """Return the addresses of a host, all of which are allowed."""
        if literal := literal_address(target.host):
            return [str(literal)]
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            absent = getattr(error, "errno", socket.EAI_NONAME) in (socket.EAI_NONAME, _EAI_NODATA)
            what = (
                f"there is no host {target.host}"
                if absent
                else f"the name service did not resolve {target.host}"
            )
            raise HttpFailed(f"{what}.", may_pass=not absent) from error
        addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        if not self._rules.allow_private and target not in self.unjudged:
            self._rules.check_addresses(target.host, addresses)
        return addresses

    @staticmethod
    def _proxy(target: Target, settings: Mapping[str, str]) -> Proxy | None:
        """Return the proxy that connects to a host and applies its own rules."""
        configured = settings.get("proxy")
        if configured is None and goes_through_proxy(target):
            names = ("http_proxy",) if target.scheme == "http" else ("https_proxy", "HTTPS_PROXY")
            configured = next(filter(None, map(os.environ.get, names)), None)
        if not configured:
            return None
        parts = urllib.parse.urlsplit(configured if "://" in configured else f"http://{configured}")
        if parts.scheme != "http" or not parts.hostname:
            raise HttpFailed("files of Git LFS cannot be fetched through a proxy of this kind.")
        user = parts.netloc.rpartition("@")[0]
        headers = {"proxy-authorization": basic(user)} if user else {}
        return Proxy(parts.hostname, parts.port or 80, headers)

    @staticmethod
    def _failure(url: str, response: http.client.HTTPResponse) -> HttpFailed:
        status, said = response.status, server_message(response)
        if status == 401:
            return HttpFailed(f"{shown_host(url)} asks for a password{said}")
        may_pass = status in (408, 425, 429, 500, 502, 503, 504) or 520 <= status <= 530
        return HttpFailed(f"{shown_host(url)} answered with status {status}{said}", may_pass=may_pass)


_IN_URLS = "/%:=&+,;@!$*'()~?"
_EAI_NODATA = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)


def read_part(response: http.client.HTTPResponse, size: int, url: str) -> bytes:
    """Return the next bytes of an answer, none at its end. Raises HttpFailed if it breaks off."""
    import http.client

    try:
        data = response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise HttpFailed(f"{shown_host(url)} broke off in the middle of an answer.", may_pass=True) from error
    if not data and response.length:
        raise HttpFailed(f"{shown_host(url)} broke off in the middle of an answer.", may_pass=True)
    return data


def server_message(response: http.client.HTTPResponse) -> str:
    """Return the end of a sentence: what a server of Git LFS says about a failure."""
    import http.client

    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        found = _entries(json.loads(response.read(MAX_LINE_BYTES))).get("message")
        if isinstance(found, str) and found:
            return f": {clean_text(found)[:200]}"
    return "."


def shown_host(url: str) -> str:
    """Return the host of a URL for messages: its path and query may contain a token."""
    return shown_url(re.sub(r"^[^/]*//", "", url).partition("/")[0].rpartition("@")[2])


def connect_to(addresses: list[str], port: int) -> socket.socket:
    """Return a connection to the first of the addresses that takes one. Raises OSError."""
    problem: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), HTTP_SECONDS)
        except OSError as error:
            problem = error
    raise problem or OSError(errno.EHOSTUNREACH, "no address")


def connect_streams(addresses: list[str], port: int) -> int:
    """Connect standard input and output to one of the addresses, until the other side closes the connection."""
    try:
        connection = connect_to(addresses, port)
        connection.settimeout(None)
        threading.Thread(target=_send_input, args=(connection,), daemon=True).start()
        while data := connection.recv(1 << 16):
            while data:
                data = data[os.write(1, data) :]
    except OSError as error:
        sys.stderr.write(f"fatal: unable to connect: {error.strerror or error}\n")
        return 1
    return 0


def _send_input(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 1 << 16):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def tls_context(settings: Mapping[str, str]) -> ssl.SSLContext:
    """Return how certificates are checked, as git is configured to."""
    import ssl

    context = ssl.create_default_context(cafile=os.environ.get("GIT_SSL_CAINFO") or settings.get("sslcainfo"))
    if "GIT_SSL_NO_VERIFY" in os.environ or settings.get("sslverify", "").lower() in (
        "false",
        "no",
        "off",
        "0",
    ):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class LargeFiles:
    """Fetches the content of pointers, and writes a record for each that is missing."""

    def __init__(self, job: Message) -> None:
        self._url = str(job["url"]).rstrip("/")
        self._directory = str(job["directory"])
        self._sizes: dict[str, int] = job["objects"]
        self._ref = job.get("ref")
        self._ssh: Message | None = job.get("ssh")
        self._headers: dict[str, str] = {}
        access = GitAccess([job["trusted"], GitAccess([]).mapped(job["trusted"])])
        self._rules = AddressRules(job["allow_private"])
        self._web = Web(self._rules, access)
        self._access = access
        self._lock = threading.Lock()
        self._bytes = 0
        self._shown_at = time.monotonic()

    def fetch(self) -> Message:
        """Fetch everything that is not there, and return the record of the end."""
        try:
            if self._ssh:
                self._ask_by_ssh(self._ssh["command"], self._ssh["url"])
            self._use_mapping()
            wanted = [oid for oid in self._sizes if not os.path.exists(self._place(oid))]
            for start in range(0, len(wanted), LFS_BATCH):
                self._fetch_batch(wanted[start : start + LFS_BATCH])
        except UrlRefused as refusal:
            return {
                "end": f"The address of the server for Git LFS, {shown_host(self._url) or shown_url(self._url)}, {refusal}."
            }
        except HttpFailed as failure:
            return {"end": failure.message, "may_pass": failure.may_pass}
        except OSError as error:
            return self._broken(error)
        return {"end": ""}

    def _ask_by_ssh(self, command: str, url: str) -> None:
        """Use the server, and the login for it, that the repository's host names to those who have a key."""
        parts = urllib.parse.urlsplit(url)
        host = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)
        port = ["-p", str(parts.port)] if parts.port else []
        asked = f"git-lfs-authenticate {shlex.quote(urllib.parse.unquote(parts.path))} download"
        try:
            answer = subprocess.run(
                ["sh", "-c", f'{command} "$@"', "ssh", *port, "--", host, asked],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=SSH_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HttpFailed(f"{shown_host(url)} gave no answer by SSH.", may_pass=True) from error
        if answer.returncode:
            said = clean_text(answer.stderr.decode(errors="replace").strip().rpartition("\n")[2])[:200]
            raise HttpFailed(
                f"{shown_host(url)} names no server for Git LFS by SSH: {said or 'it gives no reason'}",
                may_pass=answer.returncode == SSH_FAILED,
            )
        self._url, self._headers = self._named_by_ssh(url, answer.stdout)
        self._web.has_logged_in = True

    def _named_by_ssh(self, url: str, answer: bytes) -> tuple[str, dict[str, str]]:
        try:
            found = _entries(json.loads(answer))
        except (ValueError, RecursionError) as error:
            raise HttpFailed(f"{shown_host(url)} gives an answer by SSH that cannot be read.") from error
        headers = {str(name): str(value) for name, value in _entries(found.get("header")).items()}
        named = str(found.get("href") or "").rstrip("/")
        if not named:
            parts = urllib.parse.urlsplit(self._url)
            named = f"https://{parts.hostname}{parts.path}"
        if endpoint(named).scheme != "https":
            raise UrlRefused("begins otherwise than with https://, and a login would be sent to it")
        return named, headers

    def _use_mapping(self) -> None:
        """Use the server that the operator has git use in the place of the one that the repository names."""
        self._rules.check(self._url)
        mapped = self._access.mapped(self._url)
        parts = urllib.parse.urlsplit(mapped)
        user, _, host = parts.netloc.rpartition("@")
        if mapped != self._url:
            self._url = urllib.parse.urlunsplit(parts._replace(netloc=host))
            self._web.unjudged.add(endpoint(self._url))
        if user:
            self._web.keep_login(self._url, user)

    @property
    def has_logged_in(self) -> bool:
        """True if something may have come because of credentials."""
        return self._web.has_logged_in

    def _broken(self, error: OSError) -> Message:
        if is_full(error):
            return {"end": str(error), "disk_full": True}
        return {"end": error.strerror or str(error) or type(error).__name__, "may_pass": True}

    def _fetch_batch(self, oids: list[str]) -> None:
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(LFS_DOWNLOADS) as pool:
            list(pool.map(self._fetch_object, self._ask(oids)))

    def _ask(self, oids: list[str]) -> list[Message]:
        """Return the server's answer for each object."""
        question: Message = {
            "operation": "download",
            "transfers": ["basic"],
            "hash_algo": "sha256",
            "objects": [{"oid": oid, "size": self._sizes[oid]} for oid in oids],
        }
        if self._ref:
            question["ref"] = {"name": self._ref}
        headers = {**self._headers, "Accept": LFS_TYPE, "Content-Type": LFS_TYPE}
        with self._web.request(
            f"{self._url}/objects/batch", headers, json.dumps(question).encode()
        ) as response:
            data = b""
            while len(data) <= MAX_BATCH_BYTES and (part := read_part(response, 1 << 18, self._url)):
                data += part
        try:
            answer = json.loads(data)
            found = {item["oid"]: item for item in answer["objects"]}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise HttpFailed(f"{shown_host(self._url)} does not speak the protocol of Git LFS.") from error
        if (answer.get("transfer") or "basic") != "basic":
            raise HttpFailed(f"{shown_host(self._url)} does not offer the basic transfer of Git LFS.")
        return [{**_entries(found.get(oid)), "oid": oid} for oid in oids]

    def _fetch_object(self, answer: Message) -> None:
        oid = answer["oid"]
        reason = None
        try:
            reason = self._download(oid, *self._action(answer))
        except UrlRefused as refusal:
            reason = f"the address that the server for Git LFS gives {refusal}."
        except HttpFailed as failure:
            if failure.may_pass:
                raise
            reason = failure.message
        if reason:
            write_record({"missing": {oid: sentence(reason)}})

    def _action(self, answer: Message) -> tuple[str, dict[str, str]]:
        """Return URL and headers for the download of an object."""
        if error := _entries(answer.get("error")):
            code = error.get("code")
            said = clean_text(str(error.get("message") or "no reason"))[:200]
            may_pass = code == 429 or (isinstance(code, int) and 500 <= code < 507)
            raise HttpFailed(f"{shown_host(self._url)} does not have it ({code}): {said}", may_pass=may_pass)
        action = _entries(_entries(answer.get("actions")).get("download"))
        if not action.get("href"):
            raise HttpFailed(f"{shown_host(self._url)} gives no address for it.")
        headers = _entries(action.get("header"))
        return joined(f"{self._url}/", str(action["href"])), {
            str(name): str(value)
            for name, value in headers.items()
            if name.lower()
            not in ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")
        }

    def _download(self, oid: str, url: str, headers: dict[str, str]) -> str | None:
        """Write the content of an object; return what is wrong with what came."""
        import hashlib

        size, hashed, left = self._sizes[oid], hashlib.sha256(), self._sizes[oid]
        partial = self._place(oid) + ".part"
        with self._web.request(url, headers) as response, open(partial, "wb") as file:
            while data := read_part(response, 1 << 18, url):
                left -= len(data)
                if left < 0:
                    return f"{shown_host(url)} sent more than the {size} bytes of the pointer."
                hashed.update(data)
                file.write(data)
                self._count(len(data))
        if left:
            return f"{shown_host(url)} sent {size - left} bytes, the pointer names {size}."
        if hashed.hexdigest() != oid:
            return f"{shown_host(url)} sent content with another SHA-256 than the pointer names."
        os.replace(partial, self._place(oid))
        return None

    def _count(self, size: int) -> None:
        """Write how much has come, from time to time."""
        with self._lock:
            self._bytes += size
            if time.monotonic() - self._shown_at >= REWRITE_SECONDS:
                self._shown_at = time.monotonic()
                total = in_bytes(sum(self._sizes.values()))
                write_record({"text": f"Git LFS: {in_bytes(self._bytes)} of {total}"})

    def _place(self, oid: str) -> str:
        return os.path.join(self._directory, oid)


def fetch_large_files(path: str) -> int:
    """Fetch the files that a job names, and write records about it."""
    with open(path, encoding="utf-8") as file:
        files = LargeFiles(json.load(file))
    try:
        end = files.fetch()
    except BaseException as error:
        end = {"end": f"The builder failed unexpectedly: {error!r}", "may_pass": False}
    write_record({**end, "login": files.has_logged_in})
    return 0


# --- The engine ---------------------------------------------------------------------------------------------


# Options that repo2docker sets for a build, with what they may be. A build argument without a value would be a variable
# of the builder.
_VALUES = {
    "--progress": r"plain",
    "--tag": r".+",
    "--file": r"[^-].*",
    "--build-arg": r"\w[^=]*=.*",
    "--label": r"[^=]+=.*",
    "--platform": r"[\w/.,-]+",
}


class Engine:
    """The container engine: the only caller of its command. Another engine is another class with these methods."""

    title = "Docker engine"
    pulls_bases = True
    """Whether a forced build pulls its base images anew."""

    def __init__(self, spec: Spec, runner: Runner) -> None:
        self.image: str = spec["image"]
        self._runner = runner
        self._id_file = os.path.join(runner.workdir, "image-id")
        # Whatever directory the client is started in, it has no reason to ask git about it.
        runner.environment.update(
            BUILDKIT_PROGRESS="plain", BUILDX_GIT_INFO="false", BUILDX_GIT_LABELS="false"
        )
        if spec.get("docker_host"):
            runner.environment["DOCKER_HOST"] = spec["docker_host"]
        self.address = runner.environment.get("DOCKER_HOST", "its default socket")

    def ping(self, seconds: float) -> str | None:
        """Return None if the engine answers within `seconds`, else what its command printed."""
        code, output = self._call("version", "--format", "{{.Server.Version}}", seconds=seconds)
        return None if code == 0 else " ".join(output)

    def instance(self) -> tuple[int, ...] | None:
        """Return what identifies the engine that listens now; None if it cannot be known, or if none listens."""
        address = self._runner.environment.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        try:
            found = os.stat(address[len("unix://") :] if address.startswith("unix://") else "")
        except OSError:
            return None
        # Another engine makes another socket; owner and permissions of one may change.
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def problem(self, seconds: float) -> str | None:
        """Return a sentence if the engine does not answer within `seconds`."""
        found = self.ping(seconds)
        if found is None:
            return None
        detail = found[-300:] or f"no answer within {seconds:.0f} seconds"
        return sentence(f"The {self.title} at {self.address} does not answer: {detail}")

    def build_arguments(self, spec: Spec) -> list[str]:
        """Return the arguments that repo2docker passes on to the command that builds."""
        # Not through repo2docker: it writes labels into a Dockerfile that it generates, without quoting them.
        # The origin last: a request cannot give an image another one. All of them are written after the last layer, so
        # that no step is built again because of them.
        labels = {**(spec.get("labels") or {}), **(spec.get("provenance") or {})}
        arguments = [part for item in labels.items() for part in ("--label", "=".join(item))]
        if spec.get("force") is True:
            arguments += ["--no-cache", *(["--pull"] if self.pulls_bases else [])]
        return [*arguments, "--iidfile", self._id_file]

    def compose(self, asked: list[str], arguments: list[str], trusted: str) -> list[str] | None:
        """Return the command for what repo2docker asks of the engine; None for all but a build of this image.

        `arguments` are the builder's own for a build, `trusted` is a text with what options may name.
        """
        if asked in (["version"], ["buildx", "version"], ["image", "inspect", self.image]):
            return ["docker", *asked]
        if asked[:2] != ["buildx", "build"] or asked[-1] != "-":
            return None
        command = ["docker", "buildx", "build", "--progress", "plain"]
        rest = iter(asked[2:-1])
        for option in rest:
            if option == "--load":
                command.append(option)
            elif option in _VALUES and re.fullmatch(_VALUES[option], value := next(rest, ""), re.DOTALL):
                if option not in ("--tag", "--progress"):
                    command += [option, value]
            elif option != "--cache-from" or (value := next(rest, "")) not in trusted:
                return None
            else:
                command += [option, value]
        return [*command, "--tag", self.image, *arguments, "-"]

    def name_image(self) -> None:
        """Give the image its name again: another build of the same version may have taken it since."""
        # One that was not built anew is named as well: the time of that is the time of its last use.
        image_id = _read_text(self._id_file).strip()
        self._call("tag", image_id or self.image, self.image)

    def is_local_only(self, image: str) -> bool:
        """Return whether the engine has the image, and no registry is known that has it."""
        code, output = self._call("image", "inspect", "--format", "{{json .RepoDigests}}", image)
        return code == 0 and output[-1:] == ["[]"]

    def inspect(self) -> tuple[int | None, dict[str, str]]:
        """Return size in bytes and labels of the image, None and nothing where the engine does not report them."""
        code, output = self._call(
            "image", "inspect", "--format", "{{.Size}} {{json .Config.Labels}}", self.image
        )
        size, _, labels = (output[0] if code == 0 and output else "").partition(" ")
        try:
            found = json.loads(labels)
        except ValueError:
            found = None
        return int(size) if size.isdigit() else None, _entries(found)

    def push(self, write: WriteLine) -> str | None:
        """Push the image once, and return its digest, None if the output does not contain it. Raises PushFailed."""
        self.name_image()
        output = PushOutput(write)
        code = self._runner.run(["docker", "push", self.image], output.on_line)
        output.report(force=True)
        if code != 0:
            raise PushFailed(judge_push(output.lines, self.image, output.is_under_way))
        return output.digest

    def watched_disk(self) -> DiskWatch:
        """Watch the engine's disk while a build runs; it cannot be seen from a pod."""
        return DiskWatch(self._data_root)

    @functools.cached_property
    def _data_root(self) -> str | None:
        """Path of the engine's data, as this process sees it; None if it does not."""
        try:
            return self._find_data_root()
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _find_data_root(self) -> str:
        """Return the path of the engine's data. Raises OSError, ValueError, KeyError or TypeError."""
        address = self._runner.environment.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if not address.startswith("unix://"):
            raise OSError(errno.ENOTSUP, "the engine runs elsewhere")
        # Not with the docker command, which needs ten times the CPU.
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(address[len("unix://") :])
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            engine = struct.unpack("3i", credentials)[0]
            if engine <= 0:
                raise OSError(errno.ENOTSUP, "the engine runs in another namespace of processes")
            connection.sendall(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        root = str(json.loads(answer.partition(b"\r\n\r\n")[2])["DockerRootDir"])
        # It may run in a mount namespace of its own.
        inside = f"/proc/{engine}/root{root}"
        return inside if os.access(inside, os.F_OK) else root

    def _call(self, *arguments: str, seconds: float | None = None) -> tuple[int, list[str]]:
        """Return exit code and output of a short command."""
        output: list[str] = []
        return self._runner.run(["docker", *arguments], output.append, seconds), output


class Lease:
    """Holds the image of a build in the engine: no cleaning removes it while this process lives and has the file locked.

    The gate is shared while the file is created; a cleaning has it for itself while it removes an image.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._file: int | None = None

    def take(self, image: str, runner: Runner) -> None:
        """Take the lease for an image. Without the directory, nothing cleans this engine. Raises AttemptEnded."""
        if self._directory is None or not os.path.isdir(os.path.join(self._directory, "held")):
            return
        try:
            self._take(self._directory, image, runner)
        except OSError as error:
            reason = "disk_full" if is_full(error) else "builder_error"
            message = f"The image cannot be held in the engine: {self._directory}: {error.strerror}."
            raise AttemptEnded(reason, message) from None

    def _take(self, directory: str, image: str, runner: Runner) -> None:
        import hashlib

        key = hashlib.sha256(image.encode()).hexdigest()[:32]
        gate = os.open(os.path.join(directory, "gate"), os.O_RDONLY | os.O_CREAT, 0o664)
        try:
            while not self._lock(gate, fcntl.LOCK_SH):
                runner.pause(GATE_PAUSE)
            path = os.path.join(directory, "held", f"{key}.{os.urandom(8).hex()}")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o664)
            self._lock(self._file, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    @staticmethod
    def _lock(file: int, kind: int) -> bool:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the lease up; the next cleaning removes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def ask_for_space(self, runner: Runner, on_wait: Callable[[], object]) -> int:
        """Have the disk cleaned, and return the bytes that were freed; 0 if nothing cleans it. Raises AttemptEnded.

        `on_wait` is called once the request is made.
        """
        try:
            with self._connect() as connection:
                on_wait()
                return int(json.loads(self._answer(connection, runner))["freed"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @staticmethod
    def _answer(connection: socket.socket, runner: Runner) -> bytes:
        answer, until = b"", time.monotonic() + CLEANING_SECONDS
        while not answer.endswith(b"\n") and time.monotonic() < until:
            runner.pause(CLEANING_PAUSE)
            with contextlib.suppress(BlockingIOError):
                answer += connection.recv(4096) or b"\n"
        return answer

    def _connect(self) -> socket.socket:
        # By way of /proc: a socket's own path may have 107 bytes at most.
        directory = os.open(self._directory or "", os.O_RDONLY | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"/proc/self/fd/{directory}/cleaner.sock")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(directory)
        connection.setblocking(False)
        return connection


class DiskWatch:
    """A thread that notes when a disk was full.

    A step that fills the disk has often ended, and its files are gone, before its words arrive. The kernel reports
    no such moment, so the space is looked at: often when little is left, once a second when there is much.
    """

    def __init__(self, path: Optional[str]) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-watch", daemon=True)
        self._full_at = float("-inf")

    def __enter__(self) -> DiskWatch:
        if self._path is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._path is not None:
            self._thread.join()

    def was_full(self) -> bool:
        """Return whether the disk is full or was so a moment ago; False where it cannot be seen."""
        self._look()
        return time.monotonic() - self._full_at < FULL_FOR

    def _watch(self) -> None:
        shortest, longest = WATCH_SECONDS
        pause = 0.0
        while not self._ended.wait(pause):
            pause = min(longest, max(shortest, self._look() / FILLED_PER_SECOND))

    def _look(self) -> int:
        """Note it if the disk is full; return the free bytes."""
        if self._path is None:
            return 0
        try:
            disk = os.statvfs(self._path)
        except OSError:
            return FILLED_PER_SECOND
        free = disk.f_bavail * disk.f_frsize
        if free < FULL_BELOW_BYTES or (disk.f_files > 0 and disk.f_favail < FULL_BELOW_FILES):
            self._full_at = time.monotonic()
        return free


class PushOutput:
    """The output of `docker push`: counts layers, finds the digest, passes on all other lines."""

    DONE = ("Pushed", "Layer already exists", "Mounted from")

    def __init__(self, write: WriteLine) -> None:
        self._write = write
        self._layers: dict[str, bool] = {}
        self._reported: tuple[int, int] | None = None
        self._reported_at = 0.0
        self.lines: list[str] = []
        """The last lines, to classify a failure."""
        self.digest: str | None = None
        self.is_under_way = False
        """True once a layer was pushed."""

    def on_line(self, raw: str) -> None:
        """Process one line of output."""
        match = _LAYER.match(raw.strip())
        if match and not _DIGEST.search(raw):
            self._layers[match[1]] = match[2].startswith(self.DONE)
            self.is_under_way |= match[2].startswith(self.DONE[0])
            self.report()
            return
        self.lines = [*self.lines[-39:], raw]
        found = _DIGEST.search(raw)
        if found:
            self.report(force=True)
            self.digest = found[1]
        self._write(raw, None)

    def report(self, force: bool = False) -> None:
        """Write how many layers are pushed, at most twice a second unless `force`."""
        done, total = sum(self._layers.values()), len(self._layers)
        moment = time.monotonic()
        if (done, total) == self._reported or not total:
            return
        if force or moment - self._reported_at >= PROGRESS_SECONDS:
            self._reported, self._reported_at = (done, total), moment
            self._write(f"Pushed {done} of {total} layers", {"layers_done": done, "layers_total": total})


def split_build_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the operator's arguments into those for repo2docker, and those that it is to pass on to the engine's build."""
    others, passed_on = [], []
    rest = iter(arguments)
    for item in rest:
        name, equals, value = item.partition("=")
        if name == _BUILD_OPTION:
            passed_on += _listed(value if equals else next(rest, ""))
        else:
            others.append(item)
    return others, passed_on


def _listed(value: str) -> list[str]:
    """Return the items of a Python list, or the value itself, as repo2docker reads it."""
    if not value.startswith("["):
        return [value]
    import ast

    try:
        return [str(item) for item in ast.literal_eval(value)]
    except (ValueError, SyntaxError) as error:
        raise AttemptEnded(
            "bad_spec", f"builder.repo2docker_args has {_BUILD_OPTION} with {value!r}, which is no list."
        ) from error


# --- The engine's door --------------------------------------------------------------------------------------

# The command that repo2docker finds as `docker`. It hands its standard streams to the builder, which starts the real
# one; the directory of a build is sent as an archive. It sees what repo2docker sees.
DOCKER = r"""
import json, os, re, signal, socket, sys, tarfile

# The rules of .dockerignore as (keeps, expression), None if there is no such file.
def ignored(context, dockerfile):
    names = [name for name in (f"{dockerfile}.dockerignore", ".dockerignore") if os.path.isfile(os.path.join(context, name))]
    if not names:
        return None
    with open(os.path.join(context, names[0]), encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.strip() for line in file.read().split("\n") if not line.startswith("#")]
    rules = [(line.startswith("!"), line[line.startswith("!"):].strip()) for line in lines]
    return [(keeps, expression(os.path.normpath(line).lstrip("/"))) for keeps, line in rules if line]

# What a pattern matches, as https://github.com/moby/patternmatcher defines it.
def expression(pattern):
    found = re.findall(r"(\*\*/?)|(\*)|(\?)|\[(\^?[^\]]+)\]|\\?(.)", pattern, re.DOTALL)
    last = len(found) - 1
    return re.compile("".join(
        (".*" if number == last else "(.*/)?") if every
        else "[^/]*" if some
        else "[^/]" if one
        else "[" + of.replace("\\", r"\\").replace("[", r"\[") + "]" if of
        else re.escape(plain)
        for number, (every, some, one, of, plain) in enumerate(found)
    ), re.DOTALL)

# The paths that are in the context. A rule for a directory is one for all that is in it.
def included(context, dockerfile, rules):
    dockerfile = os.path.normpath(dockerfile)
    may_keep = any(keeps for keeps, _ in rules)
    left = [("", [False] * len(rules))]
    while left:
        directory, above = left.pop()
        for name in os.listdir(os.path.join(context, directory)):
            path = os.path.join(directory, name)
            hits = [hit or bool(rule.fullmatch(path)) for hit, (_, rule) in zip(above, rules)]
            is_kept = [keeps for hit, (keeps, _) in zip(hits, rules) if hit][-1:] != [False]
            # The engine takes the Dockerfile from the archive, so it is in the context even if a rule names it.
            if is_kept or path == dockerfile:
                yield path
            whole = os.path.join(context, path)
            may_have = is_kept or may_keep or dockerfile.startswith(path + "/")
            if may_have and os.path.isdir(whole) and not os.path.islink(whole):
                left.append((path, hits))

def anonymous(item):
    item.uid = item.gid = 0
    item.uname = item.gname = ""
    return item

def archive(context, dockerfile, output):
    rules = ignored(context, dockerfile)
    every = os.listdir(context) if rules is None else included(context, dockerfile, rules)
    with os.fdopen(output, "wb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        # First an entry of 512 bytes, the part by which the client recognizes an archive.
        tar.addfile(anonymous(tar.gettarinfo(context, arcname=".")))
        for name in sorted(every):
            tar.add(os.path.join(context, name), arcname=name, recursive=rules is None, filter=anonymous)

arguments = sys.argv[1:]
source = os.open(os.devnull, os.O_RDONLY)
if arguments[:2] == ["buildx", "build"]:
    context, arguments[-1] = os.path.abspath(arguments[-1]), "-"
    dockerfile = arguments[arguments.index("--file") + 1] if "--file" in arguments else "Dockerfile"
    source, output = os.pipe()
    if os.fork() == 0:
        os.close(source)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        archive(context, dockerfile, output)
        os._exit(0)
    os.close(output)
directory, name = os.path.split(os.environ["ENGINE_DOOR"])
os.chdir(directory)  # paths of sockets are short
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(name)
socket.send_fds(connection, [json.dumps(arguments).encode()], [source, 1, 2])
os.close(source)
code = int(connection.recv(100) or 125)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
NOT_ALLOWED = 126
MESSAGE_SECONDS = 10.0


class EngineDoor:
    """Runs the engine's client for repo2docker, which has neither the engine nor credentials.

    What the client is called with is composed here: repo2docker has read the repository, and is not relied on.
    """

    def __init__(self, path: str, compose: Callable[[list[str]], list[str] | None], runner: Runner) -> None:
        """Listen at a path that does not exist; its directory exists wherever repo2docker runs."""
        self._compose = compose
        self._runner = runner
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.getcwd()
        os.chdir(os.path.dirname(path))  # paths of sockets are short
        try:
            self._listener.bind(os.path.basename(path))
        finally:
            os.chdir(directory)
        self._listener.listen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-door", daemon=True)

    def __enter__(self) -> EngineDoor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and end a client that still runs."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # A process that holds a connection or its output up is not waited for.
        self._thread.join(TERM_GRACE + MESSAGE_SECONDS)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while not self._ended.is_set():
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError, ValueError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(MESSAGE_SECONDS)
        data, streams, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 3)
        try:
            arguments = json.loads(data)
            code = self._call(connection, arguments, streams) if len(streams) == 3 else NOT_ALLOWED
        finally:
            for stream in streams:
                with contextlib.suppress(OSError):
                    os.close(stream)
        connection.send(b"%d" % code)

    def _call(self, connection: socket.socket, arguments: list[str], streams: list[int]) -> int:
        command = self._compose(arguments)
        if command is None:
            os.write(streams[2], b"The builder does not allow this command of the engine.\n")
            return NOT_ALLOWED
        # The client holds the pipe open until it has ended.
        reader, writer = os.pipe()
        try:
            process = self._start(command, streams, writer)
        except OSError as error:
            os.write(streams[2], f"{command[0]}: {error.strerror}\n".encode())
            return COMMAND_NOT_FOUND
        else:
            return self._wait(process, connection, reader)
        finally:
            os.close(reader)

    def _start(self, command: list[str], streams: list[int], writer: int) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                command,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                pass_fds=[writer],
                env=self._runner.environment,
                cwd=self._runner.workdir,
                start_new_session=True,
            )
        finally:
            os.close(writer)
        self._runner.guard.watch(process.pid)
        return process

    def _wait(self, process: subprocess.Popen[bytes], connection: socket.socket, reader: int) -> int:
        """Wait until the client has ended; end it once repo2docker no longer waits, or the door is closed."""
        while not self._ended.is_set() and not has_exited(process.pid):
            if connection.fileno() in select.select([connection.fileno(), reader], [], [], 1.0)[0]:
                break
        if not has_exited(process.pid):
            signal_group(process.pid, signal.SIGTERM)
            select.select([reader], [], [], TERM_GRACE)
        signal_group(process.pid, signal.SIGKILL)
        code = process.wait()
        self._runner.guard.forget(process.pid)
        return code


# --- The attempt --------------------------------------------------------------------------------------------


class Places:
    """The places of an attempt, and the directory of the one that reads the repository."""

    def __init__(self, spec: Spec, workdir: str) -> None:
        self._containers: Dict[str, str] = spec.get("containers") or {}
        self._confine: Dict[str, list[str]] | None = spec.get("confine")
        self._workdir = workdir
        self._root = os.path.join(workdir, "root")
        self.home = self._containers.get("directory") or os.path.join(workdir, "cage")
        """What programs that read the repository can write to; nothing there is to be relied on once one has run."""
        self.repository = os.path.join(self.home, "repository")
        self.fetching = Place()
        self.reading = Place()
        self._files = 0

    def open(self, limits: Limits) -> None:
        """Connect to the other containers. Raises AttemptEnded."""
        if path := self._containers.get("fetch"):
            self.fetching = Container(path, limits)
        if path := self._containers.get("cage"):
            self.reading = Container(path, limits)
        if self._confine is not None:
            readable = [*self._confine.get("readable", []), _MODULE_DIRECTORY]
            self.fetching = Confined(View(self._root, hidden=self._confine.get("hidden", [])))
            self.reading = Confined(View(self._root, home=self.home, readable=readable))

    def make(self) -> None:
        """Make the directories, and the command for the engine. Raises OSError."""
        for path in (self._root, *(os.path.join(self.home, name) for name in ("home", "tmp", "bin"))):
            os.makedirs(path, mode=0o700, exist_ok=True)
        program = os.path.join(self.home, "bin", "docker")
        script = os.path.join(self.home, "bin", "ask_builder.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(DOCKER)
        with open(program, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(script)} "$@"\n')
        os.chmod(program, 0o700)

    def check(self) -> None:
        """Raise AttemptEnded if the last command could not be started because there are no namespaces."""
        if reason := _read_text(os.path.join(self._root, UNCONFINED)):
            raise AttemptEnded(
                "builder_error", f"The builder cannot separate the repository's files: {reason}"
            )

    def close(self) -> None:
        """Give up the places."""
        self.fetching.close()
        self.reading.close()

    def new_path(self, name: str) -> str:
        """Return a path in the directory that nothing there can have foreseen."""
        return os.path.join(self.home, f"{os.urandom(8).hex()}-{name}")

    def write(self, name: str, text: str) -> str:
        """Write a new file for programs that read the repository, and return its path."""
        path = self.new_path(name)
        # Neither an existing file nor a link is followed.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def fetch_environment(self, spec: Spec, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the fetch: no credentials of registries."""
        wanted = {name: spec[name] for name in _FETCH_SPEC if spec.get(name) is not None}
        own = {FETCH_VARIABLE: json.dumps({**wanted, "image": "none", "directory": self.repository})}
        if self._containers:
            return own  # the other container has its variables
        return {**{name: value for name, value in environment.items() if not _ENGINE.match(name)}, **own}

    def reading_environment(self, environment: Mapping[str, str], door: str) -> dict[str, str]:
        """Return the environment of repo2docker, which calls the engine by the door."""
        kept = caged(environment, self.home)
        path = os.path.join(self.home, "bin") + os.pathsep + kept.get("PATH", os.defpath)
        return {**kept, "PATH": path, "TMPDIR": os.path.join(self.home, "tmp"), "ENGINE_DOOR": door}


_ENGINE = re.compile(r"DOCKER_|BUILDX_|BUILDKIT_")
FETCH_VARIABLE = "RABBIT2DOCKER_FETCH"
_FETCH_SPEC = (
    "repo_url", "ref", "source_ref", "git", "subdir", "allow_private_addresses", "fetch_seconds", "fetch_retries",
    "fetch_depth", "max_repository_bytes", "max_repository_files", "private_image",
)  # fmt: skip


def temporary_path(prefix: str) -> str:
    """Return the path of a directory to make. Unlike `tempfile`, this does not need space."""
    places = (os.environ.get("TMPDIR") or "", "/tmp", "/var/tmp")
    return os.path.join(next(filter(os.path.isdir, places), os.getcwd()), prefix + os.urandom(8).hex())


def inherited(workdir: str) -> dict[str, str]:
    """Return the environment of programs that the builder relies on."""
    return {
        **{name: value for name, value in os.environ.items() if INHERITED.match(name)},
        "TMPDIR": workdir,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new",
        "PYTHONUNBUFFERED": "1",
    }


def git_settings(access: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that add settings to those of git, which say where the credentials of the tenant are."""
    if not (settings := access.get("config")):
        return {}
    first = int(environment.get("GIT_CONFIG_COUNT") or 0)
    added = {"GIT_CONFIG_COUNT": str(first + len(settings))}
    for number, (name, value) in enumerate(settings, first):
        added[f"GIT_CONFIG_KEY_{number}"] = name
        added[f"GIT_CONFIG_VALUE_{number}"] = value
    return added


def parse_fetch_record(raw: str) -> Message:
    """Return a line of the fetch as a record, an empty one if it is something else."""
    try:
        record = json.loads(raw)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


class ReportedLimits(Limits):
    """The limits of a fetch, which the builder keeps: it gets reports of what is not idleness."""

    def restart_idle(self, at: float | None = None) -> None:
        """Report activity once a second, or a pause."""
        moment = time.monotonic()
        if at is not None or moment - self._active_at >= 1:
            write_record({"pause": round((at or moment) - moment, 3)})
            self._active_at = moment


def write_record(record: Message) -> None:
    """Write a line for the builder."""
    data = (json.dumps(record) + "\n").encode()
    while data:
        data = data[os.write(1, data) :]


def fetch(spec: Spec) -> int:
    """Fetch the repository, and write records about it; what leaves here has none of the credentials for git."""
    workdir = temporary_path("r2d-fetch-")
    access = spec.get("git") or {}
    os.environ.update(git_settings(access, os.environ))
    secrets = known_secrets({"git": access}, os.environ)
    ssh = {"GIT_SSH_COMMAND": access["ssh_command"]} if access.get("ssh_command") else {}
    runner = Runner({**inherited(workdir), **ssh}, workdir, ReportedLimits({}))
    fetcher = Fetcher(spec, runner, workdir, lambda text: write_record({"text": clean_text(text, secrets)}))
    end: Result = {"reason": "ok", "message": ""}
    try:
        once_there_is_space(lambda: os.mkdir(workdir, 0o700), lambda: runner.limits.stopped_by is not None)
        fetcher.fetch()
    except AttemptEnded as ended:
        end = {"reason": ended.reason, "message": clean_text(ended.message, secrets)}
    except BaseException as error:
        end = _defect(error)
        end["message"] = clean_text(end["message"], secrets)
    end["warnings"] = [clean_text(text, secrets) for text in fetcher.warnings]
    end["private"] = fetcher.is_private
    write_record({"end": end})
    runner.close()
    shutil.rmtree(workdir, ignore_errors=True)
    return 0


class Attempt:
    """One attempt: waits for the engine, builds and pushes, and writes every line."""

    def __init__(self, spec: Spec, log: Log, result_file: ResultFile | None = None) -> None:
        self.spec = spec
        self._result_file = result_file
        self.phase = "waiting"
        self.timings: dict[str, float] = {}
        self._entered = time.monotonic()
        self._log = log
        self._output = BuildOutput()
        self._workdir = str(spec.get("workdir") or temporary_path("r2d-"))
        self._limits = limits = Limits(spec)
        log.give_up = lambda: limits.stopped_by is not None
        self._runner = Runner(inherited(self._workdir), self._workdir, limits)
        self.engine = Engine(spec, self._runner)
        self._places = Places(spec, self._workdir)
        self._fetched: str | None = None
        self._fetch_end: Result | None = None
        self.warnings: list[str] = []
        self._build_lines = RewrittenLines(self._write_build_line)
        self._unresolved_base: str | None = None
        self._lease = Lease(spec.get("leases"))
        self._was_cleaned = False
        self._built_by: tuple[int, ...] | None = None
        """The engine in which the image is built."""

    def execute(self) -> Result:
        """Run all steps, and return the part of the result that they yield."""
        self._places.open(self._limits)
        self._with_space(self._prepare)
        self.wait_for_engine()
        self._with_space(self.fetch)
        self._with_space(lambda: self._lease.take(self.spec["image"], self._runner))
        self._with_space(self.build)
        size, labels = self.engine.inspect()
        digest = self._with_space(self.push) if self.spec.get("push", True) else None
        origin = {name: labels[label] for name, label in ORIGIN.items() if labels.get(label)}
        return {"digest": digest, "size": size, "provenance": origin or None}

    def _prepare(self) -> None:
        """Make sure of the space for the result, and make the directories, once there is space. Raises OSError."""
        once_there_is_space(self._prepare_once, self._may_not_wait)

    def _prepare_once(self) -> None:
        if self._result_file:
            self._result_file.reserve()
        os.makedirs(self._workdir, mode=0o700, exist_ok=True)
        self._places.make()

    def _with_space(self, step: Callable[[], T]) -> T:
        """Take a step, once more if it met a full disk on which there is space by now. Raises AttemptEnded."""
        try:
            return self._naming_own_disk(step)
        except AttemptEnded as failure:
            if failure.reason != "disk_full" or not self._make_space(failure):
                raise
        self._fetch_end = None
        return self._naming_own_disk(step)

    @staticmethod
    def _naming_own_disk(step: Callable[[], T]) -> T:
        """Take a step. Raises AttemptEnded also where a file of the builder had no space."""
        try:
            return step()
        except OSError as error:
            if not is_full(error):
                raise
            text = f"{OwnDiskFull.text}, and no space was freed within {DISK_PATIENCE:.0f} seconds."
            raise OwnDiskFull(text) from error

    def _make_space(self, failure: AttemptEnded) -> bool:
        """Return whether there is space now: after one cleaning of the engine's disk, or after a wait for space on our own."""
        return self._clean(failure) or (isinstance(failure, OwnDiskFull) and self._wait_for_space())

    def _clean(self, failure: AttemptEnded) -> bool:
        """Return whether a cleaning has freed something. An attempt waits for one."""
        if self._was_cleaned:
            return False
        self._was_cleaned = True
        text = f"{sentence(failure.message)} Waiting until the disk of the {self.engine.title} is cleaned."
        freed = self._lease.ask_for_space(self._runner, lambda: self.write(text))
        if freed:
            self.write(f"{in_bytes(freed)} freed. Trying again.")
        return freed > 0

    def _wait_for_space(self) -> bool:
        """Return whether the disk of the working directory has got space within DISK_PATIENCE."""
        try:
            once_there_is_space(lambda: try_space(self._workdir), self._may_not_wait)
        except OSError:
            return False
        self.write(f"{OwnDiskFull.gone} Trying again.")
        return True

    def _may_not_wait(self) -> bool:
        """Raise AttemptEnded at the limits. A wait for space does not count as idle time."""
        self._limits.restart_idle()
        self._limits.check()
        return False

    def close(self) -> None:
        """Remove the working directory, end the guard and what runs in other containers."""
        self._lease.release()
        self._places.close()
        self._runner.close()
        shutil.rmtree(self._workdir, ignore_errors=True)

    # -- lines and phases

    def enter(self, phase: str) -> None:
        """Enter a phase, and record the time spent in the previous one."""
        if phase != self.phase:
            moment = time.monotonic()
            self.timings[self.phase] = round(self.timings.get(self.phase, 0.0) + moment - self._entered, 3)
            self.phase, self._entered = phase, moment

    def write(self, text: str, progress: Progress | None = None, is_clipped: bool = False) -> None:
        """Write a text as lines of the current phase."""
        for line in text.split("\n"):
            line = self.clean(line)
            if line:
                self._log.write(self.phase, line, progress, is_clipped)
                self._limits.restart_idle()  # it may have waited for space

    @functools.cached_property
    def _secrets(self) -> list[str]:
        # Helpers take seconds: they are asked once there is a line to write.
        return known_secrets(self.spec, os.environ)

    def clean(self, text: str) -> str:
        """Return a text as users may see it: without secrets and the builder's own directory."""
        if self._fetched:
            text = text.replace(f"{self._fetched}/", "").replace(self._fetched, "the repository")
        return clean_text(text, self._secrets)

    # -- steps

    def wait_for_engine(self) -> None:
        """Wait until the engine answers. Raises AttemptEnded when it has not within `docker_wait_seconds`."""
        patience = self.spec.get("docker_wait_seconds", 60)
        give_up = time.monotonic() + patience
        is_reported = False
        while (problem := self.engine.ping(max(1.0, give_up - time.monotonic()))) is not None:
            if not is_reported:
                self.write(f"Waiting for the {self.engine.title} at {self.engine.address}: {problem[-300:]}")
                is_reported = True
            if time.monotonic() >= give_up:
                message = f"The {self.engine.title} did not answer for {patience} seconds."
                raise AttemptEnded("docker_unavailable", message)
            self._runner.pause(min(1.0, max(0.0, give_up - time.monotonic())))

    def fetch(self) -> None:
        """Fetch a git repository; repo2docker fetches other content itself. Raises AttemptEnded."""
        self.enter("fetching")
        if self.spec.get("repo2docker_command") or self._content_provider() != "Git":
            return
        code = self._runner.run(
            [*THIS_PROGRAM, "--fetch", "--spec-env", FETCH_VARIABLE],
            self._on_fetch_line,
            environment=self._places.fetch_environment(self.spec, self._runner.environment),
            place=self._places.fetching,
        )
        self._places.check()
        end = self._fetch_end
        if end is None and code == LOST:
            message = (
                "The repository was being fetched when the memory of the builder was exceeded, most likely."
            )
            raise AttemptEnded("builder_out_of_memory", message)
        if end is None:
            raise AttemptEnded("builder_error", f"Fetching ended with code {code} and without a result.")
        self.warnings = [str(text) for text in end.get("warnings", [])]
        if end["reason"] == "disk_full":
            shutil.rmtree(self._places.repository, ignore_errors=True)  # what there is of it fills the disk
            raise OwnDiskFull(str(end["message"]))
        if end["reason"] != "ok":
            raise AttemptEnded(end["reason"], str(end["message"]))
        if self.spec.get("private_image") and end["private"]:
            self._use_name(self.spec["private_image"])
        self._fetched = self._places.repository

    def _use_name(self, image: str) -> None:
        """Name the image otherwise than the specification does."""
        self.spec["image"] = self.engine.image = image
        if self.spec.get("provenance"):
            self.spec["provenance"] = {**self.spec["provenance"], NAME_LABEL: image}

    def _on_fetch_line(self, raw: str) -> None:
        record = parse_fetch_record(raw)
        if "end" in record:
            self._fetch_end = record["end"]
        elif "pause" in record:
            self._limits.restart_idle(time.monotonic() + record["pause"])
        else:
            self.write(str(record.get("text", raw)))

    def build(self) -> None:
        """Run repo2docker, repeatedly if its failure may pass. Raises AttemptEnded if it fails."""
        if self._fetched:
            self.enter("building")
        if self.spec.get("provenance"):
            created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.spec["provenance"] = {**self.spec["provenance"], ORIGIN["created"]: created}
        retries = self.spec.get("base_image_retries", len(BASE_IMAGE_PAUSES))
        self._runner.repeat(self._build_once, pauses(BASE_IMAGE_PAUSES, retries), self.write)

    def _build_once(self) -> None:
        self._built_by = self.engine.instance()
        code = self._run_repo2docker()
        if code != 0 and self._output.raised and self._output.raised.met_full_disk:
            raise OwnDiskFull(self._output.judge(self.phase, code).message)
        if code != 0:
            raise BuildFailed(self._unless_engine_lost(self._output.judge(self.phase, code)))

    def _unless_engine_lost(self, verdict: Verdict) -> Verdict:
        """Return the verdict, or that the engine was lost if it is away or another one than at the start of the build."""
        if verdict.reason not in FAILURES_OF_A_LOST_ENGINE:
            return verdict
        problem = self.engine.problem(ENGINE_CHECK_SECONDS)
        if problem is None and self.engine.instance() == self._built_by:
            return verdict
        found = problem or f"The {self.engine.title} was restarted during the build."
        return Verdict("docker_unavailable", f"{found} Because of that: {verdict.message}", verdict.step)

    def _run_repo2docker(self) -> int:
        """Run repo2docker and return its exit code; once more where a base image exists in the engine alone."""
        code = self._run_repo2docker_once()
        base = self._unresolved_base
        if code == 0 or base is None or not self.engine.is_local_only(base):
            return code
        self.write(
            f"The base image {base} exists in the {self.engine.title} alone and cannot be pulled. "
            "Building once more, with the base images that the engine has."
        )
        self.engine.pulls_bases = False
        return self._run_repo2docker_once()

    def _run_repo2docker_once(self) -> int:
        self._output, self._unresolved_base = BuildOutput(), None
        door = self._places.new_path("engine")
        try:
            with self.engine.watched_disk() as self._disk, EngineDoor(door, self._compose, self._runner):
                code = self._runner.run(
                    self._repo2docker_command(),
                    self._on_build_line,
                    environment=self._places.reading_environment(self._runner.environment, door),
                    place=self._places.reading,
                )
        finally:
            self._build_lines.end_line()
        self._places.check()
        return code

    def _compose(self, asked: list[str]) -> list[str] | None:
        """Return the command for what repo2docker asks of the engine, None if it must not be."""
        trusted = "\n".join(self.spec.get("repo2docker_args") or [])
        return self.engine.compose(asked, self._build_arguments(), trusted)

    def _repo2docker_command(self) -> list[str]:
        spec = self.spec
        if spec.get("repo2docker_command"):
            return list(spec["repo2docker_command"])
        command = [spec.get("python") or sys.executable, "-m", "repo2docker"]
        command += ["--config", self._write_config(), "--json-logs", "--no-run"]
        command += ["--user-name", spec.get("user_name", "jovyan")]
        command += ["--user-id", str(spec.get("user_id", 1000)), "--image-name", spec["image"]]
        for option, value in (("--ref", "ref"), ("--subdir", "subdir"), ("--appendix", "appendix")):
            if spec.get(value):
                command += [option, spec[value]]
        for name, value in (spec.get("build_args") or {}).items():
            command += ["--build-arg", f"{name}={value}"]
        arguments, _ = split_build_options(spec.get("repo2docker_args") or [])
        return [*command, *arguments, "--", self._fetched or spec["repo_url"]]

    def _content_provider(self) -> str:
        return str(self.spec.get("content_provider") or "Git")

    def _write_config(self) -> str:
        """Write a configuration of repo2docker that allows one content provider, and return its path."""
        provider = "Local" if self._fetched else self._content_provider()
        if not provider.isidentifier():
            raise AttemptEnded("bad_spec", f"{provider!r} is not the name of a content provider.")
        # By default, other providers ask third-party hosts about the URL before Git is tried.
        lines = [
            f"from repo2docker.contentproviders import {provider}",
            f"c.Repo2Docker.content_providers = [{provider}]",
        ]
        if provider not in ("Local", "Git", "Mercurial"):
            wanted = json.dumps({name: self.spec.get(name) for name in _DATASET_SPEC})
            path = os.path.abspath(__file__)
            lines.append(DATASET_CONFIG.format(path=path, provider=provider, spec=wanted))
        if self.spec.get("force"):
            # Otherwise it answers with the image of this name that the engine has, and builds nothing.
            lines += [
                "from repo2docker.app import Repo2Docker",
                "Repo2Docker.find_image = lambda self: False",
            ]
        return self._places.write("config.py", "\n".join([*lines, ""]))

    def _build_arguments(self) -> list[str]:
        """Return the engine's arguments for the build: the operator's, then those of the request."""
        _, configured = split_build_options(self.spec.get("repo2docker_args") or [])
        origin = ("repo_url", "repo2docker.repo"), ("ref", "repo2docker.ref")
        # repo2docker labels the image of a directory as `local`.
        labels = [f"--label={label}={self.spec.get(name) or 'HEAD'}" for name, label in origin]
        return [*configured, *(labels if self._fetched else []), *self.engine.build_arguments(self.spec)]

    def _on_build_line(self, raw: str) -> None:
        record = parse_record(raw)
        text = str(record["message"]) if record else raw
        if record:
            self._output.add(record)
        else:
            self._output.add_raw(raw)
        phase = record.get("phase") if record else None
        if phase in PHASES and PHASES.index(phase) > PHASES.index(self.phase):
            self._build_lines.end_line()
            self.enter(phase)
        if _NO_SPACE.search(text) and not self._output.met_full_disk:
            self._output.met_full_disk = self._disk.was_full()
        self._build_lines.feed(text)

    def _write_build_line(self, text: str) -> None:
        clipped = _CLIPPED.match(text)
        if clipped:
            self.write(
                f"{clipped[1]}[The {self.engine.title} dropped output of this step: an unknown number of lines is missing "
                f"here. Its limit is {clipped[2]}, which the operator can raise.]",
                is_clipped=True,
            )
            return
        if self._fetched and _LOCAL_SOURCE.match(text):
            return  # the fetch stage has said where the repository is from
        if self.spec.get("force") is True and (unresolved := _BASE_UNRESOLVED.match(text)):
            self._unresolved_base = unresolved[1]
        match = _STEP.match(text)
        self.write(text, {"step": int(match[1]), "steps": int(match[2])} if match else None)

    def push(self) -> str | None:
        """Push the image, repeatedly if the failure may pass; return its digest if the engine reported it."""
        self.enter("pushing")
        retries = self.spec.get("push_retries", 4)
        return self._runner.repeat(self._push_once, pauses(PUSH_PAUSES, retries), self.write)

    def _push_once(self) -> str | None:
        try:
            return self.engine.push(self.write)
        except PushFailed as failure:
            if failure.reason != "image_missing" or self.engine.instance() == self._built_by:
                raise
            message = f"The {self.engine.title} was restarted before the push and has lost the image."
            raise AttemptEnded("docker_unavailable", message) from None


# --- Main ---------------------------------------------------------------------------------------------------


def read_spec(arguments: argparse.Namespace) -> Spec:
    """Return the specification. Raises AttemptEnded with the reason `bad_spec`."""
    try:
        if arguments.spec_env:
            spec: Any = json.loads(os.environ[arguments.spec_env])
        else:
            with open(arguments.spec, encoding="utf-8") as file:
                spec = json.load(file)
    except (OSError, ValueError, KeyError) as error:
        raise AttemptEnded("bad_spec", f"The builder cannot read its spec: {error!r}") from error
    if missing := [
        name for name in ("repo_url", "image") if not isinstance(spec, dict) or not spec.get(name)
    ]:
        raise AttemptEnded("bad_spec", f"The builder's spec lacks {' and '.join(missing)}.")
    return dict(spec)


def repo2docker_version(spec: Spec) -> str | None:
    """Return the version of repo2docker from the specification, else of the one installed here, else None."""
    if spec.get("repo2docker_version"):
        return str(spec["repo2docker_version"])
    try:
        from importlib.metadata import version

        return version("jupyter-repo2docker")
    except Exception:
        return None


def attempt_result(arguments: argparse.Namespace, result_file: ResultFile) -> Result:
    """Run the attempt and return its result. Raises nothing."""
    result: Result = {"v": 1, "reason": "builder_error", "message": "", "digest": None, "size": None}
    attempt = log = None
    spec: Spec = {}
    try:
        log = Log(arguments.log)
        spec = read_spec(arguments)
        result["image"] = spec["image"]
        attempt = Attempt(spec, log, result_file)
        result.update(attempt.execute(), reason="ok", message="The image is in the registry.")
    except AttemptEnded as end:
        result.update(end.more, reason=end.reason, message=end.message)
    except BaseException as error:
        result.update(_defect(error))
    if attempt:
        result["image"] = attempt.spec["image"]
        result["phase"] = attempt.phase
        for name in ("message", "failed_step"):
            if result.get(name):
                result[name] = attempt.clean(str(result[name]))
        if attempt.warnings:
            result["warnings"] = [text[:MAX_WARNING] for text in attempt.warnings[:MAX_WARNINGS]]
        attempt.enter("over")
        result["timings"] = attempt.timings
        attempt.close()
    if log:
        log.finish()
    result["lines"] = log.number if log else 0
    result["exit_code"] = EXIT_CODES[result["reason"]]
    result["repo2docker_version"] = repo2docker_version(spec)
    return result


def check_engine(seconds: float) -> int:
    """Print the problem if the engine does not answer within `seconds`, and return the exit code."""
    spec = {"image": ""}
    runner = Runner(inherited("/"), "/", Limits(spec))
    try:
        problem = Engine(spec, runner).problem(seconds)
    finally:
        runner.close()
    if problem:
        sys.stdout.write(f"{problem}\n")
    return EXIT_CODES["docker_unavailable" if problem else "ok"]


def _defect(error: BaseException) -> Result:
    """Return reason and message for an exception that no step expects."""
    if is_full(error):
        return {"reason": "disk_full", "message": f"{OwnDiskFull.text}: {getattr(error, 'strerror', error)}."}
    return {"reason": "builder_error", "message": f"The builder failed unexpectedly: {error!r}"}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="builder.py"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", metavar="FILE", help="JSON file that specifies the build")
    source.add_argument("--spec-env", metavar="NAME", help="environment variable with that JSON, for pods")
    source.add_argument(
        "--check-engine",
        metavar="SECONDS",
        type=float,
        help="build nothing: only ask whether the engine answers",
    )
    source.add_argument(
        "--serve", metavar="SOCKET", help="run the commands of a builder in another container"
    )
    source.add_argument(
        "--confine", metavar="VIEW", help="run a command in namespaces, in which a view of the files exists"
    )
    parser.add_argument(
        "--fetch", action="store_true", help="only fetch the repository, for a builder that reads the output"
    )
    source.add_argument("--connect", metavar="ADDRESSES", help=argparse.SUPPRESS)
    parser.add_argument("--large-files", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--log", metavar="FILE", help="append lines to this file instead of standard output")
    parser.add_argument(
        "--result", metavar="FILE", help="write the result to this file (default: /dev/termination-log)"
    )
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


def run_confined(view: View, command: list[str]) -> int:
    """Run a command in namespaces, and end as it has ended. Leaves a file that says so if there are none."""
    try:
        code = confine(view, command)
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        with (
            contextlib.suppress(OSError),
            open(os.path.join(view.root, UNCONFINED), "w", encoding="utf-8") as file,
        ):
            file.write(f"{error}")
        return NOT_ALLOWED
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != LOST else None
        os.kill(os.getpid(), -code)
    return code


def main() -> int:
    """Parse the arguments, run the attempt, write the result, and return the exit code."""
    arguments = make_parser().parse_args()
    if arguments.check_engine is not None:
        return check_engine(arguments.check_engine)
    if arguments.serve:
        Server(arguments.serve).serve()
        return 0
    if arguments.confine:
        return run_confined(View(**json.loads(arguments.confine)), arguments.command)
    if arguments.connect:
        return connect_streams(arguments.connect.split(","), int(arguments.command[0]))
    if arguments.large_files:
        return fetch_large_files(arguments.spec)
    if arguments.fetch:
        return fetch(read_spec(arguments))
    default = "/dev/termination-log" if os.path.exists("/dev/termination-log") else None
    result_file = ResultFile(arguments.result or default)
    result = attempt_result(arguments, result_file)
    try:
        result_file.write(result)
    except OSError as error:
        sys.stderr.write(f"The result cannot be written: {error.strerror}. It is {json.dumps(result)}\n")
    return int(result["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
