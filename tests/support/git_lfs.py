"""A server of Git LFS in its documented format, as a part of a git server over HTTP."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.support.git_http import NEEDS_PASSWORD, Handler

LFS_TYPE = "application/vnd.git-lfs+json"
ATTRIBUTES = {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"}
ABSENT = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 12\n"
"""The pointer of a content that no server has."""


def pointer(content: bytes) -> str:
    """Return the pointer for a content."""
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"


@dataclass
class LfsServer:
    """Answers `objects/batch` for any repository, and gives out the content of objects."""

    objects: dict[str, bytes] = field(default_factory=dict)
    login: str = ""
    """Value of the header Authorization that `objects/batch` demands."""
    token: str = ""
    """The same for downloads, which `objects/batch` gives out."""
    href: str = ""
    """Where objects are, if it is not here; `{oid}` stands for the id."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Those of each request, with names in lower case."""

    def add(self, content: bytes) -> str:
        """Take a content, and return its pointer."""
        self.objects[hashlib.sha256(content).hexdigest()] = content
        return pointer(content)

    def __call__(self, handler: Handler) -> bool:
        """Answer a request that is for Git LFS."""
        is_batch = handler.path.endswith("/objects/batch")
        if not is_batch and not handler.path.startswith("/lfs-content/"):
            return False
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        needed = self.login if is_batch else self.token
        if needed and handler.headers.get("Authorization") != needed:
            handler.send(
                401, b'{"message": "Credentials needed"}', {**NEEDS_PASSWORD, "Content-Type": LFS_TYPE}
            )
        elif is_batch:
            self._answer(handler)
        else:
            handler.send(200, self.objects[handler.path.rpartition("/")[2]])
        return True

    def _answer(self, handler: Handler) -> None:
        batch = json.loads(handler.body)
        assert handler.headers["Accept"] == handler.headers["Content-Type"] == LFS_TYPE
        assert batch["operation"] == "download"
        self.batches.append(batch)
        here = f"http://{handler.headers['Host']}/lfs-content/{{oid}}"
        answers = [self._object(item, self.href or here) for item in batch["objects"]]
        body = {"transfer": "basic", "objects": answers, "hash_algo": "sha256"}
        handler.send(200, json.dumps(body).encode(), {"Content-Type": LFS_TYPE})

    def _object(self, item: dict[str, Any], href: str) -> dict[str, Any]:
        if item["oid"] not in self.objects:
            return {**item, "error": {"code": 404, "message": "Object does not exist"}}
        download: dict[str, Any] = {"href": href.replace("{oid}", item["oid"]), "expires_in": 600}
        if self.token:
            download["header"] = {"Authorization": self.token}
        return {**item, "authenticated": True, "actions": {"download": download}}
