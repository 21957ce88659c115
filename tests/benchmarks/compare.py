"""Measure this service and a reference in one run, and compare the ratios with those of the last figures.

The sides take turns in every round, so that the machine's mood is the same for all. Pods are simulated, RabbitMQ and
both services of rabbit2docker are real, and each side is measured over HTTP in the same way. Beside them stand floors:
the bare AMQP library, bare calls of the API server, bare `docker build`.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from tests.benchmarks import compare_builds, compare_floors, compare_growth
from tests.benchmarks.compare_sides import ITSELF, Run, Unusable, opened
from tests.benchmarks.comparison import OURS, Drop, Figures, drops, merged, table
from tests.support.crowd import open_files

FIGURES: Final = Path("docs/comparison.json")
OUT: Final = Path(".run/benchmarks/compare.json")
BUILDS: Final = (1, 10, 30)
SIZES: Final = (10, 100, 1000, 3000)
GROUPS: Final = {
    "requests": "request → first event and → pod, one by one",
    "at-once": "request → first event, 60 new builds at once",
    "builds": "CPU, messages and API calls of a small build",
    "lines": f"line → subscriber and → viewer, CPU of a line, last line → end, at {BUILDS} builds",
    "viewers": "one build with 1, 48, 1,000 viewers (or --viewers), and a request beside them",
    "idle": "memory and CPU of services that have nothing to do",
    "engine": "a real build beside bare `docker build`",
    "growth": "memory and CPU at 10, 100, 1,000, 3,000 live builds, and adoption after a restart",
    "starting": "start-up times",
}
HELP: Final = f"""
what is measured (--only):
{chr(10).join(f"  {name:10} {text}" for name, text in GROUPS.items())}

the reference, in the environment:
  REFERENCE_URL    address of any service that speaks BinderHub's HTTP, such as http://127.0.0.1:8585/; without it
                   that column is empty. `{ITSELF}` runs this service a second time: its ratios show the noise.
  REFERENCE_SPEC   its builds, as PROVIDER/SPEC with {{repository}} (an escaped URL), {{name}} and {{commit}};
                   the default is git/{{repository}}/{{commit}}
  REFERENCE_TOKEN  a token to send
  REFERENCE_PIDS   numbers of its processes on this machine, with commas, for CPU and memory

A repository's name says what its builder does: play-LINES-MILLISECONDS-… writes so many lines, so far apart, each
`line N of the build UNIX-TIME`. Builders of the reference have to do the same for the rows about lines.

examples:
  make bench-compare                                        everything, half an hour and more
  make bench-compare ARGS='--quick --only requests'         a few minutes
  REFERENCE_URL=http://127.0.0.1:8585/ make bench-compare   beside another service
  make bench-compare ARGS='--only viewers --viewers 5000'
  make bench-compare ARGS='--took test=640 --took demo=31 --record'   keep the figures, for the docs and the next time

It ends with 1 if a ratio is more than 15 % worse than in {FIGURES}, and with 2 if something cannot be measured.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="make bench-compare",
        description=__doc__,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", action="append", choices=GROUPS, help="measure this alone; repeatable")
    made.add_argument(
        "--quick", action="store_true", help="fewer of everything, one round, at most 100 live builds"
    )
    made.add_argument("--rounds", type=int, help="rounds in which the sides take turns (3; 1 with --quick)")
    made.add_argument(
        "--viewers", type=int, action="append", help="number of viewers of one build; repeatable"
    )
    made.add_argument(
        "--live", type=int, action="append", help="number of live builds for growth; repeatable"
    )
    made.add_argument(
        "--took", action="append", default=[], metavar="NAME=SECONDS", help="a figure from elsewhere"
    )
    made.add_argument("--out", type=Path, default=OUT, help=f"where the JSON goes ({OUT})")
    made.add_argument("--figures", type=Path, default=FIGURES, help=f"the last figures ({FIGURES})")
    made.add_argument("--record", action="store_true", help="keep what was measured among the last figures")
    return made


Step = tuple[str, str, Callable[[], Awaitable[None]]]
"""A group, what is measured, and how."""


def steps(run: Run, chosen: Sequence[str]) -> list[Step]:
    """Return what one round does, in its order: the sides in turns, then the floors."""
    # Who begins changes with each round.
    sides = run.sides if run.turn % 2 == 0 else run.sides[::-1]

    def both(group: str, what: str, measure: Callable[..., Awaitable[None]], *more: int) -> list[Step]:
        return [(group, f"{what}, {side.name}", partial(measure, run, side, *more)) for side in sides]

    everything: list[Step] = [
        *both("idle", "idle", compare_builds.idle),
        *both("requests", "requests", compare_builds.requests),
        ("requests", "requests, API server", partial(compare_floors.api_calls, run)),
        *both("at-once", "requests at once", compare_builds.at_once),
        *both("builds", "small builds", compare_builds.small_builds),
        ("engine", "a real build", partial(compare_floors.real_build, run)),
    ]
    for count in BUILDS[:2] if run.quick else BUILDS:
        everything += both("lines", f"lines of {count}", compare_builds.lines, count)
        everything.append(
            ("lines", f"lines of {count}, aio-pika", partial(compare_floors.amqp_lines, run, count))
        )
    for count in run.viewers:
        everything += both("viewers", f"{count} viewers", compare_builds.viewers, count)
    # Behind what must not be measured on programs that have just started.
    everything.append(("starting", "starting", partial(compare_growth.starting, run)))
    if run.turn == 0:  # takes long, and cannot be done twice: the builds stay
        everything.append(("growth", "growth", partial(compare_growth.growth, run, run.live)))
    return [step for step in everything if step[0] in chosen]


