"""Ratios of a comparison, its table, and what counts as worse."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from docs.generate import comparison

from tests.benchmarks import compare
from tests.benchmarks.compare_sides import Run, Side, Unusable, reference_from
from tests.benchmarks.comparison import OURS, REFERENCE, Figures, Row, cell, drops, merged, number, table
from tests.benchmarks.reference import Target


def figures(*, is_more_better: bool = False, name: str = "floor", **sides: list[float]) -> Figures:
    named = {name if side == "floor" else side: values for side, values in sides.items()}
    row = Row(name="a line", unit="ms", is_more_better=is_more_better, sides=named, loads=[1.4, 8.6])
    return Figures(reference="another", rows=[row])


class TestRatio:
    def test_it_is_taken_round_by_round_so_that_a_bad_moment_counts_for_both(self) -> None:
        ratio = figures(ours=[10, 40, 12], reference=[20, 80, 20]).rows[0].ratio(REFERENCE)
        assert ratio is not None
        assert (ratio.middle, ratio.low, ratio.high) == (0.5, 0.5, 0.6)
        assert str(ratio) == "0.50× (0.50–0.60)"

    def test_there_is_none_without_the_other_side(self) -> None:
        assert figures(ours=[10]).rows[0].ratio(REFERENCE) is None
        assert figures(reference=[10]).rows[0].ratio(REFERENCE) is None
        assert figures(ours=[10], reference=[0]).rows[0].ratio(REFERENCE) is None

    def test_a_round_that_one_side_lacks_does_not_count(self) -> None:
        ratio = figures(ours=[10, 20, 30], reference=[10, 10]).rows[0].ratio(REFERENCE)
        assert ratio is not None
        assert (ratio.low, ratio.high) == (1, 2)


class TestDrops:
    @pytest.mark.parametrize(("now", "is_worse"), [(11.4, False), (11.6, True), (5.0, False)])
    def test_a_ratio_may_get_fifteen_percent_worse(self, now: float, is_worse: bool) -> None:
        found = drops(figures(ours=[10], floor=[20]), figures(ours=[now], floor=[20]))
        assert [drop.base for drop in found] == (["floor"] if is_worse else [])

    @pytest.mark.parametrize(("now", "is_worse"), [(90, False), (80, True), (130, False)])
    def test_of_some_figures_less_is_worse(self, now: float, is_worse: bool) -> None:
        before = figures(ours=[100], reference=[100], is_more_better=True)
        found = drops(before, figures(ours=[now], reference=[100], is_more_better=True))
        assert bool(found) == is_worse

    def test_a_slower_machine_is_no_drop(self) -> None:
        assert not drops(figures(ours=[10], reference=[20]), figures(ours=[100], reference=[200]))

    def test_the_worst_comes_first_and_the_part_is_said(self) -> None:
        before = figures(ours=[10], reference=[10], floor=[10])
        found = drops(before, figures(ours=[20], reference=[10], floor=[16]))
        assert [(drop.base, drop.part) for drop in found] == [("reference", 1.0), ("floor", 0.25)]

    def test_a_run_without_a_reference_is_compared_by_its_floors_alone(self) -> None:
        before = figures(ours=[10], reference=[10], floor=[10])
        now = figures(ours=[20], floor=[10])
        now.reference = ""
        assert [drop.base for drop in drops(before, now)] == ["floor"]

    def test_rows_that_only_one_run_has_are_not_compared(self) -> None:
        assert not drops(Figures(), figures(ours=[10], reference=[1]))
        assert not drops(figures(ours=[10], reference=[1]), Figures())


class TestTable:
    def test_a_row_has_both_sides_the_floor_ratios_spreads_and_the_load(self) -> None:
        header, [row] = table(figures(ours=[10, 12], reference=[20, 20], floor=[5, 5], name="aio-pika"))
        assert dict(zip(header, row, strict=True)) == {
            "Figure": "a line",
            "Here": "11 (10–12) ms",
            "Reference": "20 ms",
            "Here to reference": "0.55× (0.50–0.60)",
            "Floor": "aio-pika: 5 ms",
            "Here to floor": "2.20× (2.00–2.40)",
            "Load": "1–9",
        }

    def test_a_missing_reference_is_said_in_the_header_of_its_empty_column(self) -> None:
        found = figures(ours=[10])
        found.reference = ""
        header, [row] = table(found)
        assert (header[2], row[2:4]) == ("Reference (not measured)", ("", ""))

    def test_a_figure_that_the_reference_does_not_show_is_empty(self) -> None:
        _, [row] = table(figures(ours=[10]))
        assert row[2:4] == ("", "")

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.0123, "0.012"), (0.5, "0.5"), (4.567, "4.57"), (45.67, "45.7"), (1234.5, "1234")],
    )
    def test_numbers_have_three_digits(self, value: float, text: str) -> None:
        assert number(value) == text

    def test_a_side_without_figures_has_no_cell(self) -> None:
        assert cell(Row(name="a"), OURS) == ""


class TestFigures:
    def test_a_file_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        written, file = figures(ours=[1.5]), tmp_path / "a" / "figures.json"
        compare.write_figures(written, file)
        assert compare.read_figures(file) == written

    def test_rows_that_were_not_measured_again_are_kept(self) -> None:
        before, now = figures(ours=[1]), figures(ours=[2])
        before.rows.append(Row(name="a build", sides={OURS: [3]}))
        found = merged(before, now)
        assert [(row.name, row.sides[OURS]) for row in found.rows] == [("a line", [2]), ("a build", [3])]
        assert merged(None, now) == now

    def test_without_a_file_nothing_is_compared(self, tmp_path: Path) -> None:
        assert compare.read_figures(tmp_path / "none.json") is None

    def test_a_file_of_another_kind_is_refused_in_words(self, tmp_path: Path) -> None:
        file = tmp_path / "figures.json"
        file.write_text('{"results": {}}')
        with pytest.raises(Unusable, match="does not hold figures"):
            compare.read_figures(file)

    def test_the_documentation_has_a_row_for_each_figure(self) -> None:
        text = comparison(figures(ours=[10], reference=[20]))
        assert "| a line | 10 ms | 20 ms | 0.50× |" in text


class TestCommandLine:
    def arguments(self, *given: str) -> Namespace:
        return compare.parser().parse_args(given)

    def test_durations_from_elsewhere_become_rows(self) -> None:
        run = compare.new_run(self.arguments("--took", "test=640", "--took", "demo=31.5"), {})
        assert {row.name: row.sides[OURS] for row in run.figures.rows} == {
            "make test": [640.0],
            "make demo": [31.5],
        }

    def test_durations_of_another_form_are_refused_in_words(self) -> None:
        with pytest.raises(Unusable, match="NAME=SECONDS"):
            compare.took(["test"])

    def test_the_help_says_what_is_measured_and_how_a_reference_is_named(self) -> None:
        text = compare.parser().format_help()
        for word in ("REFERENCE_URL", "REFERENCE_SPEC", "REFERENCE_PIDS", *compare.GROUPS):
            assert word in text

    def test_sides_take_turns_and_the_one_that_begins_changes(self) -> None:
        run = Run(Figures(), sides=[_side(OURS), _side(REFERENCE)])
        orders = []
        for run.turn in (0, 1):
            orders.append([what for group, what, _ in compare.steps(run, ["at-once"]) if group])
        assert orders == [
            ["requests at once, ours", "requests at once, reference"],
            ["requests at once, reference", "requests at once, ours"],
        ]

    def test_a_quick_run_has_the_same_groups_and_fewer_steps(self) -> None:
        sides = [_side(OURS)]
        whole = compare.steps(Run(Figures(), sides=sides), list(compare.GROUPS))
        quick = compare.steps(Run(Figures(), quick=True, viewers=(1,), sides=sides), list(compare.GROUPS))
        assert {step[0] for step in whole} == {step[0] for step in quick} == set(compare.GROUPS)
        assert len(quick) < len(whole)

    def test_too_few_open_files_are_said_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compare, "open_files", lambda count: 1024)
        with pytest.raises(Unusable, match="need 11000 open files, and 1024 are allowed"):
            compare.need_files(11_000)


def _side(name: str) -> Side:
    return Side(name, Target("http://127.0.0.1:1/"))


class TestReference:
    def test_without_an_address_there_is_none(self) -> None:
        assert reference_from({}) is None

    def test_an_address_with_a_token_a_form_of_specs_and_processes(self) -> None:
        spec = "gh/{name}/{commit}"
        named = {"REFERENCE_URL": "http://x:1/b/", "REFERENCE_TOKEN": "t", "REFERENCE_SPEC": spec}
        side = reference_from({**named, "REFERENCE_PIDS": str(1)})
        assert side is not None
        assert (side.target.token, side.pids) == ("t", (1,))
        assert side.target.path("a").startswith("/b/build/gh/a/")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"REFERENCE_URL": "https://x/"},
            {"REFERENCE_URL": "x:8585"},
            {"REFERENCE_URL": "http://x/", "REFERENCE_PIDS": "a"},
            {"REFERENCE_URL": "http://x/", "REFERENCE_PIDS": "999999999"},
        ],
    )
    def test_what_cannot_be_used_is_said_in_words(self, wrong: dict[str, str]) -> None:
        with pytest.raises(Unusable, match="REFERENCE_"):
            reference_from(wrong)


class TestMain:
    @pytest.fixture
    def last(self, tmp_path: Path) -> Path:
        """Return a file of last figures, in which a line takes as long as one of a bare library."""
        compare.write_figures(figures(ours=[10], floor=[10]), tmp_path / "last.json")
        return tmp_path / "last.json"

    def measured(self, monkeypatch: pytest.MonkeyPatch, last: Path, ours: float, *more: str) -> int:
        """Run the program on a machine where a line takes so long; return its exit code."""

        async def measure(run: Run, rounds: int, chosen: object, environment: object) -> None:
            run.note("a line", "ms", OURS, ours)
            run.note("a line", "ms", "floor", 10)

        monkeypatch.setattr(compare, "measure", measure)
        monkeypatch.setattr(compare, "open_files", lambda count: count)
        monkeypatch.setattr(sys, "argv", ["compare", f"--figures={last}", f"--out={last}.out", *more])
        return compare.main()

    @pytest.mark.parametrize(("ours", "code"), [(11, 0), (12, 1)])
    def test_a_worse_ratio_ends_it_with_one(
        self, monkeypatch: pytest.MonkeyPatch, last: Path, ours: float, code: int
    ) -> None:
        assert self.measured(monkeypatch, last, ours) == code

    def test_the_worse_rows_are_printed(
        self, monkeypatch: pytest.MonkeyPatch, last: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.measured(monkeypatch, last, 20)
        printed = capsys.readouterr().out
        assert "100 %" in printed
        assert "REFERENCE_URL names a service" in " ".join(printed.split())

    def test_recorded_figures_are_the_next_last_ones(
        self, monkeypatch: pytest.MonkeyPatch, last: Path
    ) -> None:
        assert self.measured(monkeypatch, last, 20, "--record") == 0
        assert self.measured(monkeypatch, last, 20) == 0

    def test_what_cannot_be_measured_ends_it_with_two(
        self, monkeypatch: pytest.MonkeyPatch, last: Path
    ) -> None:
        assert self.measured(monkeypatch, last, 1, "--took=test") == 2
