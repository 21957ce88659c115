"""Every write of the builder meets a full disk once: no line is lost or doubled, and the end says what was the matter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.builder import BUILDER_PATH
from tests.support import disk_faults
from tests.support.consumer import COMMIT, TOOLS

DIGEST = "sha256:" + "ab" * 32
DOCKER = f"""#!/bin/sh
case $1 in
version) echo 28.0;;
image) echo '1234 {{}}';;
push) echo "one: digest: {DIGEST} size: 950";;
esac
"""
REPO2DOCKER = """#!/bin/sh
for number in 1 2 3; do echo "{\\"message\\": \\"line $number of the build\\", \\"phase\\": \\"building\\"}"; done
"""
LINES = [f"line {number} of the build" for number in (1, 2, 3)]


def all_runs(directory: Path, fault: str, **spec: Any) -> list[dict[str, Any]]:
    """Return the runs of a builder, the first one of which meets no fault."""
    for name, text in (("docker", DOCKER), ("python", REPO2DOCKER)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    given = {
        "repo_url": "https://git.example/one", "ref": COMMIT, "image": "registry.example/one:1",
        "docker_wait_seconds": 1, "push_retries": 0, "allow_private_addresses": True, "directory": str(directory / "disk" / "repository"),
        "python": str(directory / "python"), **spec,
    }  # fmt: skip
    (directory / "spec.json").write_text(json.dumps(given))
    command = [
        sys.executable,
        "-I",
        "-S",
        disk_faults.__file__,
        str(BUILDER_PATH.parent),
        str(directory),
        fault,
    ]
    environment = {
        "PATH": f"{directory}:{TOOLS / 'bin'}:{os.environ['PATH']}",
        "HOME": str(directory),
        "TMPDIR": str(directory / "disk"),
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("fault", disk_faults.FAULTS)
def test_a_builder_survives_a_full_disk_at_each_of_its_writes_or_says_so(tmp_path: Path, fault: str) -> None:
    spec = {
        "workdir": str(tmp_path / "disk" / "work"),
        "content_provider": "Zenodo",
        "leases": str(tmp_path / "leases"),
    }
    (tmp_path / "leases" / "held").mkdir(parents=True)
    healthy, *others = all_runs(tmp_path, fault, **spec)
    assert healthy["result"]["reason"] == "ok", healthy
    assert len(others) > 10
    for run in others:
        check(run, LINES, may_fail="once" not in fault)


def check(run: dict[str, Any], expected: list[str], *, may_fail: bool) -> None:
    lines = [json.loads(line) for line in run["log"].splitlines(keepends=True) if line.endswith("\n")]
    assert [line["n"] for line in lines] == list(range(len(lines))), run
    assert "Traceback" not in run["output"], run
    result = run["result"]
    assert result["reason"] in (("ok", "disk_full") if may_fail else ("ok",)), run
    assert "Errno" not in result["message"], run
    # A line of which there is only a part is counted, so that readers hear of a gap.
    is_cut = not run["log"].endswith("\n") and bool(run["log"])
    assert result["lines"] == len(lines) + is_cut, run
    if result["reason"] == "ok":
        assert [text for line in lines if (text := line["text"]) in expected] == expected, run
    assert "work" not in run["left"], run


@pytest.mark.parametrize("fault", disk_faults.FAULTS)
def test_a_fetch_survives_a_full_disk_at_each_of_its_writes_or_says_so(tmp_path: Path, fault: str) -> None:
    healthy, *others = all_runs(tmp_path, fault)
    assert end_of(healthy)["reason"] == "ok", healthy
    assert len(others) > 1
    for run in others:
        assert end_of(run)["reason"] in ("ok", "disk_full"), run
        assert "Errno" not in end_of(run)["message"], run
        assert not [name for name in run["left"] if name.startswith("r2d-")], run


def end_of(run: dict[str, Any]) -> dict[str, Any]:
    records = [json.loads(line) for line in run["output"].splitlines()]
    found: dict[str, Any] = records[-1]["end"]
    return found
