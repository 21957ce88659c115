"""The program of one attempt: where it is, and what names its version."""

import hashlib
from pathlib import Path
from typing import Final

BUILDER_PATH: Final = Path(__file__).with_name("builder.py")
"""One file, standard library only: run as it is by the local executor, mounted into build pods."""


def content_hash() -> str:
    """Return a short digest of the builder's text, which names its version."""
    return hashlib.sha256(BUILDER_PATH.read_bytes()).hexdigest()[:12]
