"""`python -m tests.chaos`: random faults on real processes, as often or as long as asked for.

The same seed gives the same faults in the same order; what they meet depends on the machine. The exit code is 1 if a
promise was broken; the seed and the consumer's log are then printed.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.world import World, a_world
from tests.support.containers import begin_run, disconnect

say = partial(print, flush=True)
ROUND = 25
"""Faults between two looks at the promises, each with a broker and a consumer of its own."""


async def one_round(world: World, faults: int, give_up_at: float) -> int:
    """Make at most so many faults, with requests in between; return how many there were."""
    for number in range(faults):
        if time.monotonic() > give_up_at:
            return number
        for _ in range(world.random.randint(1, 3)):
            await world.ask()
        await asyncio.sleep(world.random.uniform(0, 2))
        fault = world.random.choice(FAULTS)
        say(f"  {fault.name} ({len(world.asked)} requests)")
        with world.disturbing() if fault.concerns_all else nullcontext():
            await fault.act(world)
    return faults


async def run_round(directory: Path, seed: str, faults: int, give_up_at: float) -> int:
    """Make a world, let faults act on it, end them, and check the promises. Raises AssertionError."""
    async with a_world(directory, seed) as world:
        made = await one_round(world, faults, give_up_at)
        await world.heal()
        say(f"  {await world.check()}")
        return made


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default=secrets.token_hex(4), help="any text; random by default")
    parser.add_argument("--faults", type=int, default=1000, help="at most so many faults (default: 1000)")
    parser.add_argument("--hours", type=float, default=24.0, help="at most so many hours (default: 24)")
    return parser.parse_args()


def main() -> int:
    """Run rounds until there were enough faults, or the time is over."""
    arguments = parse_arguments()
    give_up_at, made, number = time.monotonic() + arguments.hours * 3600, 0, 0
    end = begin_run()
    try:
        while made < arguments.faults and time.monotonic() < give_up_at:
            directory = Path(tempfile.mkdtemp(prefix="rabbit2docker-chaos-"))
            say(f"round {number} of seed {arguments.seed}: {made} of {arguments.faults} faults")
            seed = f"{arguments.seed}/{number}"
            try:
                made += asyncio.run(
                    run_round(directory, seed, min(ROUND, arguments.faults - made), give_up_at)
                )
            except (AssertionError, TimeoutError) as error:
                say(f"A promise was broken: {str(error) or 'not everything ended in time'}", file=sys.stderr)
                say(
                    f"Seed {arguments.seed}, round {number}. The consumer's log is {directory}/consumer.log; "
                    f"try again with `make chaos SEED={arguments.seed}`.",
                    file=sys.stderr,
                )
                return 1
            shutil.rmtree(directory)
            number += 1
    finally:
        disconnect()
        end()
    say(f"{made} faults, no promise was broken (seed {arguments.seed}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
