"""The builder's output, its lines on their way to events, and the records of builds."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rabbit2docker.consumer.builder.builder import EXIT_CODES, PushOutput, judge_push
from rabbit2docker.consumer.executors.base import (
    Attempt,
    AttemptState,
    AttemptStatus,
    StoredOutcome,
)
from rabbit2docker.consumer.executors.builder_io import parse_line
from rabbit2docker.consumer.executors.kubernetes import manifest
from rabbit2docker.consumer.executors.kubernetes.models import Pod
from rabbit2docker.consumer.executors.kubernetes.pod_status import ObservationContext, observe_pod
from rabbit2docker.consumer.executors.kubernetes.pod_status import read_result as read_message
from rabbit2docker.consumer.executors.local.state_directory import (
    RESULT,
    SPEC,
    STATUS,
    StateDirectory,
    read_result,
)
from rabbit2docker.consumer.following.outcome import Evidence, ImageCheck, decide, restored, stored
from rabbit2docker.consumer.following.progress import ProgressReader, as_log_events
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Kind
from rabbit2docker_schemas.ids import lines_event_id
from rabbit2docker_schemas.reasons import CATEGORY_OF, FailureReason
from tests import unit
from tests.corpus import cases, output_of
from tests.fuzz.inputs import bodies, byte_variants, fuzzed, json_variants
from tests.support.records import NOW, a_spec
from tests.unit.test_failure_corpus import judged_build

RECORDINGS = [output_of(name).read_bytes() for name in list(cases())[::4]]
LINE = {
    "n": 3,
    "ts": "2026-01-31T12:00:00.123456+00:00",
    "phase": "building",
    "text": "#5 [2/3] RUN make",
    "progress": {"step": 2, "steps": 3},
    "clipped": False,
}
RESULTS = [
    {"reason": "ok", "exit_code": 0, "digest": "sha256:1", "timings": {"building": 3.5}, "lines": 7},
    {"reason": "build_step_failed", "exit_code": 70, "message": "No.", "failed_step": "RUN make"},
]
STATUSES = [
    json.loads(AttemptStatus(requests={"r": "d"}, cancelled_by="ada").model_dump_json()),
    {"requests": {}, "cancelled_by": "the service", "cancel_reason": "timeout", "cancel_message": "Late."},
    {"outcome": {"kind": "completed", "data": {"build_id": "b"}}, "reported": False},
]
EVIDENCE = Evidence(image_check=ImageCheck.UNKNOWN, tail=("a line",), lines=1, attempts_allowed=2)


def recorded_lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").split("\n")[:400]


@fuzzed(0.5)
@given(st.lists(byte_variants([line for data in RECORDINGS for line in data.split(b"\n")]), max_size=30))
def test_any_output_of_repo2docker_gets_a_verdict(lines: list[bytes]) -> None:
    verdict = judged_build([line.decode(errors="replace") for line in lines])
    assert verdict.reason in EXIT_CODES
    assert CATEGORY_OF[FailureReason(verdict.reason)]
    assert len(verdict.message) < 2000


@fuzzed(0.5)
@given(byte_variants([data for data in RECORDINGS if len(data) < 4000]))
def test_any_output_of_docker_push_gets_a_verdict(data: bytes) -> None:
    output = PushOutput(lambda text, progress: None)
    for line in recorded_lines(data):
        output.on_line(line)
    verdict = judge_push(output.lines, "registry.example.org/image:1", output.is_under_way)
    assert verdict.reason in EXIT_CODES


@fuzzed()
@given(st.lists(bodies([LINE]), max_size=4))
def test_any_line_of_the_builder_becomes_an_event_or_is_left_out(raw: list[bytes]) -> None:
    lines = [line for line in map(parse_line, raw) if line]
    for update in ProgressReader("b", 1).read(lines):
        assert update.data.model_dump_json()
    for log in as_log_events("b", 1, lines, max_bytes=1000):
        event_id = lines_event_id("b", 1, log.n, log.n + len(log.lines) - 1, Kind.LOG)
        assert Event(event_id, "default", NOW, log).body()


def outcome_of(attempt: Attempt) -> None:
    """Decide the outcome, store it, and read it again."""
    kept = stored(decide(attempt, EVIDENCE))
    again = StoredOutcome.model_validate_json(kept.model_dump_json())
    assert stored(restored(again)) == kept


@fuzzed(0.5)
@given(bodies([json.loads(a_spec().model_dump_json())]), bodies(STATUSES), bodies(RESULTS))
def test_any_record_on_disk_is_read_or_left_alone(
    tmp_path_factory: pytest.TempPathFactory, spec: bytes, status: bytes, result: bytes
) -> None:
    directory = StateDirectory(tmp_path_factory.mktemp("state"))
    folder = directory.attempts / a_spec().name
    folder.mkdir(parents=True)
    for name, content in ((SPEC, spec), (STATUS, status), (RESULT, result)):
        (folder / name).write_bytes(content)
    found = directory.load(a_spec().name)
    read, ended_at = read_result(folder)
    if found:
        outcome_of(
            Attempt(
                spec=found.spec,
                status=found.status,
                state=AttemptState.ENDED,
                result=read,
                started_at=NOW,
                ended_at=ended_at,
            )
        )


PODS = [
    json.loads(path.read_text("utf-8"))["pod"]
    for path in sorted((Path(unit.__file__).parent / "pods").glob("*.json"))
]


@fuzzed(0.5)
@given(json_variants(PODS), bodies(STATUSES), bodies(RESULTS))
def test_any_pod_is_observed_or_refused(pod: dict[str, Any], status: bytes, result: bytes) -> None:
    metadata = pod.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("annotations"), dict):
        metadata["annotations"][manifest.STATUS] = status.decode(errors="replace")
    try:
        found = Pod.model_validate(pod)
    except ValidationError:
        return
    context = ObservationContext(now=NOW, pending_seconds=600)
    observation = observe_pod(found, context)
    spec = manifest.read_spec(found) or a_spec()
    outcome_of(
        Attempt(
            spec=spec,
            status=manifest.read_status(found),
            state=observation.state,
            result=read_message(result.decode(errors="replace")),
            external_end=observation.external_end,
            pending_deadline=observation.pending_deadline,
        )
    )
