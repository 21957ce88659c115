"""Plans name builds and images, and requests are answered from a plan or from the record of a build."""

from datetime import UTC, datetime

from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.plan import accepted, make_plan, options_of
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import BuildOptions
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest, Force
from tests.support.records import REPOSITORY

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def incoming(request_id: str, *, tenant: str = "ada", force: Force = False) -> IncomingRequest:
    request = BuildRequest(provider="gh", spec="o/r/HEAD", force=force, requester="ada")
    return IncomingRequest(tenant, RequestId(request_id), request, NOW)


def test_plan_and_record_of_a_build_give_the_same_answer() -> None:
    plan = make_plan(incoming("one"), REPOSITORY, "registry/r2d-")
    answer = accepted(plan.incoming, plan)
    assert answer == accepted(plan.incoming, plan.spec(Settings(), now=NOW))
    assert (answer.attached, answer.cached, answer.image) == (False, False, plan.image)
    assert accepted(plan.incoming, plan, cached=True).cached


def test_a_request_that_joins_the_build_of_another_is_attached() -> None:
    spec = make_plan(incoming("one"), REPOSITORY, "registry/r2d-").spec(Settings(), now=NOW)
    answer = accepted(incoming("two"), spec)
    assert answer.attached
    assert (answer.request_id, answer.build_id) == ("two", spec.build_id)


def test_only_equal_builds_of_one_tenant_have_the_same_fingerprint() -> None:
    requests = [
        incoming("one"),
        incoming("two"),
        incoming("one", tenant="bob"),
        incoming("one", force=True),
    ]
    plans = [make_plan(request, REPOSITORY, "registry/r2d-") for request in requests]
    first, same, *others = (plan.fingerprint for plan in plans)
    assert first == same
    assert len({first, *others}) == 3


def test_a_forced_build_has_the_tag_of_all_others_and_joins_none() -> None:
    requests = [incoming("one"), incoming("two", force=True), incoming("three", force="cache")]
    plans = [make_plan(request, REPOSITORY, "registry/r2d-") for request in requests]
    assert len({plan.image for plan in plans}) == 1
    assert len({plan.fingerprint for plan in plans}) == 3
    again = make_plan(incoming("two", force=True), REPOSITORY, "registry/r2d-")
    assert again.fingerprint == plans[1].fingerprint  # the same request, delivered again


def test_an_ordinary_request_recognizes_a_forced_build_of_its_image() -> None:
    plan = make_plan(incoming("one"), REPOSITORY, "registry/r2d-")

    def is_recognized(request: IncomingRequest) -> bool:
        return plan.is_forced_by(make_plan(request, REPOSITORY, "registry/r2d-").spec(Settings(), now=NOW))

    assert is_recognized(incoming("two", force=True))
    assert is_recognized(incoming("two", force="cache"))
    assert not is_recognized(incoming("two"))
    assert not is_recognized(incoming("two", tenant="bob", force=True))


def test_events_report_how_a_build_was_forced() -> None:
    found = [options_of(incoming("one", force=force).request) for force in (True, "cache", False)]
    assert found == [BuildOptions(force=True), BuildOptions(force=True, keep_cache=True), None]


def test_another_name_for_private_content_exists_only_where_public_content_is_shared() -> None:
    shared = make_plan(incoming("one"), REPOSITORY, "registry/shared-", "registry/shared-ada.")
    spec = shared.spec(Settings(), now=NOW)
    assert (spec.image, spec.private_image) == (shared.image, shared.private_image)
    assert shared.names == [str(shared.private_image), shared.image]
    assert str(shared.private_image).startswith("registry/shared-ada.")
    own = make_plan(incoming("one"), REPOSITORY, "registry/shared-ada.", "registry/shared-ada.")
    assert (own.private_image, own.names) == (None, [shared.private_image])
