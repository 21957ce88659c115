"""Plans name builds and images, and requests are answered from a plan or from the record of a build."""

from datetime import UTC, datetime

from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.intake.plan import accepted, make_plan
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.requests import BuildRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPOSITORY = Repository(
    provider="gh",
    spec="o/r/HEAD",
    repo_url="https://github.com/o/r",
    resolved_ref="a" * 40,
    build_slug="o-r",
    content_provider="Git",
    display_name="o/r",
)


def incoming(request_id: str, *, tenant: str = "ada", force: bool = False) -> IncomingRequest:
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
