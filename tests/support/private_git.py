"""Private repositories on loopback: behind HTTPS with a login, and behind SSH with a key."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.certificates import write_certificates
from tests.support.git_http import NEEDS_PASSWORD, GitHttp, Handler, git_http
from tests.support.repositories import Repository
from tests.support.ssh_server import SshServer, ssh_server

TOKEN = "private-token-8c1f0e5d"
NOT_PUBLIC = "/public"
"""Paths that begin so need no login."""


@dataclass
class PrivateGit:
    """Both servers, which serve the same repositories, and the files with a tenant's credentials for them."""

    directory: Path
    https: GitHttp
    ssh: SshServer
    user: str = "reader"
    offered: list[str] = field(default_factory=list)
    """The logins that were sent."""

    @property
    def token_file(self) -> Path:
        return self.directory / "token"

    @property
    def known_hosts_file(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def https_host(self) -> str:
        return self.https.server.url.partition("://")[2]

    @property
    def secrets(self) -> list[str]:
        """All that nothing may show: the token, its form in a header, and lines of the key."""
        login = base64.b64encode(f"{self.user}:{TOKEN}".encode()).decode()
        lines = self.ssh.key.read_text().splitlines()
        return [TOKEN, login, *lines[1:-1]]

    def tenant(self, **login: str) -> dict[str, Any]:
        """Return the settings of a tenant with both credentials."""
        return {
            "git": {
                self.https_host: {"token_file": str(self.token_file), "user": self.user, **login},
                f"127.0.0.1:{self.ssh.port}": {
                    "ssh_key_file": str(self.ssh.key),
                    "known_hosts_file": str(self.known_hosts_file),
                },
            }
        }

    def tenants(self, *names: str) -> str:
        """Return the settings of tenants as a variable has them."""
        return json.dumps({name: self.tenant() for name in names})

    @property
    def authority(self) -> Path:
        """The authority that has signed the server's certificate."""
        return self.directory / "certificates" / "ca.pem"

    def repository(self, name: str, files: dict[str, str] | None = None) -> Repository:
        return Repository(name, files or {"README.md": "Private.\n"}, self.https.server)

    def ssh_url(self, repository: Repository) -> str:
        return self.ssh.url(repository.directory)

    def __call__(self, handler: Handler) -> bool:
        """Ask for the login, except for what is public."""
        given = handler.headers.get("Authorization", "")
        if given:
            self.offered.append(given)
        accepted = base64.b64encode(f"{self.user}:{TOKEN}".encode()).decode()
        if handler.path.startswith(NOT_PUBLIC) or given == f"Basic {accepted}":
            return False
        handler.send(401, b"Log in.", NEEDS_PASSWORD)
        return True


@contextmanager
def private_git(directory: Path, certificates: Path | None = None) -> Iterator[PrivateGit]:
    """Run both servers, with a tenant's files in a new directory."""
    directory.mkdir()
    if certificates is None:
        write_certificates(directory / "certificates")
    else:
        (directory / "certificates").symlink_to(certificates)
    (directory / "served").mkdir()
    with (
        git_http(directory / "served", certificates=directory / "certificates") as https,
        ssh_server(directory / "ssh") as ssh,
    ):
        git = PrivateGit(directory, https, ssh)
        https.faults.append(git)
        git.token_file.write_text(f"{TOKEN}\n")
        git.known_hosts_file.write_text(ssh.known_hosts)
        yield git
