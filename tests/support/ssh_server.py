"""OpenSSH's server on loopback, for git: a key of its own for each server, and for each client."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from deploy.dev import machine

from tests.support.ports import free_port
from tests.support.waiting import eventually_blocking

USER = "git"
# Not installed, as that would add a user to the machine.
PACKAGES = ("openssh-server", "libwrap0")
CONFIG = """
ListenAddress {address}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
"""
# A server that root starts wants a user for its unprivileged part, whom few machines have.
AS_ROOT = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/run" /run
exec "$2" -D -e -f "$1/sshd_config"
"""


@dataclass(frozen=True)
class SshServer:
    """A running server."""

    directory: Path
    port: int
    user: str
    host: str = "127.0.0.1"
    """The name that clients have for it."""

    def url(self, path: Path) -> str:
        """Return the address of a repository."""
        return f"ssh://{self.user}@{self.host}:{self.port}{path}"

    @property
    def key(self) -> Path:
        """The private key that it accepts."""
        return self.directory / "client_key"

    @property
    def known_hosts(self) -> str:
        """The server's own key, as `ssh-keyscan` prints it."""
        return f"[{self.host}]:{self.port} {(self.directory / 'host_key.pub').read_text()}"

    def log(self) -> str:
        """Return what the server has written."""
        return (self.directory / "log").read_text()


def make_key(path: Path) -> None:
    """Make a pair of keys."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def server_program() -> Path:
    """Return the server's program: the machine's, or one from Debian packages that are only unpacked."""
    if found := shutil.which("sshd", path=machine.SYSTEM_PATH):
        return Path(found)
    if not machine.is_debian_root():
        pytest.skip("a server for SSH is needed: install openssh-server")
    return machine.unpacked("openssh-server", PACKAGES) / "usr/sbin/sshd"


@contextmanager
def ssh_server(
    directory: Path, *, host: str = "127.0.0.1", address: str = "127.0.0.1", before: Sequence[str] = ()
) -> Iterator[SshServer]:
    """Run a server in a new directory; a command `before` it may bring it into another network."""
    program = server_program()
    is_root = os.geteuid() == 0
    directory.mkdir()
    (directory / "run" / "sshd").mkdir(parents=True, mode=0o755)
    server = SshServer(directory, free_port(), USER if is_root else getpass.getuser(), host)
    for name in ("host_key", "client_key"):
        make_key(directory / name)
    shutil.copy(directory / "client_key.pub", directory / "authorized_keys")
    (directory / "sshd_config").write_text(
        CONFIG.format(address=address, port=server.port, directory=directory)
    )
    (directory / "passwd").write_text(
        f"root:*:0:0::/root:/bin/sh\n{USER}:*:0:0::{directory}:/bin/sh\nsshd:*:65533:65533::/:/bin/false\n"
    )
    command = [str(program), "-D", "-e", "-f", str(directory / "sshd_config")]
    if is_root:
        command = ["unshare", "--mount", "sh", "-c", AS_ROOT, "sh", str(directory), str(program)]
    libraries = program.parents[1] / "lib" / f"{os.uname().machine}-linux-gnu"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*before, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "PATH": machine.SYSTEM_PATH},
            start_new_session=True,
        )
    try:
        eventually_blocking(lambda: "Server listening" in server.log() or process.poll() is not None)
        assert process.poll() is None, server.log()
        yield server
    finally:
        process.terminate()
        process.wait()
