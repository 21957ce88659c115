"""Recorded failures of real engines and registries, each with the verdict that users should get."""

import json
from typing import Any

import pytest

from rabbit2docker.consumer.builder.builder import (
    EXIT_CODES,
    PASSING_BUILD_FAILURES,
    PASSING_PUSH_FAILURES,
    PHASES,
    SIGNALS,
    BuildOutput,
    PushOutput,
    Verdict,
    judge_push,
    parse_record,
)
from rabbit2docker_schemas.reasons import AGAIN_OF, CATEGORY_OF, Again, FailureReason
from tests.corpus import CORPUS, NAMED, cases, output_of

CASES = cases()


def verdict_of(name: str, case: dict[str, Any]) -> Verdict:
    lines = output_of(name).read_bytes().decode().split("\n")
    if case["kind"] == "push":
        output = PushOutput(lambda text, progress: None)
        for line in lines:
            output.on_line(line)
        image = f"{NAMED}/{case.get('image', 'the-forbidden-city')}:1"
        return judge_push(output.lines, image, output.is_under_way)
    return judged_build(lines, full_disk=case.get("full_disk", False))


def judged_build(lines: list[str], *, code: int = 1, full_disk: bool = False) -> Verdict:
    output, phase = BuildOutput(), "waiting"
    output.met_full_disk = full_disk
    for line in lines:
        record = parse_record(line)
        if record is None:
            output.add_raw(line)
            continue
        output.add(record)
        if record.get("phase") in PHASES:
            phase = max(phase, record["phase"], key=PHASES.index)
    return output.judge(phase, code)


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_failure_gets_its_verdict(name: str) -> None:
    case = CASES[name]
    verdict = verdict_of(name, case)
    reason = FailureReason(verdict.reason)
    assert (reason, CATEGORY_OF[reason], AGAIN_OF[reason]) == (
        case["reason"],
        case["category"],
        case["again"],
    )
    assert [word for word in case["words"] if word not in verdict.message] == []
    assert "docker', 'buildx" not in verdict.message
    assert len(verdict.message) < 1000


def test_every_folder_of_the_corpus_has_a_line_and_every_line_a_recording() -> None:
    folders = {path.name for path in CORPUS.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == set(CASES) == {name for name in CASES if output_of(name).exists()}
    assert len(CASES) >= 60


def test_the_corpus_has_every_reason_that_the_builder_finds_in_output() -> None:
    found = {case["reason"] for case in CASES.values()}
    assert {reason for _, _, reason, _ in SIGNALS} <= found


def test_the_builder_repeats_a_step_exactly_where_the_reasons_say_here() -> None:
    here = {reason.value for reason, again in AGAIN_OF.items() if again is Again.HERE}
    assert here == {*PASSING_PUSH_FAILURES, *PASSING_BUILD_FAILURES, "fetch_interrupted"}
    assert here <= set(EXIT_CODES)


@pytest.mark.parametrize("again", Again)
def test_only_infrastructure_is_tried_again(again: Again) -> None:
    categories = {CATEGORY_OF[reason] for reason, of in AGAIN_OF.items() if of is again}
    assert (categories == {"infrastructure"}) == (again is not Again.NEVER)


# Errors that the engine of the tests cannot be brought to; the wording is that of BuildKit.
SOLVED = [
    ("parent snapshot sha256:12ab does not exist: not found", "engine_error"),
    ("write /var/lib/docker/overlay2/x/diff/y: disk quota exceeded", "disk_full"),
    ("layer does not exist", "engine_error"),
    ("dockerfile parse error on line 2: unknown flag: --error reading from server: EOF", "build_step_failed"),
    ("failed to create LLB definition: dockerfile parse error line 3: unknown instruction: RUNX", "build_step_failed"),
    ('process "/bin/sh -c echo \\": no space left on device" did not complete successfully: exit code: 2',
     "build_step_failed"),
    ('failed to compute cache key: failed to calculate checksum of ref a::b: "/layer does not exist": not found',
     "build_step_failed"),
    ("docker.io/x/denied:1: failed to resolve source metadata for docker.io/x/denied:1: unexpected status from HEAD"
     " request to https://registry.example/v2/x/denied/manifests/1: 503 Service Unavailable", "base_image_unavailable"),
    ("docker.io/x/denied:1: failed to resolve source metadata for docker.io/x/denied:1: unexpected status from HEAD"
     " request to https://registry.example/v2/x/denied/manifests/1: 408 Request Timeout", "base_image_unavailable"),
    ("docker.io/x/one:1: failed to resolve source metadata for docker.io/x/one:1: pull access denied, repository does not"
     " exist or may require authorization: server message: insufficient_scope: authorization failed", "base_image_private"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "reason"), SOLVED)
@pytest.mark.parametrize("prefix", ["failed to solve: ", "failed to build: failed to solve: "])
def test_an_error_of_the_engine_is_judged_whatever_its_client_calls_it(
    prefix: str, error: str, reason: str
) -> None:
    record = '{"message": "Using DockerBuildPack builder\\n", "phase": "building"}'
    assert judged_build([record, f"ERROR: {prefix}{error}"]).reason == reason


CLIENTS = [
    ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "docker_unavailable"),
    ("failed to receive status: rpc error: code = Unavailable desc = closing", "docker_unavailable"),
    ("unknown flag: --progress", "engine_error"),
]


