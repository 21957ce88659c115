"""The state directory: the records of attempts as files, written so that a crash leaves each of them whole.

Everything here blocks and is called in threads. Each attempt has one folder, which is complete as soon as it has the
attempt's name; folders that are being created or removed have names that begin with a dot.

Beside the attempts, `id` holds the name of the whole set of records, which stays when the directory is moved.

    build.json    AttemptSpec, never changed
    status.json   AttemptStatus, replaced as a whole
    builder.json  specification of the builder
    log.jsonl     the builder's lines
    running       named pipe that the builder holds open while it lives
    builder.err   the builder's own output; exists once a builder has been started, or none may be any more
    process.json  identity of the builder's process
    result.json   result of the builder; result.json.new keeps the space for it
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from rabbit2docker.consumer.executors.attempt_names import state_name
from rabbit2docker.consumer.executors.base import (
    AttemptName,
    AttemptSpec,
    AttemptStatus,
    BuilderResult,
)
from rabbit2docker.consumer.executors.record_format import NewerRecord, decode, encode
from rabbit2docker.consumer.git_files import write_files
from rabbit2docker.errors import EXECUTOR, ConfigurationError, ExecutorUnavailable

log = structlog.get_logger()

ATTEMPTS: Final = "attempts"
LOCK: Final = "lock"
ID: Final = "id"
SPEC: Final = "build.json"
STATUS: Final = "status.json"
BUILDER_SPEC: Final = "builder.json"
LINES: Final = "log.jsonl"
RUNNING: Final = "running"
OUTPUT: Final = "builder.err"
PROCESS: Final = "process.json"
RESULT: Final = "result.json"
RESERVED: Final = "result.json.new"
"""The file that the builder writes its result to, before it renames it."""
RESULT_BYTES: Final = 2000
"""Size of the longest result."""
WORK: Final = "work"
GIT: Final = "git"
"""Directory with credentials for the fetch, in that for the builder's work; both are removed at the builder's end."""
ORPHAN_SECONDS: Final = 10.0
"""Time for the last child of a killed service to let go of the lock, which it has from fork to exec."""
ORPHAN_PAUSE: Final = 0.02

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
_TEMPORARY: Final = "."  # no record has a name that begins with a dot


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """The two parts of a record that are read back after a restart."""

    spec: AttemptSpec
    status: AttemptStatus


def unavailable(error: OSError, action: str, root: Path) -> ExecutorUnavailable:
    """Return the error for an action that failed in the state directory, with advice where there is any."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExecutorUnavailable(
            f"Cannot {action}: the disk of {root} is full. Free space there.",
            retry_after=10,
            outage_of=EXECUTOR,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ExecutorUnavailable(
            f"Cannot {action}: {error.strerror} in {root}. Make the directory writable for the service.",
            outage_of=EXECUTOR,
        )
    return ExecutorUnavailable(f"Cannot {action} in {root}: {error}.", outage_of=EXECUTOR)


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file atomically. With `durable` it survives a power failure, not only a crash of the service."""
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


def _reserve(path: Path) -> None:
    """Create a file with the space for a result, so that a builder that meets a full disk can say so."""
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.posix_fallocate(file.fileno(), 0, RESULT_BYTES)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _try_lock(lock: int) -> bool:
    """Lock an open file; return False if another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_ended(holder: str) -> bool:
    """Return whether the process whose number is in a lock file is known to have ended."""
    return holder.isdecimal() and not Path(f"/proc/{holder}").exists() and Path("/proc/self").exists()