async def measure(run: Run, rounds: int, chosen: Sequence[str], environment: dict[str, str]) -> None:
    """Measure everything that was chosen. Raises Unusable."""
    async with opened(environment) as sides:
        run.sides = sides
        for run.turn in range(rounds):
            todo = steps(run, chosen)
            for number, (_, what, step) in enumerate(todo, 1):
                load = os.getloadavg()[0]
                run.say(
                    f"round {run.turn + 1} of {rounds}, {number} of {len(todo)}: {what} (load {load:.0f}) …"
                )
                await step()
                run.on_figures(run.figures)


def read_figures(path: Path) -> Figures | None:
    """Return the figures in a file, if there is one. Raises Unusable."""
    try:
        return Figures.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        raise Unusable(
            f"{path} does not hold figures of a comparison: {error.errors()[0]['msg']}."
        ) from error


def write_figures(figures: Figures, path: Path) -> None:
    """Write figures into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures.model_dump(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def took(texts: Sequence[str]) -> dict[str, float]:
    """Return durations that were measured elsewhere. Raises Unusable."""
    try:
        return {name: float(seconds) for name, seconds in (text.split("=") for text in texts)}
    except ValueError as error:
        raise Unusable(f"--took takes NAME=SECONDS, such as test=640 ({error}).") from error


def need_files(count: int) -> None:
    """Have so many files and connections. Raises Unusable."""
    if (allowed := open_files(count)) < count:
        raise Unusable(
            f"So many viewers need {count} open files, and {allowed} are allowed here. "
            "Raise the hard limit (`ulimit -Hn`), or name fewer with --viewers."
        )


def new_run(arguments: argparse.Namespace, environment: dict[str, str]) -> Run:
    """Return a run that has found nothing yet but what is given."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    figures = Figures(
        measured=datetime.now(UTC).date().isoformat(),
        machine=machine,
        reference=environment.get("REFERENCE_NAME") or environment.get("REFERENCE_URL", ""),
        parameters={"quick": int(arguments.quick)},
    )
    viewers = tuple(arguments.viewers or ((1, 48) if arguments.quick else (1, 48, 1000)))
    # After each step: a run that is cut short leaves what it has found.
    keep = partial(write_figures, path=arguments.out)
    live = tuple(sorted(arguments.live or (SIZES[:2] if arguments.quick else SIZES)))
    run = Run(figures, arguments.quick, viewers, live, Console(stderr=True).print, keep)
    for name, seconds in took(arguments.took).items():
        run.note(f"make {name}", "s", OURS, seconds, digits=1)
    return run


def show(console: Console, figures: Figures, found: Sequence[Drop], last: Path) -> None:
    """Print the table, and the ratios that got worse."""
    header, rows = table(figures)
    printed = Table(*header, box=None, pad_edge=False)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    if not figures.reference:
        console.print("No reference: REFERENCE_URL names a service that speaks BinderHub's HTTP (--help).")
    if found:
        worse = Table(
            "WORSE THAN THE LAST FIGURES", "BESIDE", "BEFORE", "NOW", "BY", box=None, pad_edge=False
        )
        for drop in found:
            worse.add_row(drop.row, drop.base, str(drop.before), str(drop.now), f"{100 * drop.part:.0f} %")
        console.print(worse)
        console.print(f"These ratios are more than 15 % worse than in {last}. --record keeps the new ones.")


def main() -> int:
    """Measure, write, print, compare; return the exit code."""
    arguments, environment, console = parser().parse_args(), dict(os.environ), Console()
    try:
        before, run = read_figures(arguments.figures), new_run(arguments, environment)
        need_files(2 * max(run.viewers) + 1000)
        rounds = arguments.rounds or (1 if arguments.quick else 3)
        asyncio.run(measure(run, rounds, arguments.only or list(GROUPS), environment))
    except Unusable as problem:
        console.print(f"[red]{problem}[/]", highlight=False)
        return 2
    found = drops(before, run.figures) if before else []
    show(console, run.figures, found, arguments.figures)
    if arguments.record:
        write_figures(merged(before, run.figures), arguments.figures)
    return 1 if found and not arguments.record else 0


if __name__ == "__main__":
    sys.exit(main())
