"""`make bench`: measures, writes a JSON file for each benchmark, prints a table. Goals missed are said, not failed."""

import argparse
import asyncio
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import lines, memory, publishing, requests

BENCHMARKS = {"publishing": publishing, "requests": requests, "lines": lines, "memory": memory}


def main() -> None:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="one of them; repeatable")
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks"), help="where the JSON files go")
    arguments = parser.parse_args()
    console = Console()
    table = Table("BENCHMARK", "WHAT", "GOAL", "FOUND", "", box=None, pad_edge=False)
    for name in arguments.only or BENCHMARKS:
        console.print(f"Measuring {name} …")
        report = asyncio.run(BENCHMARKS[name].measure())
        console.print(f"  {report.write(arguments.out)}")
        for goal in report.goals:
            verdict = "[green]met[/]" if goal.is_met else "[red]missed[/]"
            table.add_row(name, goal.what, f"{goal.goal:g}", f"{goal.found:g}", verdict)
    console.print(table)


if __name__ == "__main__":
    main()
