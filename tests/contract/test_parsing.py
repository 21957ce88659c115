"""Any bytes are parsed into a valid message or refused with a sentence for their sender."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from rabbit2docker_schemas import documents
from rabbit2docker_schemas.parsing import MAX_BYTES, STRUCTURED, InvalidMessage, read_cancel, read_request
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE, BuildRequest
from rabbit2docker_schemas.validation_messages import ignored_fields

GOOD: dict[str, Any] = {"provider": "gh", "spec": "binder-examples/requirements/HEAD"}


def refusal_to(body: bytes, **envelope: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        read_request(body, **envelope)
    return caught.value


def refusal_of(**fields: Any) -> InvalidMessage:
    return refusal_to(json.dumps(GOOD | fields).encode())


def structured(**attributes: Any) -> bytes:
    event = {"specversion": "1.0", "id": "event-1", "source": "/hub", "type": REQUEST_TYPE, "data": GOOD}
    return json.dumps(event | attributes).encode()


def test_two_fields_are_enough_for_a_request() -> None:
    request = read_request(json.dumps(GOOD).encode())
    assert (request.provider, request.spec, request.request_id) == ("gh", GOOD["spec"], None)


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        (b"", RejectReason.INVALID_JSON, "The body is empty; it must be a JSON object."),
        (b'{"provider": gh}', RejectReason.INVALID_JSON, "expecting value at character 14"),
        (b"{'provider': 'gh'}", RejectReason.INVALID_JSON, "in double quotes at character 2"),
        (b'{"provider":"gh","spec":"a', RejectReason.INVALID_JSON, "unterminated string at character 25"),
        (b"[]", RejectReason.INVALID_REQUEST, "The body must be a JSON object, not an array."),
        (b'"gh"', RejectReason.INVALID_REQUEST, "not a string"),
        (b"null", RejectReason.INVALID_REQUEST, "not null"),
        (b"\xff\xfe{\x00", RejectReason.INVALID_JSON, "byte 1 is not UTF-8"),
        (b'{"spec": NaN}', RejectReason.INVALID_JSON, "NaN is not a JSON value"),
        (b'{"spec": -Infinity}', RejectReason.INVALID_JSON, "-Infinity is not a JSON value"),
        (b'{"spec": 1e999}', RejectReason.INVALID_JSON, "1e999 in the body is too large"),
        (b'{"spec": ' + b"9" * 6000 + b"}", RejectReason.INVALID_JSON, "a number of 6,000 digits"),
        (b'{"spec": "a", "spec": "b"}', RejectReason.INVALID_JSON, "has the name `spec` twice"),
        (b'{"spec": "\\ud800"}', RejectReason.INVALID_JSON, "half a character"),
        (b"[" * 60_000, RejectReason.INVALID_JSON, "nested more than 16 levels deep"),
        (b"[" * 20 + b"]" * 20, RejectReason.INVALID_JSON, "nested more than 16 levels deep"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused_with_the_cause(
    body: bytes, reason: RejectReason, message: str
) -> None:
    error = refusal_to(body)
    assert error.reason == reason
    assert message in error.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timeout_seconds": 5}, "`timeout_seconds` must be at least 10."),
        ({"timeout_seconds": 10**19}, "`timeout_seconds` must be at most 86400."),
        ({"timeout_seconds": "60"}, "`timeout_seconds` must be a whole number, not a string."),
        ({"timeout_seconds": 60.5}, "`timeout_seconds` must be a whole number, not one with a fraction."),
        ({"timeout_seconds": True}, "`timeout_seconds` must be a whole number, not true or false."),
        ({"force": "yes"}, '`force` must be true, false or "cache".'),
        ({"force": 1}, '`force` must be true, false or "cache".'),
        ({"build_args": {"NB_UID": "0", "A": "b"}}, "`build_args` must not have NB_UID: the operator sets"),
        ({"spec": ""}, "`spec` must not be empty or contain control characters."),
        ({"spec": "a/b\n"}, "`spec` must not be empty or contain control characters."),
        ({"spec": "x" * 5000}, "`spec` must have at most 4096 characters."),
        ({"provider": "GitHub"}, "`provider` must be the short name of a provider, such as `gh` or `git`."),
        (
            {"request_id": "a.b"},
            "`request_id` must have 1 to 128 letters, digits, `-` or `_` and no other characters.",
        ),
        ({"labels": None}, "`labels` must be an object, not null."),
        ({"labels": {"a": 1}}, "`labels.a` must be a string, not a number."),
        ({"labels": {"-a": "1"}}, "`labels` has invalid label names: -a."),
        ({"build_args": {"A B": "1"}}, "`build_args` has invalid build argument names: A B."),
        ({"build_args": {"A\n": "1"}}, "has invalid build argument names"),
        ({"build_args": {f"a{n}": "" for n in range(51)}}, "`build_args` must have at most 50 entries."),
        ({"subdir": "../up"}, "`subdir` must be a relative path inside the repository."),
        ({"subdir": "/etc"}, "`subdir` must be a relative path inside the repository."),
        ({"subdir": "--flag"}, "`subdir` must be a relative path inside the repository."),
        ({"appendix": "RUN\0"}, "`appendix` holds a null character"),
        ({"build_args": {"A": "\0"}}, "`build_args` holds a null character"),
        ({"not_after": 5}, "`not_after` must be a time with a time zone"),
        ({"not_after": "2026-01-31T12:00:00"}, "`not_after` must be a time with a time zone"),
    ],
)
def test_an_invalid_field_is_named_with_the_expected_value(fields: dict[str, Any], message: str) -> None:
    error = refusal_of(**fields)
    assert error.reason == RejectReason.INVALID_REQUEST
    assert message in error.message


class TestMessagesOfLaterVersions:
    def test_an_unknown_field_is_ignored_and_named(self) -> None:
        request = read_request(json.dumps(GOOD | {"subdri": "x", "colour": {"of": ["wall"]}}).encode())
        assert (request.provider, request.subdir) == ("gh", None)
        assert request.unknown_fields == ("colour", "subdri")
        assert ignored_fields(request.unknown_fields, BuildRequest.model_fields) == (
            "Ignored: unknown field `colour`, unknown field `subdri`; did you mean `subdir`?"
        )
        cancel = read_cancel(b'{"request_id": "r1", "spare_everyone": true}')
        assert (cancel.request_id, cancel.unknown_fields) == ("r1", ("spare_everyone",))

    def test_a_field_that_was_added_changes_the_digest_only_where_it_is_used(self) -> None:
        class Later(BuildRequest):
            colour: str = "white"

        plain, red = json.dumps(GOOD).encode(), json.dumps(GOOD | {"colour": "red"}).encode()
        for body in (plain, red):
            assert read_request(body).digest() == Later.model_validate_json(body).digest()
        assert read_request(plain).digest() != read_request(red).digest()

    def test_a_publisher_that_misspells_a_field_gets_an_error(self) -> None:
        with pytest.raises(ValidationError, match="subdri"):
            BuildRequest.model_validate(GOOD | {"subdri": "x"})

    def test_the_published_schemas_pass_them(self) -> None:
        schemas = documents.json_schemas()
        for name, message in (
            ("build.requested.v1", GOOD | {"colour": "red"}),
            ("build.cancel.v1", {"build_id": "b1", "colour": "red"}),
        ):
            Draft202012Validator(schemas[name]).validate(message)


def test_several_problems_are_reported_together() -> None:
    error = refusal_to(b'{"provider": "gh", "sepc": "a/b/c"}')
    assert error.message.startswith(
        "2 problems: (1) `spec` is missing, (2) unknown field `sepc`; did you mean `spec`? Known fields: "
    )


def test_a_body_that_is_too_large_is_refused_with_both_sizes() -> None:
    error = refusal_to(b'{"request_id": "big", "spec": "' + b"x" * MAX_BYTES, max_bytes=MAX_BYTES)
    assert error.reason == RejectReason.TOO_LARGE
    assert "65,567 bytes" in error.message
    assert "65,536" in error.message
    assert error.request_id == "big"


def test_a_byte_order_mark_is_accepted() -> None:
    assert read_request(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).provider == "gh"


class TestRequestIdOfAnInvalidMessage:
    def test_an_invalid_field_leaves_the_request_id_known(self) -> None:
        assert refusal_of(request_id="mine", force=1).request_id == "mine"

    def test_an_invalid_request_id_is_passed_on_unchanged(self) -> None:
        assert refusal_of(request_id="not mine!").request_id == "not mine!"

    def test_broken_json_is_searched_for_the_request_id(self) -> None:
        assert refusal_to(b'{"request_id": "mine", "spec": oops').request_id == "mine"

    def test_broken_json_with_two_candidates_has_no_request_id(self) -> None:
        assert refusal_to(b'{"request_id": "mine", "labels": {"request_id": "other"} oops').request_id is None


class TestEnvelopes:
    @pytest.mark.parametrize(
        "content_type",
        [None, "", "application/json", "Application/JSON; charset=utf-8", "text/plain", "application/x+json"],
    )
    def test_json_and_default_content_types_are_accepted(self, content_type: str | None) -> None:
        assert read_request(json.dumps(GOOD).encode(), content_type=content_type).provider == "gh"

    @pytest.mark.parametrize("content_type", ["application/xml", "application/cloudevents-batch+json"])
    def test_other_content_types_are_refused_by_name(self, content_type: str) -> None:
        error = refusal_to(json.dumps(GOOD).encode(), content_type=content_type)
        assert error.reason == RejectReason.UNSUPPORTED_TYPE
        assert content_type in error.message

    def test_another_ce_type_is_refused_with_the_request_id(self) -> None:
        error = refusal_to(b'{"request_id": "mine"}', ce_type="io.rabbit2docker.build.requested.v2")
        assert error.reason == RejectReason.UNSUPPORTED_TYPE
        assert error.request_id == "mine"
        assert "must be `io.rabbit2docker.build.requested.v1`" in error.message

    def test_the_id_of_a_structured_cloudevent_is_the_default_request_id(self) -> None:
        request = read_request(structured(), content_type=STRUCTURED + "; charset=utf-8")
        assert (request.spec, request.request_id) == (GOOD["spec"], "event-1")

    def test_a_request_id_in_the_data_takes_precedence_over_the_event_id(self) -> None:
        request = read_request(structured(data=GOOD | {"request_id": "mine"}), content_type=STRUCTURED)
        assert request.request_id == "mine"

    def test_base64_data_is_decoded(self) -> None:
        encoded = base64.b64encode(json.dumps(GOOD).encode()).decode()
        assert (
            read_request(structured(data=None, data_base64=encoded), content_type=STRUCTURED).provider == "gh"
        )

    @pytest.mark.parametrize(
        ("attributes", "reason"),
        [
            ({"type": "other"}, RejectReason.UNSUPPORTED_TYPE),
            ({"data": []}, RejectReason.INVALID_REQUEST),
            ({"data": {}}, RejectReason.INVALID_REQUEST),
            ({"data_base64": "%"}, RejectReason.INVALID_REQUEST),
            ({"data_base64": base64.b64encode(b"{").decode()}, RejectReason.INVALID_JSON),
        ],
    )
    def test_an_invalid_structured_cloudevent_is_refused_under_its_id(
        self, attributes: dict[str, Any], reason: RejectReason
    ) -> None:
        error = refusal_to(structured(**attributes), content_type=STRUCTURED)
        assert (error.reason, error.request_id) == (reason, "event-1")

    @pytest.mark.parametrize("attributes", [{"specversion": "0.3"}, {"id": None}, {"id": ""}])
    def test_a_structured_cloudevent_without_its_attributes_is_refused(
        self, attributes: dict[str, Any]
    ) -> None:
        error = refusal_to(structured(**attributes), content_type=STRUCTURED)
        assert error.reason == RejectReason.INVALID_REQUEST
        assert "specversion" in error.message


class TestCancel:
    def test_a_cancel_message_names_a_build_or_a_request(self) -> None:
        assert read_cancel(b'{"build_id": "b1", "requester": "ada"}').build_id == "b1"
        assert read_cancel(b'{"request_id": "r1"}', ce_type=CANCEL_TYPE).request_id == "r1"

    @pytest.mark.parametrize("body", [b"{}", b'{"build_id": "b", "request_id": "r"}'])
    def test_a_cancel_message_with_neither_id_or_both_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidMessage, match=r"^Name either build_id or request_id\.$"):
            read_cancel(body)

    def test_the_id_of_a_structured_cloudevent_is_not_the_request_to_cancel(self) -> None:
        event = structured(type=CANCEL_TYPE, data={"build_id": "b1"})
        assert read_cancel(event, content_type=STRUCTURED).request_id is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)
FIELDS = st.sampled_from(["provider", "spec", "request_id", "subdir", "labels", "build_args", "not_after"])
ANY_BODY = (
    st.binary()
    | st.text().map(lambda text: text.encode(errors="surrogatepass"))
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, JSON_VALUES).map(lambda value: json.dumps(GOOD | value).encode())
    | st.dictionaries(st.sampled_from(["id", "type", "specversion", "data", "data_base64"]), JSON_VALUES).map(
        lambda value: structured(**value)
    )
)


@given(body=ANY_BODY, content_type=st.sampled_from([None, STRUCTURED]) | st.text())
def test_no_input_raises_anything_but_invalid_message(body: bytes, content_type: str | None) -> None:
    for read in (read_request, read_cancel):
        refusal: InvalidMessage | None = None
        try:
            read(body, content_type=content_type)
        except InvalidMessage as error:
            refusal = error
        if refusal is not None:
            assert 0 < len(refusal.message) < 4000
            assert refusal.message.isprintable()
            (refusal.request_id or "").encode()
