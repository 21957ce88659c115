"""Processes, packages and Debian roots of this machine."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RUN = CHECKOUT / ".run"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rabbit2docker"
SUITE = "trixie"
# Debian's own programs are in places that an ordinary user's PATH may lack.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APT_LOCK_SECONDS = 600


CLEAN_UP_SECONDS = 60.0
"""Time that a command has to clean up when the program that runs it is ended."""


class Unable(Exception):
    """Something cannot be had on this machine; the message says what to do."""


def say(text: str) -> None:
    """Print what happens, for people."""
    print(f"  {text}", flush=True)  # noqa: T201


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is done, and how long it took if that was noticeable."""
    say(f"{what} …")
    began = time.monotonic()
    yield
    if (seconds := time.monotonic() - began) >= 1:
        say(f"  done in {seconds:.0f} s")


def checkout_id() -> str:
    """Return a short id of this checkout, for names that must not clash with another one's."""
    return hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]


def run(command: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command quietly; raises Unable with the end of its output when it fails."""
    result = subprocess.run(  # type: ignore[call-overload]
        [str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )
    if result.returncode:
        tail = "\n    ".join((result.stdout + result.stderr).strip().splitlines()[-8:])
        raise Unable(f"`{' '.join(str(part) for part in command)}` failed:\n    {tail}")
    return result  # type: ignore[no-any-return]


def run_interruptible(command: Sequence[str | Path], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code. If this program is ended, the command may clean up before it ends."""
    # A shell that started this in the background had it ignore SIGINT, which the command would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([str(part) for part in command], env=environment)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(CLEAN_UP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started here. The start time distinguishes it from a later one with the same pid."""

    name: str
    pid: int
    start: int

    @classmethod
    def of(cls, name: str, pid: int) -> "Started":
        """Note a process that runs now."""
        return cls(name, pid, start_time(pid) or 0)

    def is_alive(self) -> bool:
        """Return whether it is still that process."""
        return start_time(self.pid) == self.start != 0

    def end(self, seconds: float = 20) -> None:
        """End it: SIGTERM, and SIGKILL after `seconds`."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            if not self.is_alive():
                return
            os.kill(self.pid, number)
            wait_until(lambda: not self.is_alive(), patience)


def start_time(pid: int) -> int | None:
    """Return the start of a living process in clock ticks since boot; None for a dead one or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # Of a killed process the first thread may be gone while others still hold its ports and files.
        ended = fields[0] == "Z" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return None
    return None if ended else int(fields[19])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look until the condition holds or the time is up."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


class Ledger:
    """A record on disk of what `up` started, so that `down` finds it after any crash."""

    def __init__(self, path: Path = RUN / "started.json") -> None:
        """Read it, if it is there."""
        self.path = path
        data = json.loads(path.read_text()) if path.exists() else {}
        self.processes = [Started(**item) for item in data.get("processes", [])]
        self.containers: dict[str, str] = data.get("containers", {})
        self.docker_host: str = data.get("docker_host", "")

    def save(self) -> None:
        """Write it down, as one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "processes": [asdict(item) for item in self.processes],
            "containers": self.containers,
            "docker_host": self.docker_host,
        }
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=2))
        new.rename(self.path)

    def add(self, process: Started) -> None:
        """Note a process."""
        self.processes = [item for item in self.processes if item.name != process.name] + [process]
        self.save()

    def remove(self, name: str) -> None:
        """Forget a process that has ended."""
        self.processes = [item for item in self.processes if item.name != name]
        self.save()

    def alive(self, name: str) -> bool:
        """Return whether the process of that name runs."""
        return any(item.is_alive() for item in self.processes if item.name == name)


def start(name: str, command: Sequence[str | Path], *, log: Path, ledger: Ledger) -> Started:
    """Start a process in a session of its own and note it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = Started.of(name, child.pid)
    child.returncode = 0  # it outlives this program: no warning that it was never waited for
    ledger.add(process)
    return process


def is_debian_root() -> bool:
    """Return whether packages can be installed here."""
    return os.geteuid() == 0 and shutil.which("apt-get", path=SYSTEM_PATH) is not None


def need_packages(programs: dict[str, str], purpose: str) -> None:
    """Install the Debian package of each program that is missing; raises Unable where that is not possible."""
    missing = sorted(
        {package for program, package in programs.items() if not shutil.which(program, path=SYSTEM_PATH)}
    )
    if not missing:
        return
    if not is_debian_root():
        raise Unable(f"{purpose} needs {', '.join(missing)}. Install them, or run this as root on Debian.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH}
    with timed(f"Installing from Debian packages: {' '.join(missing)}"):
        # Another program may be installing packages right now: wait for its lock instead of failing.
        waiting = ("-o", f"DPkg::Lock::Timeout={_APT_LOCK_SECONDS}")
        command = ["apt-get", "-q", *waiting, "install", "-y", "--no-install-recommends", *missing]
        try:
            run(command, env=environment)
        except Unable:
            run(["apt-get", "-q", *waiting, "update"], env=environment)
            run(command, env=environment)


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """Return a directory with the files of Debian packages of this machine's release, which are not installed."""
    version = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    root = CACHE / f"{name}-unpacked-{version}"
    with locked(CACHE / "unpacked.lock"):
        if not (root / ".complete").exists():
            downloads = root / "packages"
            shutil.rmtree(root, ignore_errors=True)
            downloads.mkdir(parents=True)
            run(
                ["apt-get", "-q", "download", *packages],
                cwd=downloads,
                env={**os.environ, "PATH": SYSTEM_PATH},
            )
            for package in sorted(downloads.glob("*.deb")):
                run(["dpkg", "-x", package, root])
            (root / ".complete").touch()
    return root


def mirror() -> str:
    """Return the mirror that this machine's apt uses; it is never written into the checkout."""
    apt = Path("/etc/apt")
    files = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]
    files += sorted(apt.glob("sources.list.d/*.sources"))
    for file in files:
        if not file.exists():
            continue
        for line in file.read_text().splitlines():
            if match := re.match(
                r"(?:URIs:|deb(?: \[.*?\])?)\s+(https?://\S+?/debian)/?(?:\s|$)", line.strip()
            ):
                return match[1]
    raise Unable("The sources of apt name no Debian mirror, so nothing can be made from Debian packages.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one program at a time go on: others that want the same lock wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian_root_path(name: str, packages: Sequence[str], suite: str = SUITE) -> Path:
    """Return where that directory is or will be."""
    version = hashlib.sha256(" ".join([suite, *packages]).encode()).hexdigest()[:8]
    return CACHE / f"{name}-{version}"


def debian_root(name: str, packages: Sequence[str], suite: str = SUITE) -> Path:
    """Return a directory with a Debian system holding `packages`, made once and kept in the cache."""
    root = debian_root_path(name, packages, suite)
    with locked(CACHE / "debian-roots.lock"):
        if not (root / ".complete").exists():
            _make_debian_root(name, root, packages, suite)
    return root


def _make_debian_root(name: str, root: Path, packages: Sequence[str], suite: str) -> None:
    if not is_debian_root():
        raise Unable(
            f"No image registry can be reached, and making {name} from Debian packages needs root on Debian."
        )
    need_packages({"debootstrap": "debootstrap"}, f"Making {name}")
    with timed(f"Making {name} from Debian packages (about a minute, kept in {CACHE})"):
        shutil.rmtree(root, ignore_errors=True)
        downloads = CACHE / "packages"
        downloads.mkdir(parents=True, exist_ok=True)
        run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--cache-dir={downloads}",
                f"--include={','.join(packages)}",
                suite,
                str(root),
                mirror(),
            ],
            env={**os.environ, "PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive"},
        )
        (root / ".complete").touch()
