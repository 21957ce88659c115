"""Progress and log events from the lines of a builder."""

from datetime import UTC, datetime

from rabbit2docker.consumer.executors.base import BuilderLine
from rabbit2docker.consumer.following.progress import ProgressReader, as_log_events
from rabbit2docker_schemas.events import Phase

TS = datetime(2026, 1, 1, 12, tzinfo=UTC)


def line(n: int, phase: Phase, text: str, progress: dict[str, int] | None = None) -> BuilderLine:
    return BuilderLine(n, TS, phase, text, progress)


def test_each_phase_is_reported_once_with_the_number_of_its_first_line() -> None:
    reader = ProgressReader("b", 1)
    updates = reader.read(
        [line(0, Phase.FETCHING, "a"), line(1, Phase.FETCHING, "b"), line(2, Phase.BUILDING, "c")]
    )
    assert [(item.data.phase, item.line) for item in updates] == [("fetching", 0), ("building", 2)]
    assert reader.read([line(3, Phase.BUILDING, "d")]) == []


def test_only_the_last_step_and_layer_count_of_a_batch_are_reported() -> None:
    updates = ProgressReader("b", 1).read(
        [
            line(0, Phase.BUILDING, "#5 [1/3] FROM x"),
            line(1, Phase.BUILDING, "#6 [2/3] RUN y"),
            line(2, Phase.PUSHING, "p", {"layers_done": 1, "layers_total": 4}),
            line(3, Phase.PUSHING, "p", {"layers_done": 2, "layers_total": 4}),
        ]
    )
    assert [item.data.message for item in updates] == [
        "Building the image",
        "Step 2 of 3: RUN y",
        "Pushing the image",
        "Pushed 2 of 4 layers",
    ]
    assert updates[-1].data.detail.layers_total == 4


def test_no_step_has_a_higher_number_than_there_are_steps_as_with_onbuild_of_a_base_image() -> None:
    [_, update] = ProgressReader("b", 1).read(
        [line(0, Phase.BUILDING, "#7 [made 2/1] RUN <<END (set -e...)")]
    )
    assert update.data.message == "Step 2 of 2: RUN <<END (set -e...)"
    assert (update.data.detail.step, update.data.detail.steps) == (2, 2)


def test_the_same_progress_is_not_reported_again() -> None:
    reader = ProgressReader("b", 1)
    done = {"layers_done": 4, "layers_total": 4}
    assert len(reader.read([line(0, Phase.PUSHING, "p", done)])) == 2
    assert reader.read([line(1, Phase.PUSHING, "p", done)]) == []


def test_lines_are_cut_into_log_events_of_the_allowed_size() -> None:
    lines = [line(n, Phase.BUILDING, "x" * 1000) for n in range(100)]
    events = list(as_log_events("b", 1, lines, max_bytes=8192))
    assert [event.n for event in events] == [
        sum(len(e.lines) for e in events[:i]) for i in range(len(events))
    ]
    assert sum(len(event.lines) for event in events) == 100
    assert max(len(event.lines) for event in events) <= 8