@pytest.mark.parametrize(("error", "reason"), CLIENTS)
def test_an_error_of_the_client_itself_is_not_the_users(error: str, reason: str) -> None:
    record = '{"message": "Using DockerBuildPack builder\\n", "phase": "building"}'
    assert judged_build([record, f"ERROR: {error}"]).reason == reason


@pytest.mark.parametrize("name", ["failing-step", "copy-of-a-missing-file"])
def test_the_reason_is_found_at_the_end_of_a_loud_build(name: str) -> None:
    recorded = output_of(name).read_text().split("\n")
    [*_, end] = (number for number, line in enumerate(recorded) if "ERROR: failed to solve" in line)
    printed = [
        json.dumps({"message": f"#{4 + number % 9} 0.1 error: line {number}\n", "phase": "building"})
        for number in range(30_000)
    ]
    assert vars(judged_build([*printed, *recorded[:end], *printed, *recorded[end:]])) == vars(
        judged_build(recorded)
    )


STEPS = [
    "failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF",
    "read unix @->/run/docker.sock: connection reset by peer",
    "failed to set key: dial unix /var/run/docker/libnetwork/0a1b.sock: connect: no such file or directory",
]


@pytest.mark.parametrize("error", STEPS)
def test_a_step_that_the_engine_could_not_finish_is_not_the_users(error: str) -> None:
    failure = f'process "/bin/sh -c make" did not complete successfully: {error}'
    record = '{"message": "Using DockerBuildPack builder\\n", "phase": "building"}'
    assert judged_build([record, f"ERROR: failed to solve: {failure}"]).reason == "docker_unavailable"


def test_an_unknown_error_while_the_image_is_exported_is_the_engines() -> None:
    messages = ["#9 exporting to image", "#9 ERROR: something odd", "ERROR: failed to solve: something odd"]
    lines = [json.dumps({"message": f"{message}\n", "phase": "building"}) for message in messages]
    assert judged_build(lines).reason == "engine_error"


PUSHED = [
    ("errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required", "push_denied"),
    ("error parsing HTTP 413 response body: invalid character '<' looking for beginning of value", "push_rejected"),
    ("error parsing HTTP 404 response body: invalid character '<' looking for beginning of value", "push_rejected"),
    ("toomanyrequests: You have exceeded your rate limit of storage requests", "push_failed"),
    ('Get "https://registry.example/v2/": dial tcp 192.0.2.1:413: connect: connection refused', "push_failed"),
    ('Get "https://registry.example/v2/": tls: failed to verify certificate: x509: certificate has expired',
     "push_rejected"),
    ("no basic auth credentials", "push_denied"),
    ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
     "docker_unavailable"),
    ("failed to push registry.example/the-denied/quota: unexpected status from PUT request to"
     " https://registry.example/v2/the-denied/quota/manifests/1: 500 Internal Server Error", "push_failed"),
    ("failed to push registry.example/the-denied/quota: unexpected status from PUT request to"
     " https://registry.example/v2/the-denied/quota/manifests/1: 403 Forbidden", "push_denied"),
    ('Head "https://registry.example/v2/the-denied/quota/blobs/413": dial tcp: i/o timeout', "push_failed"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "reason"), PUSHED)
def test_the_name_of_an_image_does_not_decide_about_its_push(error: str, reason: str) -> None:
    lines = ["The push refers to repository [registry.example/the-denied/quota]", *error.split("\n")]
    assert judge_push(lines, "registry.example/the-denied/quota:1", False).reason == reason


def test_an_unauthorized_push_is_denied_unless_a_layer_was_accepted_before() -> None:
    lines = ["unauthorized: authentication required"]
    assert judge_push(lines, "registry.example/one:1", False).reason == "push_denied"
    assert judge_push(lines, "registry.example/one:1", True).reason == "push_failed"