class StateDirectory:
    """The directory of one service. Methods raise OSError, and ConfigurationError where they say so."""

    def __init__(self, root: Path) -> None:
        """Store the path; nothing is read or written before `open`."""
        self.root = root
        self.attempts = root / ATTEMPTS
        self.id = ""
        """Name of the set of records; known once it is open."""
        self.newer: dict[str, str] = {}
        """Versions of the records that are left alone, by name, because a newer service wrote them."""
        self._lock: int | None = None

    def path(self, name: AttemptName) -> Path:
        """Return the folder of a record. Raises ValueError for an invalid name."""
        if not _NAME.match(name):
            raise ValueError(f"{name!r} cannot be the name of a record")
        return self.attempts / name

    def open(self) -> list[StoredRecord]:
        """Create the directory if it is missing, lock it, and read all records. Raises ConfigurationError."""
        # Builders receive paths, and may run in another working directory.
        self.root = Path(os.path.abspath(self.root))
        self.attempts = self.root / ATTEMPTS
        try:
            self.attempts.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            self._clear_leftovers()
            self.id = self._read_id()
            return self._load_all()
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"The state directory {self.root} cannot be used: {error.strerror or error}. Make it writable "
                "for the service, or set RABBIT2DOCKER_LOCAL__STATE_DIR to another one."
            ) from error
        except ConfigurationError:
            self.close()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + ORPHAN_SECONDS
        while not _try_lock(self._lock):
            holder = os.pread(self._lock, 100, 0).decode("utf-8", "replace").strip()
            if not _has_ended(holder) or time.monotonic() > give_up_at:
                process = f" (process {holder})" if holder else ""
                raise ConfigurationError(
                    f"Another service{process} uses the state directory {self.root}. Stop it first, or set "
                    "RABBIT2DOCKER_LOCAL__STATE_DIR to another directory for this one."
                )
            threading.Event().wait(ORPHAN_PAUSE)  # `time.sleep` fails where libfaketime sets the clock
        # A full disk must not prevent the start: the process id only serves the message above.
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            log.warning("process id not written to the lock file", error=str(error))

    def _read_id(self) -> str:
        """Return the name of this set of records; a new one names the machine that created it."""
        path = self.root / ID
        try:
            if found := path.read_text("utf-8").strip():
                return found
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        created = state_name(uuid.uuid4().hex, socket.gethostname())
        write_atomically(path, created + "\n")
        return created

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear_leftovers(self) -> None:
        """Remove folders that a crash left half created or half removed."""
        for path in self.attempts.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _load_all(self) -> list[StoredRecord]:
        found = (self._load(path) for path in sorted(self.attempts.iterdir()) if path.is_dir())
        return [record for record in found if record]

    def _load(self, path: Path) -> StoredRecord | None:
        """Read a record. A damaged one is logged and left where it is, so that it does not block the others."""
        try:
            return self._read(path)
        except NewerRecord as error:
            log.error("record skipped: newer version", path=str(path), error=str(error))
            self.newer[path.name] = error.version
            return None

    def _read(self, path: Path) -> StoredRecord | None:
        try:
            spec = decode(AttemptSpec, (path / SPEC).read_bytes())
        except (OSError, ValueError) as error:
            log.error("record skipped: unreadable", path=str(path), error=str(error))
            return None
        if spec.name != path.name:
            log.error("record skipped: folder has another name", path=str(path), name=spec.name)
            return None
        try:
            status = decode(AttemptStatus, (path / STATUS).read_bytes())
        except (OSError, ValueError) as error:
            log.error("record status reset: unreadable", path=str(path), error=str(error))
            status = AttemptStatus()
        return StoredRecord(spec, status)

    def create(
        self,
        spec: AttemptSpec,
        status: AttemptStatus,
        builder_spec: dict[str, Any],
        credentials: Mapping[str, str] | None = None,
    ) -> bool:
        """Create a record atomically, with the files that hold credentials; False if there is one of that name."""
        path = self.path(spec.name)
        if path.exists():
            return False
        temporary = self.attempts / f"{_TEMPORARY}new-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(mode=0o700, parents=True)
            write_atomically(temporary / SPEC, encode(spec))
            write_atomically(temporary / STATUS, encode(status))
            write_atomically(temporary / BUILDER_SPEC, json.dumps(builder_spec))
            (temporary / LINES).touch(mode=0o600)
            _reserve(temporary / RESERVED)
            if credentials:
                write_files(temporary / WORK / GIT, credentials)
            os.mkfifo(temporary / RUNNING, 0o600)
            temporary.rename(path)
            _sync_directory(self.attempts)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return True

    def load(self, name: AttemptName) -> StoredRecord | None:
        """Read one record; None if there is none, or if it is damaged."""
        path = self.path(name)
        return self._load(path) if path.is_dir() else None

    def write_status(self, name: AttemptName, status: AttemptStatus) -> None:
        """Replace the status. Raises FileNotFoundError if the record is gone."""
        write_atomically(self.path(name) / STATUS, encode(status))

    def remove(self, name: AttemptName) -> None:
        """Remove a record, atomically for a service that reads the directory after a crash. Ignores unknown names."""
        going = self.attempts / f"{_TEMPORARY}old-{uuid.uuid4().hex}"
        try:
            self.path(name).rename(going)
        except FileNotFoundError:
            return
        shutil.rmtree(going, ignore_errors=True)


def remove_credentials(path: Path) -> None:
    """Remove the credentials of a builder that was killed before it could do so."""
    shutil.rmtree(path / WORK / GIT, ignore_errors=True)


def read_result(path: Path) -> tuple[BuilderResult | None, datetime]:
    """Return the builder's result, None if it wrote none, and the time of its last write as far as it is known."""
    result = None
    try:
        result = BuilderResult.model_validate_json((path / RESULT).read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValidationError) as error:
        log.error("builder result ignored: unreadable", path=str(path), error=str(error))
    for name in (RESULT, LINES):
        try:
            return result, datetime.fromtimestamp((path / name).stat().st_mtime, UTC)
        except OSError:
            continue
    return result, datetime.now(UTC)
