"""`make hub-demo` does what it says: everything from the request to a server, and nothing is left of it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.hub, pytest.mark.docker, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


async def test_the_hub_demo_builds_an_image_starts_a_server_from_it_and_leaves_nothing_running() -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "deploy.dev", "hub-demo", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A server runs with it and says: Hello from an image" in done.stdout
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if _carries(path, ROOT / ".run/hub/")
    ]
    assert left == []


def _carries(environ: Path, directory: Path) -> bool:
    try:
        return os.fsencode(directory) in environ.read_bytes()
    except OSError:
        return False
