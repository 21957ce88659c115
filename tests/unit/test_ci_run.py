"""`.ci/run` with a `make` that only notes what it is asked for: the order of stages, what fails, and what is ended."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE, eventually_blocking

SCRIPT = Path(__file__).parents[2] / ".ci/run"
MAKE = """#!/bin/sh
echo "start $1" >> calls
echo "output of $1"
if [ -e "hangs-$1" ]; then
    trap 'echo "ended $1" >> calls; exit 143' TERM
    while :; do sleep 0.05; done
fi
[ ! -e "fails-$1" ] || exit 2
[ "$1" != up ] || touch .run/env
echo "end $1" >> calls
"""
STAGES = ["lint", "docs", "up", "test", "test-chaos", "test-cluster", "demo"]


class Checkout:
    """A directory with the script alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, text in ((".ci/run", SCRIPT.read_text()), ("bin/make", MAKE)):
            file = directory / name
            file.parent.mkdir()
            file.write_text(text)
            file.chmod(0o755)

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.directory / ".ci/run"],
            env={**os.environ, "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def mark(self, text: str) -> None:
        (self.directory / text).touch()

    def calls(self) -> list[str]:
        file = self.directory / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("sh") is None:
        pytest.skip("there is no shell")
    return Checkout(tmp_path)


def test_all_stages_run_and_services_are_ended(checkout: Checkout) -> None:
    code, output = checkout.run()
    assert code == 0, output
    ended = [call.removeprefix("end ") for call in checkout.calls() if call.startswith("end ")]
    assert [name for name in ended if name in STAGES] == STAGES
    assert {"cluster-prepare", "test-hub"} <= set(ended)
    assert ended[-1] == "down"


def test_what_runs_beside_others_is_printed_whole_and_in_order(checkout: Checkout) -> None:
    _, output = checkout.run()
    titles = [line for line in output.splitlines() if line.startswith("== ") and line[-2:] != " s"]
    assert titles == [
        f"== {name}" for name in (*STAGES[:5], "cluster-prepare", "test-cluster", "test-hub", "demo")
    ]
    assert output.count("output of test-hub") == 1
    assert output.index("output of test-cluster") < output.index("output of test-hub")


@pytest.mark.parametrize("stage", [*STAGES, "cluster-prepare", "test-hub"])
def test_one_stage_that_fails_fails_the_run(checkout: Checkout, stage: str) -> None:
    checkout.mark(f"fails-{stage}")
    code, output = checkout.run()
    assert code == 2
    assert f"output of {stage}" in output
    assert f"end {stage}" not in checkout.calls()


@pytest.mark.parametrize(
    ("fails", "hangs"),
    [("lint", "cluster-prepare"), ("test", "cluster-prepare"), ("test-cluster", "test-hub")],
)
def test_a_failure_ends_what_runs_beside(checkout: Checkout, fails: str, hangs: str) -> None:
    checkout.mark(f"fails-{fails}")
    checkout.mark(f"hangs-{hangs}")
    code, _ = checkout.run()
    assert code == 2
    assert f"start {hangs}" not in checkout.calls() or f"ended {hangs}" in checkout.calls()


@pytest.mark.parametrize("hangs", ["lint", "test-cluster"])
def test_a_signal_ends_the_stage_and_the_services(checkout: Checkout, hangs: str) -> None:
    checkout.mark(f"hangs-{hangs}")
    process = checkout.start()
    eventually_blocking(lambda: f"start {hangs}" in checkout.calls())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert f"ended {hangs}" in checkout.calls()
    assert ("end down" in checkout.calls()) == (hangs == "test-cluster")


def test_services_that_ran_before_are_left_alone(checkout: Checkout) -> None:
    (checkout.directory / ".run").mkdir()
    checkout.mark(".run/env")
    code, _ = checkout.run()
    assert code == 0
    assert "end down" not in checkout.calls()
