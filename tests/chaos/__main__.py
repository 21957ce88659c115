"""`python -m tests.chaos`: random faults on real processes, as often or as long as asked for.

The same seed gives the same faults in the same order; what they meet depends on the machine. The exit code is 1 if a
promise was broken; the seed and the place of the consumer's log are then printed.
"""

import argparse
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count

from tests.chaos.clock import find_library
from tests.chaos.rounds import ROUND, Round, say
from tests.support.containers import begin_run, disconnect


def rounds(arguments: argparse.Namespace) -> Iterator[Round]:
    """Yield rounds until there are as many faults as asked for, or the time is over."""
    give_up_at = time.monotonic() + arguments.hours * 3600
    library = find_library()
    if library is None:
        say("  libfaketime is missing, so the clock is left alone.")
    for number in count():
        faults = min(ROUND, arguments.faults - number * ROUND)
        if faults <= 0 or time.monotonic() > give_up_at:
            return
        yield Round(arguments.seed, number, faults, give_up_at, library)


def run_all(arguments: argparse.Namespace) -> list[int]:
    """Run rounds side by side, and begin none after one that broke a promise; return what each returned."""
    results: list[int] = []
    running: set[Future[int]] = set()
    # A fork would share this process's connection to the engine.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            for each in rounds(arguments):
                running.add(pool.submit(each.run))
                if len(running) >= arguments.jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    results += [future.result() for future in done]
                    say(f"{sum(max(0, made) for made in results)} of {arguments.faults} faults")
                if -1 in results:
                    break
            return results + [future.result() for future in running]
        except KeyboardInterrupt:
            # Of `kill` they know nothing yet: they end their consumers.
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGINT)
            raise


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default=secrets.token_hex(4), help="any text; random by default")
    parser.add_argument("--faults", type=int, default=1000, help="at most so many faults (default: 1000)")
    parser.add_argument("--hours", type=float, default=24.0, help="at most so many hours (default: 24)")
    parser.add_argument("--jobs", type=int, default=1, help="rounds at the same time (default: 1)")
    return parser.parse_args()


def main() -> int:
    """Run rounds until there were enough faults, or the time is over."""
    arguments = parse_arguments()
    say(f"Up to {arguments.faults} faults, seed {arguments.seed}")
    end = begin_run()
    try:
        results = run_all(arguments)
    except KeyboardInterrupt:
        say("Ended before there were enough faults.", file=sys.stderr)
        return 130
    finally:
        disconnect()
        end()
    if -1 in results:
        say(f"A promise was broken; try again with `make chaos SEED={arguments.seed}`.", file=sys.stderr)
        return 1
    say(f"{sum(results)} faults, no promise was broken (seed {arguments.seed}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
