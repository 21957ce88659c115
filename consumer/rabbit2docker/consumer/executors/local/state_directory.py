"""The state directory: what is kept of each attempt, and how it is written so that a crash leaves it whole.

Everything here blocks and is called in threads. One folder an attempt, complete from the moment it has its name:

    build.json    AttemptSpec, never changed
    status.json    Marks, replaced as a whole
    builder.json  what the builder is told
    log.jsonl     the builder's lines
    running       a named pipe, open in the builder for as long as it lives
    builder.err   what the builder printed itself; it exists once a builder was started, or never may be
    process.json  which process the builder is
    result.json   what the builder said at its end
"""

import errno
import fcntl
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec, AttemptStatus, BuilderResult
from rabbit2docker.errors import ConfigurationError, ExecutorUnavailable

log = structlog.get_logger()

ATTEMPTS: Final = "attempts"
LOCK: Final = "lock"
SPEC: Final = "build.json"
STATUS: Final = "status.json"
TOLD: Final = "builder.json"
LINES: Final = "log.jsonl"
RUNNING: Final = "running"
OUTPUT: Final = "builder.err"
PROCESS: Final = "process.json"
RESULT: Final = "result.json"
WORK: Final = "work"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
_TEMPORARY: Final = "."  # names of records never begin with a dot, folders on their way in or out do


@dataclass(frozen=True, slots=True)
class Loaded:
    """A record as it was found."""

    spec: AttemptSpec
    status: AttemptStatus


def unavailable(error: OSError, what: str, root: Path) -> ExecutorUnavailable:
    """Return the error to raise when `what` failed in the state directory; says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExecutorUnavailable(
            f"Cannot {what}: the disk of {root} is full. Free space there.", retry_after=10
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ExecutorUnavailable(f"Cannot {what}: {error.strerror} in {root}. Let the service write there.")
    return ExecutorUnavailable(f"Cannot {what} in {root}: {error}.")


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file as one step; `durable`: it survives a power cut, not only a crash of the service."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class StateDirectory:
    """The directory of one service. All methods may raise OSError, and ConfigurationError where they say so."""

    def __init__(self, root: Path) -> None:
        """Take the directory; nothing is touched before `open`."""
        self.root = root
        self.attempts = root / ATTEMPTS
        self._lock: int | None = None

    def path(self, name: AttemptName) -> Path:
        """Return the folder of a record. Raises ValueError for what cannot be a record's name."""
        if not _NAME.match(name):
            raise ValueError(f"{name!r} cannot be the name of a record")
        return self.attempts / name

    def open(self) -> list[Loaded]:
        """Make it where it is missing, lock it, and read all records. Raises ConfigurationError."""
        # Builders are told paths, and need not stay where the service was started.
        self.root = Path(os.path.abspath(self.root))
        self.attempts = self.root / ATTEMPTS
        try:
            self.attempts.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            self._clear_leftovers()
            return self._load_all()
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"The state directory {self.root} cannot be used: {error.strerror or error}. Let the service write "
                "there, or set RABBIT2DOCKER_LOCAL__STATE_DIR."
            ) from error
        except ConfigurationError:
            self.close()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 100, 0).decode("utf-8", "replace").strip()
            who = f" (process {holder})" if holder else ""
            raise ConfigurationError(
                f"Another service{who} uses the state directory {self.root}. Stop that one first, or give this one "
                "a directory of its own with RABBIT2DOCKER_LOCAL__STATE_DIR."
            ) from None
        # A full disk is no reason not to start: the number only serves the message above.
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            log.warning("cannot write who holds the state directory", error=str(error))

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear_leftovers(self) -> None:
        """Remove what a crash left on its way in or out, which nobody was told of or which was forgotten."""
        for path in self.attempts.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _load_all(self) -> list[Loaded]:
        found = (self._load(path) for path in sorted(self.attempts.iterdir()) if path.is_dir())
        return [record for record in found if record]

    def _load(self, path: Path) -> Loaded | None:
        """Read a record; a damaged one is left where it is and told in the log, as it can hold nothing up."""
        try:
            spec = AttemptSpec.model_validate_json((path / SPEC).read_bytes())
        except (OSError, ValidationError) as error:
            log.error("a record cannot be read and is left alone", path=str(path), error=str(error))
            return None
        if spec.name != path.name:
            log.error("a record lies under another's name and is left alone", path=str(path), name=spec.name)
            return None
        try:
            status = AttemptStatus.model_validate_json((path / STATUS).read_bytes())
        except (OSError, ValidationError) as error:
            log.error(
                "the status of a record cannot be read, starting anew", path=str(path), error=str(error)
            )
            status = AttemptStatus()
        return Loaded(spec, status)

    def make(self, spec: AttemptSpec, status: AttemptStatus, told: dict[str, Any]) -> bool:
        """Make a record as one step; False when there is one of that name."""
        path = self.path(spec.name)
        if path.exists():
            return False
        temporary = self.attempts / f"{_TEMPORARY}new-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(mode=0o700, parents=True)
            write_whole(temporary / SPEC, spec.model_dump_json())
            write_whole(temporary / STATUS, status.model_dump_json())
            write_whole(temporary / TOLD, json.dumps(told))
            (temporary / LINES).touch(mode=0o600)
            os.mkfifo(temporary / RUNNING, 0o600)
            temporary.rename(path)
            _sync_directory(self.attempts)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return True

    def load(self, name: AttemptName) -> Loaded | None:
        """Read one record, or None."""
        path = self.path(name)
        return self._load(path) if path.is_dir() else None

    def write_status(self, name: AttemptName, status: AttemptStatus) -> None:
        """Replace the status. Raises FileNotFoundError when the record is gone."""
        write_whole(self.path(name) / STATUS, status.model_dump_json())

    def remove(self, name: AttemptName) -> None:
        """Remove a record: as one step for whoever reads the directory after a crash."""
        going = self.attempts / f"{_TEMPORARY}old-{uuid.uuid4().hex}"
        try:
            self.path(name).rename(going)
        except FileNotFoundError:
            return
        shutil.rmtree(going, ignore_errors=True)


def read_result(path: Path) -> tuple[BuilderResult | None, datetime]:
    """Return what the builder said at its end, if it could, and when that was as far as the files tell."""
    result = None
    try:
        result = BuilderResult.model_validate_json((path / RESULT).read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValidationError) as error:
        log.error("the builder's result cannot be read", path=str(path), error=str(error))
    for name in (RESULT, LINES):
        try:
            return result, datetime.fromtimestamp((path / name).stat().st_mtime, UTC)
        except OSError:
            continue
    return result, datetime.now(UTC)
