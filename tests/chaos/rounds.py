"""A round: faults on a broker and a consumer of its own, and then a look at the promises."""

import asyncio
import os
import shutil
import tempfile
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aio_pika.exceptions import AMQPError

from tests.chaos.faults import Fault, possible_faults
from tests.chaos.world import World, a_world
from tests.support.containers import disconnect

say = partial(print, flush=True)
ROUND = 25
"""Faults of a round."""


@dataclass(frozen=True)
class Round:
    """Faults that act on one world. The seed and the number fix which ones."""

    seed: str
    number: int
    faults: int
    give_up_at: float
    clock_library: Path | None

    def run(self) -> int:
        """Make the faults, and check the promises; return how many there were, or -1 if a promise was broken."""
        directory = Path(tempfile.mkdtemp(prefix="rabbit2docker-chaos-"))
        self._say(f"begins, in {directory}")
        try:
            made = asyncio.run(self._run(directory))
        except (AssertionError, OSError, AMQPError):
            self._say(
                f"broke a promise:\n{traceback.format_exc()}Its log, events and records are in {directory}."
            )
            return -1
        except KeyboardInterrupt:
            shutil.rmtree(directory)
            raise
        finally:
            disconnect()
        shutil.rmtree(directory)
        return made

    def _say(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} round {self.number}: {text}")

    async def _run(self, directory: Path) -> int:
        seed = f"{self.seed}/{self.number}"
        async with a_world(directory, seed, self.clock_library) as world:
            made = await self._make_faults(world)
            await world.heal()
            try:
                self._say(await world.check())
            except AssertionError:
                await world.keep()
                raise
            return made

    async def _make_faults(self, world: World) -> int:
        faults = possible_faults(disk=os.geteuid() == 0, clock=self.clock_library is not None)
        for made in range(self.faults):
            if time.monotonic() > self.give_up_at:
                return made
            for _ in range(world.random.randint(1, 3)):
                await world.ask()
            await asyncio.sleep(world.random.uniform(0, 2))
            await self._make(world.random.choice(faults), world)
        return self.faults

    async def _make(self, fault: Fault, world: World) -> None:
        self._say(f"{fault.name} ({len(world.asked)} requests)")
        with world.disturbing() if fault.concerns_all else nullcontext():
            await fault.act(world)
