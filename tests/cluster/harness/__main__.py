"""`python -m tests.cluster.harness prepare|up|down|status|load|run|test`: what `make` calls."""

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.dev.machine import Unable, locked, run_interruptible, say
from deploy.dev.services import read_env, write_env

from tests.cluster import consumer_image, hub_images
from tests.cluster.harness import choice, layout, own, suite
from tests.cluster.harness.layout import ENV, LOCK, TESTS_LOCK, TESTS_LOCKED


def prepare() -> None:
    """Fill the caches with everything that a start of the cluster and its tests would compile or download."""
    kind = choice.chosen()
    kind.prepare()
    if kind is own:
        consumer_image.prepare()
        hub_images.prepare()


def up() -> dict[str, str]:
    """Start the cluster, or what does not run of it, and write down where everything is."""
    with locked(LOCK):
        variables = choice.chosen().up()
        write_env(variables, ENV)
    return variables


def down(*, wipe: bool) -> None:
    """End everything that `up` started."""
    with locked(LOCK):
        for kind in choice.KINDS:
            kind.down(wipe=wipe)


def is_up() -> bool:
    """Return whether `up` was called and not yet `down`, even if parts of it have died since."""
    return bool(read_env(ENV)) and any(item.is_alive() for item in layout.ledger().processes)


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Have the cluster for tests of one run at a time; yields their environment. End afterwards what was not up before."""
    with _locked_for_tests():
        keep = is_up()
        try:
            variables = up()
            path = f"{variables['RABBIT2DOCKER_TEST_CLUSTER_BIN']}:{os.environ['PATH']}"
            yield {**os.environ, **variables, "PATH": path, TESTS_LOCKED: "1"}
        finally:
            if not keep:
                down(wipe=False)


@contextmanager
def _locked_for_tests() -> Iterator[None]:
    """Wait for another run of tests: repairing the cluster now would undo its faults."""
    TESTS_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with TESTS_LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting until another run of the cluster's tests has ended …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_command(command: list[str]) -> int:
    """Run a command with the cluster up and return its exit code."""
    with running() as environment:
        return run_interruptible(command, environment)


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
    commands.add_parser(
        "prepare", help="compile, download and build everything that `up` needs, and start nothing"
    )
    commands.add_parser("up", help="start the cluster and write .run/cluster/env")
    ending = commands.add_parser("down", help="end what `up` started")
    ending.add_argument("--wipe", action="store_true", help="remove its state as well")
    commands.add_parser("status", help="say what runs")
    loader = commands.add_parser("load", help="import images into all nodes")
    loader.add_argument("archive", type=Path, help="an OCI archive or what `docker save` wrote")
    runner = commands.add_parser("run", help="run a command with the cluster up")
    runner.add_argument("rest", nargs=argparse.REMAINDER, metavar="COMMAND")
    tester = commands.add_parser("test", help="run the cluster's tests with the cluster up")
    tester.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="for pytest")
    return parser.parse_args()


def main() -> int:
    """Run the command line."""
    arguments = _parse()
    # Ctrl-C and `kill` must pass the `finally` that ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _carry_out(arguments)
    except Unable as problem:
        say(f"Cannot go on: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130


def _carry_out(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "prepare":
            prepare()
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
            return run_command(_after_dashes(arguments.rest))
        case "test":
            with running() as environment:
                return suite.run(_after_dashes(arguments.rest), environment)
        case unknown:
            raise AssertionError(unknown)
    return 0


def _after_dashes(arguments: list[str]) -> list[str]:
    return [part for part in arguments if part != "--"]


if __name__ == "__main__":
    sys.exit(main())
