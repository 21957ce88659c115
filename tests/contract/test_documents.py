"""The committed documents match the models and conform to their standards."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from rabbit2docker_schemas import documents, examples, ids
from rabbit2docker_schemas.cloudevents import Event, UnreadableEvent, read_event, schema_name
from rabbit2docker_schemas.events import Kind, Log, LogLine, Phase
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason

OFFICIAL = Path(__file__).parent / "official" / "asyncapi-3.0.0.json"


def test_the_committed_documents_are_up_to_date() -> None:
    assert documents.outdated() == []


def test_an_outdated_document_is_reported(tmp_path: Path) -> None:
    documents.write(tmp_path)
    assert documents.outdated(tmp_path) == []
    (tmp_path / "json" / "build.gone.v1.json").write_text("{}")
    (tmp_path / documents.ASYNCAPI_FILE).write_text("{}")
    assert documents.outdated(tmp_path) == [documents.ASYNCAPI_FILE, "json/build.gone.v1.json"]


def test_the_asyncapi_document_conforms_to_the_official_schema() -> None:
    validator = Draft7Validator(json.loads(OFFICIAL.read_text()))
    assert [error.message for error in validator.iter_errors(documents.asyncapi())] == []


def test_the_official_asyncapi_schema_detects_an_error() -> None:
    validator = Draft7Validator(json.loads(OFFICIAL.read_text()))
    document = documents.asyncapi()
    document["operations"] = {"broken": {"action": "shout"}}
    assert list(validator.iter_errors(document))


def test_each_message_schema_is_a_valid_json_schema() -> None:
    for schema in documents.json_schemas().values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("kind", Kind)
def test_each_example_event_fits_its_schema_and_survives_a_round_trip(kind: Kind) -> None:
    event = examples.EVENTS[kind]
    schema = documents.json_schemas()[schema_name(event.headers()["ce-type"])]
    Draft202012Validator(schema).validate(json.loads(event.body()))
    assert read_event(event.headers(), event.body()) == event


def test_every_failure_reason_has_a_category_and_a_hint() -> None:
    assert CATEGORY_OF.keys() == HINT_OF.keys() == set(FailureReason)


def test_unknown_fields_and_phases_of_a_later_version_are_accepted() -> None:
    event = examples.EVENTS[Kind.PROGRESS]
    body = {**json.loads(event.body()), "phase": "polishing", "colour": "green"}
    read = read_event(event.headers(), json.dumps(body).encode())
    assert read.data.phase == "polishing"  # type: ignore[union-attr]


@pytest.mark.parametrize("headers", [{}, {"ce-type": "io.rabbit2docker.build.sung.v1"}, {"ce-type": b"\xff"}])
def test_a_message_that_is_not_an_event_is_unreadable(headers: dict[str, object]) -> None:
    with pytest.raises(UnreadableEvent):
        read_event(headers, b"{}")


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(0, 10**9))
def test_a_log_line_with_any_text_survives_a_round_trip(texts: list[str], n: int) -> None:
    build_id = ids.build_id_of("default", "r")
    moment = examples.EVENTS[Kind.LOG].time
    texts = [text.encode(errors="replace").decode() for text in texts]
    lines = [LogLine(phase=Phase.BUILDING, text=text, ts=moment) for text in texts]
    event = Event(
        ids.lines_event_id(build_id, 1, n, n + len(lines) - 1, "log"),
        "default",
        moment,
        Log(build_id=build_id, attempt=1, n=n, lines=lines),
    )
    assert read_event(event.headers(), event.body()) == event
