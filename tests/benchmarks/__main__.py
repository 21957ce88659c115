"""`make bench` and `make bench-cluster`: measure, write a JSON file for each benchmark, print a table. Goals missed are said, not failed."""

import argparse
import asyncio
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    cost,
    engine_disk,
    fairness,
    history,
    history_full,
    hub_first,
    hub_lines,
    lines,
    many_pods,
    memory,
    pod_calls,
    pod_lines,
    pods,
    publishing,
    replay,
    requests,
)

# The service for a JupyterHub, with builds that are played.
HUB = {"hub_first": hub_first, "hub_lines": hub_lines}
BENCHMARKS = {
    "local": {
        "publishing": publishing,
        "requests": requests,
        "lines": lines,
        "memory": memory,
        "cost": cost,
        "history": history,
        **HUB,
    },
    "hub": HUB,
    # Takes 5 GB of the broker's disk for as long as it runs.
    "history": {"history_full": history_full},
    # 200 builds on an engine with a disk of 450 MB, which takes a quarter of an hour; needs root.
    "engine_disk": {"engine_disk": engine_disk},
    # A million requests, which take minutes to publish.
    "replay": {"replay": replay},
    # Three times 500 requests that wait while a few are built.
    "fairness": {"fairness": fairness},
    # Need a cluster: `make bench-cluster`.
    "kubernetes": {"pods": pods, "pod_calls": pod_calls, "pod_lines": pod_lines, "many_pods": many_pods},
}


def main() -> None:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("executor", nargs="?", choices=BENCHMARKS, default="local", help="what is measured")
    parser.add_argument("--only", action="append", help="one of its benchmarks; repeatable")
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks"), help="where the JSON files go")
    arguments = parser.parse_args()
    benchmarks = BENCHMARKS[arguments.executor]
    if unknown := set(arguments.only or ()) - benchmarks.keys():
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    console = Console()
    table = Table("BENCHMARK", "WHAT", "GOAL", "FOUND", "", box=None, pad_edge=False)
    for name in arguments.only or benchmarks:
        console.print(f"Measuring {name} …")
        report = asyncio.run(benchmarks[name].measure())
        console.print(f"  {report.write(arguments.out)}")
        for goal in report.goals:
            verdict = "[green]met[/]" if goal.is_met else "[red]missed[/]"
            table.add_row(name, goal.what, f"{goal.goal:g}", f"{goal.found:g}", verdict)
    console.print(table)


if __name__ == "__main__":
    main()
