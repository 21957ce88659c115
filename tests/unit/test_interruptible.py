"""Commands that are run for a developer clean up when they are ended, also where they were started in the background."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import eventually_blocking

COMMAND = """
import pathlib, signal, sys
try:
    pathlib.Path("begun").touch()
    signal.pause()
except KeyboardInterrupt:
    pathlib.Path("cleaned").touch()
    sys.exit(3)
"""
RUNNER = """
import signal, sys
from deploy.dev.machine import run_interruptible
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run_interruptible([sys.executable, "-c", sys.argv[1]], {})
"""


@pytest.mark.parametrize("in_background", [False, True])
def test_a_command_cleans_up_when_its_runner_is_ended(tmp_path: Path, in_background: bool) -> None:
    # As a shell without job control does for what it starts in the background.
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
    try:
        runner = subprocess.Popen(
            [sys.executable, "-c", RUNNER, COMMAND],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    with runner:
        eventually_blocking((tmp_path / "begun").exists)
        runner.terminate()
        assert runner.wait(180) == 143
    assert (tmp_path / "cleaned").exists()
