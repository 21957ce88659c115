"""Figures of this service beside those of a reference and of floors: ratios with spread, a table, and what got worse. No I/O.

Each row was measured in several rounds, in which all sides took turns, so that the machine's mood is the same for all.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict

OURS: Final = "ours"
REFERENCE: Final = "reference"
DROP: Final = 0.15
"""A ratio that gets worse by more than this part is said, and fails the run."""


class Ratio(BaseModel):
    """This service's figure as a multiple of another's: the median of the rounds, and the least and greatest."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it as in the table."""
        spread = f" ({self.low:.2f}–{self.high:.2f})" if self.low != self.high else ""
        return f"{self.middle:.2f}×{spread}"


class Row(BaseModel):
    """One figure, by side and round."""

    model_config = ConfigDict(extra="forbid")

    name: str
    unit: str = ""
    is_more_better: bool = False
    sides: dict[str, list[float]] = {}
    loads: list[float] = []
    """The machine's load in each round: one minute's average of what runs or waits for a core."""

    def add(self, side: str, value: float) -> None:
        """Add a round's value of one side."""
        self.sides.setdefault(side, []).append(value)

    def ratio(self, base: str) -> Ratio | None:
        """Return ours to another side's, round by round; None where either is missing."""
        pairs = zip(self.sides.get(OURS, ()), self.sides.get(base, ()), strict=False)
        ratios = [ours / other for ours, other in pairs if other]
        if not ratios:
            return None
        return Ratio(middle=median(ratios), low=min(ratios), high=max(ratios))

    @property
    def bases(self) -> list[str]:
        """Return the sides that ours is compared with."""
        return [side for side in self.sides if side != OURS]


class Figures(BaseModel):
    """All figures of one run."""

    model_config = ConfigDict(extra="forbid")

    measured: str = ""
    """The date."""
    machine: dict[str, str | int | None] = {}
    reference: str = ""
    """What the reference was; empty without one."""
    parameters: dict[str, int | float | str] = {}
    rows: list[Row] = []

    def row(self, name: str, unit: str = "", *, is_more_better: bool = False) -> Row:
        """Return the row of that name, a new one if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        self.rows.append(Row(name=name, unit=unit, is_more_better=is_more_better))
        return self.rows[-1]


def merged(before: Figures | None, now: Figures) -> Figures:
    """Return the figures of a run, and behind them rows that only an earlier one has."""
    new = {row.name for row in now.rows}
    kept = [row for row in before.rows if row.name not in new] if before is not None else []
    return now.model_copy(update={"rows": [*now.rows, *kept]})


class Drop(BaseModel):
    """A ratio that has got worse."""

    row: str
    base: str
    before: Ratio
    now: Ratio
    part: float
    """By how much: 0.2 is a fifth."""


def drops(before: Figures, now: Figures, *, allowed: float = DROP) -> list[Drop]:
    """Return the ratios of rows in both runs that got worse by more than is allowed, the worst first."""
    known = {row.name: row for row in before.rows}
    found = [drop for row in now.rows if row.name in known for drop in _drops(known[row.name], row)]
    return sorted((drop for drop in found if drop.part > allowed), key=lambda drop: -drop.part)


def _drops(before: Row, now: Row) -> Iterable[Drop]:
    for base in now.bases:
        old, new = before.ratio(base), now.ratio(base)
        if old is None or new is None or not old.middle:
            continue
        change = new.middle / old.middle
        if now.is_more_better:
            change = 1 / change if change else float("inf")
        yield Drop(row=now.name, base=base, before=old, now=new, part=change - 1)


def cell(row: Row, side: str) -> str:
    """Return a side's figure with its spread; empty where there is none."""
    values = row.sides.get(side)
    if not values:
        return ""
    spread = f" ({number(min(values))}–{number(max(values))})" if min(values) != max(values) else ""
    return f"{number(median(values))}{spread} {row.unit}".strip()


def number(value: float) -> str:
    """Return a number with three digits at most after which nothing is known."""
    if value == 0:
        return "0"
    digits = max(0, 2 - len(str(int(abs(value)))) + (abs(value) < 1) + 1)
    text = f"{value:.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def floors(rows: Sequence[Row]) -> list[str]:
    """Return the sides that are neither ours nor the reference, in the order of their first rows."""
    return list(dict.fromkeys(base for row in rows for base in row.bases if base != REFERENCE))


def table(figures: Figures) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the header and the rows of the table of a run."""
    reference = "Reference" if figures.reference else "Reference (not measured)"
    header = ["Figure", "Here", reference, "Here to reference", "Floor", "Here to floor", "Load"]
    return header, [_cells(row) for row in figures.rows]


def _cells(row: Row) -> tuple[str, ...]:
    low = floors([row])
    return (
        row.name,
        cell(row, OURS),
        cell(row, REFERENCE),
        str(row.ratio(REFERENCE) or ""),
        "; ".join(f"{base}: {cell(row, base)}" for base in low),
        "; ".join(str(row.ratio(base) or "") for base in low),
        _loads(row.loads),
    )


def _loads(loads: Sequence[float]) -> str:
    if not loads:
        return ""
    low, high = f"{min(loads):.0f}", f"{max(loads):.0f}"
    return low if low == high else f"{low}–{high}"
