"""A GitHub Enterprise server on this machine: private repositories, the API, and an App that gets tokens for them.

Formats are those of GitHub's documentation. Signatures are verified, and tokens are those of real installations: they
expire, and read the repositories that they were asked for.
"""

import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.certificates import write_certificates
from tests.support.git_http import NEEDS_PASSWORD, GitHttp, Handler, git_http
from tests.support.repositories import Repository

APP_ID = "4711"
OWNER = "acme"
INSTALLATION = 99
"""The installation on the account OWNER; those on other accounts have the numbers after it."""


@dataclass
class Token:
    """A token that was minted."""

    text: str
    expires_at: float
    repositories: set[str]
    """Their names in lower case, with the owner."""


def new_key(path: Path) -> Path:
    """Write a private key as GitHub generates it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path


@dataclass
class Enterprise:
    """The server, and what it has done."""

    directory: Path
    https: GitHttp
    installed: set[str] = field(default_factory=set)
    """Repositories that installations cover, such as `acme/work`."""
    public: set[str] = field(default_factory=set)
    suspended: bool = False
    suspended_accounts: set[str] = field(default_factory=set)
    """Accounts whose installation is suspended."""
    moved: dict[str, str] = field(default_factory=dict)
    """The name that a repository has by now, by the name that it had."""
    shown: list[tuple[str, str]] = field(default_factory=list)
    """The repository of each request by git that had a token, and the token."""
    permissions: dict[str, str] = field(default_factory=lambda: {"metadata": "read", "contents": "read"})
    lifetime: float = 3600
    clock: float = 0
    """Seconds that the server's clock is ahead."""
    tokens: list[Token] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    always: Callable[[Handler], bool] | None = None
    """Answers each request to the API."""

    @property
    def host(self) -> str:
        return self.https.server.url.partition("://")[2]

    @property
    def key_file(self) -> Path:
        return self.directory / "app.pem"

    @property
    def authority(self) -> Path:
        return self.directory / "certificates" / "ca.pem"

    def tenant(self, **changes: Any) -> dict[str, Any]:
        """Return the settings of a tenant with the App."""
        return {"git": {self.host: {"app_id": APP_ID, "app_key_file": str(self.key_file), **changes}}}

    @property
    def secrets(self) -> list[str]:
        """All that nothing may show: tokens, their form in a header, signatures, and lines of the key."""
        texts = [token.text for token in self.tokens]
        logins = [base64.b64encode(f"x-access-token:{text}".encode()).decode() for text in texts]
        return [*texts, *logins, *self.signatures, *self.key_file.read_text().splitlines()[1:-1]]

    def repository(
        self,
        name: str,
        files: Mapping[str, str | bytes] | None = None,
        *,
        installed: bool = True,
        account: str = OWNER,
    ) -> Repository:
        """Make a private repository, on which the App is installed."""
        made = Repository(name, files or {"README.md": "Private.\n"}, self.https.server)
        owner = self.https.root / account
        owner.mkdir(exist_ok=True)
        for ending in ("", ".git"):
            (owner / f"{made.name}{ending}").symlink_to(made.directory)
        if installed:
            self.installed.add(f"{account}/{made.name}")
        return made

    def url(self, repository: Repository, account: str = OWNER) -> str:
        return f"{self.https.server.url}/{account}/{repository.name}"

    def accounts(self) -> list[str]:
        """Return the accounts that have an installation, in the order of its number."""
        return [OWNER, *sorted({path.partition("/")[0] for path in self.installed} - {OWNER})]

    def accounts_of_tokens_for(self, repository: Repository) -> set[str]:
        """Return the accounts whose tokens were sent to a repository, its files of Git LFS included."""
        sent = {text for path, text in self.shown if path.partition("/")[2] == repository.name}
        return {
            path.partition("/")[0]
            for token in self.tokens
            if token.text in sent
            for path in token.repositories
        }

    # -- what it answers

    def __call__(self, handler: Handler) -> bool:
        path, _, query = handler.path.partition("?")
        if path.startswith("/api/v3/"):
            if not (self.always and self.always(handler)):
                self._answer(handler, unquote(path).removeprefix("/api/v3/").split("/"), parse_qs(query))
            return True
        repository = "/".join(path.split("/")[1:3]).lower().removesuffix(".git")
        if given := self._given(handler):
            self.shown.append((repository, given))
        if repository in self.public or self._may_read(handler, repository):
            return False
        handler.send(401, b"Repository not found.", NEEDS_PASSWORD)
        return True

    def _given(self, handler: Handler) -> str:
        kind, _, value = handler.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            user, _, value = base64.b64decode(value).decode().partition(":")
            return value if user == "x-access-token" else ""
        return value

    def _may_read(self, handler: Handler, repository: str) -> bool:
        now = time.time() + self.clock
        return any(
            token.text == self._given(handler) and now < token.expires_at and repository in token.repositories
            for token in self.tokens
        )

    def _send(self, handler: Handler, status: int, content: Any, **headers: str) -> None:
        handler.send(
            status,
            json.dumps(content).encode(),
            {"Content-Type": "application/json; charset=utf-8", **headers},
        )

    def _fail(self, handler: Handler, status: int, message: str) -> None:
        self._send(handler, status, {"message": message, "documentation_url": "https://docs.github.com/rest"})

    def _answer(self, handler: Handler, parts: list[str], query: dict[str, list[str]]) -> None:
        match parts:
            case ["repos", owner, name, "installation"]:
                if self._is_app(handler):
                    self._installation(handler, f"{owner}/{name}".lower())
            case ["repositories", number, "installation"]:
                if self._is_app(handler):
                    self._installation(handler, list(self.moved.values())[int(number)])
            case ["orgs" | "users" as kind, account, "installation"]:
                if self._is_app(handler):
                    self._installation_on(handler, kind, account.lower())
            case ["app", "installations", number, "access_tokens"]:
                if self._is_app(handler):
                    self._mint(handler, int(number))
            case ["repos", owner, name, *rest]:
                self._about(handler, f"{owner}/{name}".lower(), rest, query)
            case _:
                self._fail(handler, 404, "Not Found")

    def _is_app(self, handler: Handler) -> bool:
        """Verify the signature as GitHub does, or answer with its error."""
        given = self._given(handler)
        self.signatures.append(given)
        public = serialization.load_pem_private_key(
            (self.directory / "registered.pem").read_bytes(), None
        ).public_key()
        now = time.time() + self.clock
        try:
            claims = jwt.decode(
                given,
                public,  # type: ignore[arg-type]
                algorithms=["RS256"],
                options={"require": ["iat", "exp", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError:
            self._fail(handler, 401, "A JSON web token could not be decoded")
            return False
        if claims["exp"] <= now or claims["exp"] > now + 600:
            problem = "is too far in the future" if claims["exp"] > now else "must be in the future"
            self._fail(handler, 401, f"'Expiration time' claim ('exp') {problem}")
        elif claims["iat"] > now:
            self._fail(
                handler, 401, "'Issued at' claim ('iat') must be an Integer representing the time of issue"
            )
        elif claims["iss"] != APP_ID:
            self._fail(handler, 404, "Integration not found")
        else:
            return True
        return False

    def _installation(self, handler: Handler, repository: str) -> None:
        if repository in self.moved:
            number = list(self.moved).index(repository)
            location = f"{self.https.server.url}/api/v3/repositories/{number}/installation"
            return self._send(handler, 301, {"message": "Moved Permanently"}, Location=location)
        if repository not in self.installed:
            return self._fail(handler, 404, "Not Found")
        return self._show_installation(handler, repository.partition("/")[0])

    def _installation_on(self, handler: Handler, kind: str, account: str) -> None:
        """Answer about an account, of which those that end with `-person` are no organizations."""
        has_kind = kind == ("users" if account.endswith("-person") else "orgs")
        if not has_kind or not any(path.startswith(f"{account}/") for path in self.installed):
            return self._fail(handler, 404, "Not Found")
        return self._show_installation(handler, account)

    def _is_suspended(self, account: str) -> bool:
        return self.suspended or account in self.suspended_accounts

    def _show_installation(self, handler: Handler, account: str) -> None:
        since = datetime.now(UTC).isoformat() if self._is_suspended(account) else None
        number = INSTALLATION + self.accounts().index(account)
        self._send(
            handler,
            200,
            {"id": number, "account": {"login": account}, "app_id": 4711, "suspended_at": since},
        )

    def _mint(self, handler: Handler, number: int) -> None:
        asked = json.loads(handler.body)
        account = dict(enumerate(self.accounts(), INSTALLATION)).get(number, "")
        if self._is_suspended(account):
            return self._fail(handler, 403, "This installation has been suspended")
        chosen = {f"{account}/{name}".lower() for name in asked.get("repositories", [])}
        chosen |= {list(self.moved.values())[number] for number in asked.get("repository_ids", [])}
        if not chosen <= self.installed:
            message = "There is at least one repository that does not exist or is not accessible to the parent installation."
            return self._fail(handler, 422, message)
        if any(self.permissions.get(name) != level for name, level in asked["permissions"].items()):
            return self._fail(handler, 422, "The permissions requested are not granted to this installation.")
        expires_at = int(time.time() + self.clock + self.lifetime)
        token = Token(f"ghs_{len(self.tokens):04}MintedForTheseRepositories", expires_at, chosen)
        self.tokens.append(token)
        return self._send(
            handler,
            201,
            {
                "token": token.text,
                "expires_at": datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "permissions": asked["permissions"],
                "repository_selection": "selected",
            },
        )

    def _about(self, handler: Handler, repository: str, rest: list[str], query: dict[str, list[str]]) -> None:
        if handler.headers.get("Authorization") and not self._is_valid(handler):
            return self._fail(handler, 401, "Bad credentials")
        if repository not in self.public and not self._may_read(handler, repository):
            return self._fail(handler, 404, "Not Found")
        directory = self.https.root / f"{repository}.git"
        match rest:
            case []:
                return self._send(
                    handler, 200, {"full_name": repository, "private": repository not in self.public}
                )
            case ["git", "matching-refs", *name]:
                start = f"refs/{'/'.join(name)}"
                listed = git(directory, "for-each-ref", "--format=%(refname) %(objecttype) %(objectname)")
                found = [line.split() for line in listed.splitlines() if line.startswith(start)]
                refs = [{"ref": ref, "object": {"type": kind, "sha": value}} for ref, kind, value in found]
                return self._send(handler, 200, refs)
            case ["commits", *name]:
                commit = git(directory, "rev-parse", "--quiet", "--verify", f"{'/'.join(name)}^{{commit}}")
                return (
                    handler.send(200, commit.encode())
                    if commit
                    else self._fail(handler, 422, "No commit found")
                )
            case ["contents", *path]:
                ref = query.get("ref", ["HEAD"])[0]
                text = git(directory, "show", f"{ref}:{'/'.join(path)}")
                return handler.send(200, text.encode()) if text else self._fail(handler, 404, "Not Found")
            case _:
                return self._fail(handler, 404, "Not Found")

    def _is_valid(self, handler: Handler) -> bool:
        now = time.time() + self.clock
        return any(token.text == self._given(handler) and now < token.expires_at for token in self.tokens)


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class SkewedHandler(Handler):
    """Answers with the time of a server whose clock may be wrong."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        clock = next((fault.clock for fault in self.server.git.faults if isinstance(fault, Enterprise)), 0)
        return formatdate((timestamp or time.time()) + clock, usegmt=True)


@contextmanager
def enterprise(directory: Path, address: str = "127.0.0.1") -> Iterator[Enterprise]:
    """Run the server at an address of this machine, with the App's key in a new directory."""
    directory.mkdir()
    write_certificates(directory / "certificates", address)
    (directory / "served").mkdir()
    with git_http(
        directory / "served",
        certificates=directory / "certificates",
        handler=SkewedHandler,
        address=address,
    ) as https:
        server = Enterprise(directory, https)
        (directory / "registered.pem").write_bytes(new_key(server.key_file).read_bytes())
        https.faults.append(server)
        yield server
