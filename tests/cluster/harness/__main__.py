"""`python -m tests.cluster.harness up|down|status|load|run`: what `make` calls."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from deploy.dev.machine import Unable, locked, say
from deploy.dev.services import read_env, write_env

from tests.cluster.harness import choice, layout
from tests.cluster.harness.layout import ENV, LOCK, TESTS_LOCK


def up() -> dict[str, str]:
    """Start the cluster, or what does not run of it, and write down where everything is."""
    with locked(LOCK):
        variables = choice.chosen().up()
        write_env(variables, ENV)
    return variables


def down(*, wipe: bool) -> None:
    """End what `up` started."""
    with locked(LOCK):
        for kind in choice.KINDS:
            kind.down(wipe=wipe)


def is_up() -> bool:
    """Tell whether `up` was called and not yet `down`, whatever may have died since."""
    return bool(read_env(ENV)) and any(item.is_alive() for item in layout.ledger().processes)


def run_command(command: list[str]) -> int:
    """Run a command with the cluster up; what was not up before is ended after it."""
    keep = is_up()
    try:
        with locked(TESTS_LOCK):  # repairing now would undo the faults of another run of tests
            variables = up()
        merged = {**os.environ, **variables}
        merged["PATH"] = f"{variables['RABBIT2DOCKER_TEST_CLUSTER_BIN']}:{merged['PATH']}"
        return subprocess.run(command, env=merged, check=False).returncode
    finally:
        if not keep:
            with locked(TESTS_LOCK):  # another run may have come to use it meanwhile
                down(wipe=False)


def status() -> None:
    """Say what runs."""
    started = layout.ledger()
    for process in started.processes:
        say(f"{process.name}: {'runs' if process.is_alive() else 'has ended'} (pid {process.pid})")
    for name, container in started.containers.items():
        say(f"{name}: container {container[:12]}")
    if not started.processes and not started.containers:
        say("nothing is up; `make cluster-up` starts a cluster")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster and write .run/cluster/env")
    ending = commands.add_parser("down", help="end what `up` started")
    ending.add_argument("--wipe", action="store_true", help="remove its state as well")
    commands.add_parser("status", help="say what runs")
    loader = commands.add_parser("load", help="import images into all nodes")
    loader.add_argument("archive", type=Path, help="an OCI archive or what `docker save` wrote")
    runner = commands.add_parser("run", help="run a command with the cluster up")
    runner.add_argument("rest", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser.parse_args()


def main() -> int:
    """Run the command line."""
    arguments = _parse()
    # Ctrl-C and `kill` must come by the `finally` that ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        match arguments.command:
            case "up":
                up()
                say("The cluster is up. `. .run/cluster/env` has the addresses; `make cluster-down` ends it.")
            case "down":
                down(wipe=arguments.wipe)
            case "status":
                status()
            case "load":
                choice.load(arguments.archive)
            case "run":
                return run_command([part for part in arguments.rest if part != "--"])
            case unknown:
                raise AssertionError(unknown)
    except Unable as problem:
        say(f"Cannot go on: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
