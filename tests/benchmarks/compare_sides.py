"""The sides of a comparison: this service, a reference at an address, and the run in which they take turns."""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from tests.benchmarks.comparison import OURS, REFERENCE, Figures, Row
from tests.benchmarks.cost import Services, services, used_by
from tests.benchmarks.reference import Target, Viewer, all_over, look

ITSELF = "self"
"""REFERENCE_URL for a second instance of this service: its ratios show what the machine's mood makes of 1."""
MANY = {"RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS": "4000"}


class Unusable(Exception):
    """The reference cannot be measured; the text says why and what to do."""


@dataclass(slots=True)
class Side:
    """A service with an address."""

    name: str
    target: Target
    services: Services | None = None
    """Its parts, if they run here."""
    pids: tuple[int, ...] = ()
    """Its processes, if they run on this machine."""

    def cpu_seconds(self) -> dict[str, float]:
        """Return what each process has computed so far; nothing where that is not known."""
        if self.services is not None:
            return self.services.cpu_seconds()
        return {"reference": sum(used_by(each) for each in self._processes())} if self.pids else {}

    def memory(self) -> dict[str, float]:
        """Return resident megabytes by process; nothing where they are not known."""
        if self.services is not None:
            return self.services.memory()
        rss = sum(float(each.memory_info().rss) for each in self._processes())
        return {"reference": rss / 1_000_000} if self.pids else {}

    def _processes(self) -> list[psutil.Process]:
        roots = [psutil.Process(pid) for pid in self.pids]
        return [process for root in roots for process in (root, *root.children(recursive=True))]


@dataclass(slots=True)
class Run:
    """One run: what it has found, and how thorough it is."""

    figures: Figures
    quick: bool = False
    viewers: tuple[int, ...] = (1, 48, 1000)
    live: tuple[int, ...] = (10, 100, 1000, 3000)
    say: Callable[[str], None] = print
    on_figures: Callable[[Figures], None] = lambda figures: None
    sides: list[Side] = field(default_factory=list)
    turn: int = 0
    """Number of the round."""

    @property
    def ours(self) -> Side:
        """Return this service."""
        return next(side for side in self.sides if side.name == OURS)

    def name(self, what: str, side: Side, number: int = 0) -> str:
        """Return a name that no other build of the run has."""
        return f"{what}-{side.name}-{self.turn}-{number}-{int(time.time())}"

    def note(
        self, row: str, unit: str, side: str, value: float, *, is_more_better: bool = False, digits: int = 4
    ) -> Row:
        """Note a figure of this round, and the load with it."""
        found = self.figures.row(row, unit, is_more_better=is_more_better)
        found.add(side, round(value, digits))
        if side == OURS:
            found.loads.append(round(os.getloadavg()[0], 1))
        return found


def reference_from(environment: dict[str, str]) -> Side | None:
    """Return the reference that the environment names, if it names one. Raises Unusable."""
    url = environment.get("REFERENCE_URL", "")
    if not url or url == ITSELF:
        return None
    if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
        raise Unusable(f"REFERENCE_URL must be an address such as http://127.0.0.1:8585/, not {url!r}.")
    target = Target(url, environment.get("REFERENCE_TOKEN", ""))
    if spec := environment.get("REFERENCE_SPEC"):
        target = Target(url, target.token, spec)
    try:
        pids = tuple(int(pid) for pid in environment.get("REFERENCE_PIDS", "").split(",") if pid)
        for pid in pids:
            psutil.Process(pid)
    except (ValueError, psutil.NoSuchProcess) as error:
        raise Unusable(f"REFERENCE_PIDS must be numbers of running processes: {error}.") from error
    return Side(REFERENCE, target, pids=pids)


async def check(side: Side) -> None:
    """Have the reference build something small. Raises Unusable."""
    try:
        viewer = await look(side.target, f"play-5-0-check-{int(time.time())}")
    except OSError as error:
        raise Unusable(f"The reference at {side.target.base} does not answer: {error}.") from error
    problem = await _problem_of(viewer)
    if problem:
        raise Unusable(
            f"The reference at {side.target.base} did not build: {problem}. REFERENCE_SPEC says how its "
            "builds are named, REFERENCE_TOKEN lets them be asked for."
        )


async def _problem_of(viewer: Viewer) -> str:
    await all_over([viewer], seconds=120)
    return viewer.problem if viewer.over.done() else "no end within two minutes"


@asynccontextmanager
async def opened(environment: dict[str, str]) -> AsyncIterator[list[Side]]:
    """Run this service, and a second instance of it if that is the reference; give all sides. Raises Unusable."""
    reference = reference_from(environment)
    if reference is not None:
        await check(reference)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(services(**MANY))
        sides = [Side(OURS, Target(own.hub.address), own)]
        if environment.get("REFERENCE_URL") == ITSELF:
            second = await stack.enter_async_context(services(**MANY))
            sides.append(Side(REFERENCE, Target(second.hub.address), second))
        elif reference is not None:
            sides.append(reference)
        yield sides


def total(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the differences by process, and all of them together."""
    each = {name: after[name] - before[name] for name in after}
    return each | {"all": sum(each.values())} if each else {}


def lines_of(viewers: Iterable[Viewer]) -> int:
    """Return how many lines all have seen."""
    return sum(viewer.next_line for viewer in viewers)
