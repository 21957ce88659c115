"""The operator's limits on builds: what waits, what is rejected, and what the requester reads."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from rabbit2docker.amqp.ports import RequestMessage, Waiting
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import AttemptState, Changed, Removed
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.intake.admission import Admission, AdmissionContext, AdmissionOutcome
from rabbit2docker.consumer.intake.build_limits import BuildLimits, Quotas
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest, parse_delivery
from rabbit2docker.consumer.intake.waiting import plan_wait, waiting_progress
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.patterns import SpecPatterns
from rabbit2docker.consumer.providers.spec_rules import SpecRules
from rabbit2docker.errors import ConfigurationError, LimitReached, RequestRejected
from rabbit2docker.settings import PolicySettings, ProviderSettings, Settings
from rabbit2docker.settings.reloading import SettingsFile
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from tests.support.cancel_log import MemoryCancelLog
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.publishing import RecordingPublisher
from tests.support.records import NOW, REPOSITORY, an_attempt


class AnyRepository:
    """Resolves `owner/name/ref` to a repository of that name."""

    def get(self, prefix: str) -> "AnyRepository":
        return self

    def check_allowed(self, prefix: str, spec: str) -> None: ...

    def check_resolved(self, repository: Repository) -> None: ...

    def check(self, spec: str) -> None: ...

    async def resolve(self, spec: str, _access: object = None) -> Repository:
        owner, name, ref = spec.split("/")
        slug, url = f"{owner}-{name}", f"https://github.com/{owner}/{name}"
        return replace(REPOSITORY, spec=spec, repo_url=url, build_slug=slug, resolved_ref=ref * 40)


class Replica:
    """An admission with its own view of records that several replicas share, at a time of the test's."""

    def __init__(self, world: MemoryWorld | None = None, **policy: Any) -> None:
        self.world = world or MemoryWorld()
        self.executor = MemoryExecutor(self.world)
        self.attempts = AttemptCache(self.executor)
        self.now = NOW
        self.image: ImageInfo | None = None
        self.publisher = RecordingPublisher()
        self.limits = BuildLimits(self.attempts, PolicySettings(**policy), now=lambda: self.now)
        self.admission = Admission(
            AdmissionContext(
                executor=self.executor,
                attempts=self.attempts,
                events=EventPublisher(self.publisher, instance="test"),
                providers=cast("Providers", AnyRepository()),
                find_image=self.find_image,
                settings=Settings(),
                cancellation=Cancellation(self.executor, self.attempts, MemoryCancelLog()),
                limits=self.limits,
                now=lambda: self.now,
            )
        )

    async def find_image(self, image: str, _tenant: str) -> ImageInfo | None:
        return self.image

    async def learn(self) -> None:
        """Read all records, as a replica does at its start and whenever they change."""
        for name in self.world.records:
            attempt = await self.executor.get(name)
            assert attempt is not None
            self.attempts.apply(Changed(attempt))

    async def ask(
        self,
        name: str,
        spec: str = "",
        *,
        tenant: str = "default",
        requester: str | None = None,
        is_bulk: bool = False,
    ) -> AdmissionOutcome:
        request = BuildRequest(provider="gh", spec=spec or f"o/{name}/a", requester=requester)
        incoming = IncomingRequest(tenant, RequestId(name), request, NOW, is_bulk=is_bulk)
        return await self.admission.admit(incoming)

    def end(self, name: str, *, forget: bool = False, tenant: str = "default") -> None:
        """End the build that a request started."""
        [attempt] = self.attempts.of_build(build_id_of(tenant, name))
        ended = attempt.model_copy(update={"state": AttemptState.ENDED})
        self.attempts.apply(Removed(attempt.name) if forget else Changed(ended))


async def test_a_tenant_waits_at_its_limit_until_one_of_its_builds_has_ended() -> None:
    replica = Replica(tenant_builds=2, tenants={"big": {"tenant_builds": 0}})
    await replica.ask("one")
    await replica.ask("two")
    with pytest.raises(LimitReached, match="The tenant default has 2 builds running, and the limit is 2"):
        await replica.ask("three")
    assert await replica.ask("three", tenant="other") is AdmissionOutcome.ACCEPTED
    for name in ("a", "b", "c"):
        assert await replica.ask(name, tenant="big") is AdmissionOutcome.ACCEPTED
    replica.end("one")
    assert await replica.ask("three") is AdmissionOutcome.ACCEPTED


async def test_a_requester_counts_within_its_tenant_and_one_without_a_name_does_not() -> None:
    replica = Replica(requester_builds=1)
    await replica.ask("one", requester="ada")
    with pytest.raises(LimitReached, match="The requester ada has 1 build running"):
        await replica.ask("two", requester="ada")
    assert await replica.ask("two", requester="bob") is AdmissionOutcome.ACCEPTED
    assert await replica.ask("x", requester="ada", tenant="other") is AdmissionOutcome.ACCEPTED
    for name in ("y", "z"):
        assert await replica.ask(name) is AdmissionOutcome.ACCEPTED


async def test_what_needs_no_build_of_its_own_has_no_limit() -> None:
    replica = Replica(tenant_builds=1, tenant_builds_per_hour=1)
    await replica.ask("one", "o/r/a")
    assert await replica.ask("joining", "o/r/a") is AdmissionOutcome.ATTACHED
    assert await replica.ask("one", "o/r/a") is AdmissionOutcome.DUPLICATE
    replica.image = ImageInfo("sha256:" + "1" * 64, 1)
    assert await replica.ask("cached", "o/other/b") is AdmissionOutcome.CACHED


async def test_requests_that_come_at_once_do_not_exceed_a_limit() -> None:
    replica = Replica(tenant_builds=3)
    found = await asyncio.gather(*(replica.ask(f"r{n}") for n in range(20)), return_exceptions=True)
    assert found.count(AdmissionOutcome.ACCEPTED) == 3
    assert sum(isinstance(one, LimitReached) for one in found) == 17


async def test_replicas_count_each_others_builds() -> None:
    one = Replica(tenant_builds=2, tenant_builds_per_hour=3)
    two = Replica(one.world, tenant_builds=2, tenant_builds_per_hour=3)
    await one.ask("one")
    await two.learn()
    await two.ask("two")
    await one.learn()
    for replica in (one, two):
        with pytest.raises(LimitReached):
            await replica.ask("three")
    for name in ("one", "two"):
        one.end(name)
        two.end(name)
    await one.ask("three")
    await two.learn()
    with pytest.raises(RequestRejected, match="3 builds within an hour"):
        await two.ask("four")


async def test_at_a_limit_per_hour_a_person_is_rejected_with_the_time_and_bulk_waits() -> None:
    replica = Replica(requester_builds_per_hour=2)
    await replica.ask("one", requester="ada")
    replica.now += timedelta(minutes=20)
    await replica.ask("two", requester="ada")
    for name in ("one", "two"):
        replica.end(name, forget=True)  # the record goes before the hour is over
    with pytest.raises(RequestRejected) as caught:
        await replica.ask("three", requester="ada")
    assert (caught.value.reason, caught.value.retryable) == (RejectReason.LIMIT_REACHED, True)
    assert "The requester ada has started 2 builds within an hour" in caught.value.message
    assert "13:00:00 UTC" in caught.value.message
    with pytest.raises(LimitReached) as waiting:
        await replica.ask("four", requester="ada", is_bulk=True)
    assert waiting.value.retry_after == 40 * 60
    replica.now += timedelta(minutes=40)
    assert await replica.ask("four", requester="ada", is_bulk=True) is AdmissionOutcome.ACCEPTED


async def test_a_repository_counts_with_all_versions_tenants_and_spellings() -> None:
    replica = Replica(repository_builds=2)
    await replica.ask("one", "o/r/a")
    await replica.ask("two", "O/R.git/b", tenant="other")
    with pytest.raises(LimitReached, match=r"The repository https://github.com/o/r has 2 builds running"):
        await replica.ask("three", "o/r/c")
    assert await replica.ask("four", "o/r2/a") is AdmissionOutcome.ACCEPTED


@pytest.mark.parametrize(
    ("spec", "quota"),
    [("o/r/HEAD", 3), ("Course/r/HEAD", 40), ("course/big/HEAD", 0), ("known/r/HEAD", 9), ("x/known/r", 3)],
)
def test_the_last_matching_quota_counts_and_precedes_high_quota(spec: str, quota: int) -> None:
    policy = PolicySettings.model_validate(
        {
            "repository_builds": 3,
            "high_quota_builds": 9,
            "high_quota_specs": {"gh": ["known/", "course/"]},
            "spec_config": {
                "gh": [
                    {"pattern": "^course/.*", "config": {"quota": 40}},
                    {"pattern": "^course/big/", "config": {"quota": 0}},
                ]
            },
        }
    )
    assert Quotas(policy).of("gh", spec) == quota
    assert Quotas(policy).of("gl", spec) == 3


@pytest.mark.parametrize("pattern", ["(a+)+$", "(?:a|aa)+$"])
def test_a_pattern_that_would_take_years_is_given_up_with_words(pattern: str) -> None:
    patterns = SpecPatterns("providers.banned_specs", {"gh": [pattern]})
    with pytest.raises(RequestRejected, match=r"providers\.banned_specs takes too long") as caught:
        patterns.match([("gh", "a" * 4000 + "!")] * 50)
    assert caught.value.reason is RejectReason.NOT_ALLOWED


def test_patterns_have_the_syntax_that_binderhub_takes() -> None:
    patterns = SpecPatterns(
        "s", {"gh": [r"^(?!jupyter/).*/(secret|private)[^/]*/", r"(?i)^Evil\b(?#remark)"]}
    )
    assert patterns.match([("gh", "ORG/private-x/HEAD")])
    assert not patterns.match([("gh", "jupyter/private/HEAD")])
    assert patterns.match([("gh", "evil/r/HEAD")])
    assert not patterns.match([("git", "evil/r/HEAD"), ("gh", "not-evil/r/HEAD")])


@pytest.mark.parametrize(
    "policy",
    [
        {"high_quota_specs": {"gh": ["("]}},
        {"spec_config": {"gh": [{"pattern": "a{2,1}", "config": {"quota": 1}}]}},
    ],
)
def test_an_invalid_pattern_is_named_with_its_setting(policy: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.\w+ holds '"):
        Quotas(PolicySettings.model_validate(policy))


def test_a_wait_for_a_limit_uses_up_no_try_and_is_announced_once() -> None:
    error = LimitReached("The tenant default has 2 builds running.", limit="tenant_builds")
    message = a_message()
    patience = timedelta(hours=6)
    first = plan_wait(message, error, now=NOW, patience=patience)
    assert first is not None
    assert (first.counts, first.rung.seconds, first.gives_up_at) == (False, 10, NOW + patience)
    progress = waiting_progress(build_id_of("default", "one"), error, first, now=NOW)
    assert progress.message == (
        "The tenant default has 2 builds running. It waits until 2026-01-01 18:00 UTC at the latest."
    )
    later = plan_wait(a_message(first.waiting), error, now=NOW + timedelta(minutes=11), patience=patience)
    assert later is not None
    assert (later.waiting.about, later.counts, later.rung.seconds) == (first.waiting.about, False, 60)
    assert plan_wait(a_message(first.waiting), error, now=NOW + patience, patience=patience) is None


def test_a_wait_until_the_end_of_a_limit_per_hour_says_when() -> None:
    error = LimitReached("Ada has started 2 builds.", limit="requester_builds_per_hour", retry_after=2400)
    wait = plan_wait(a_message(), error, now=NOW, patience=timedelta(hours=6))
    assert wait is not None
    progress = waiting_progress(build_id_of("default", "one"), error, wait, now=NOW)
    assert not wait.counts
    assert progress.detail.retry_at == NOW + timedelta(minutes=40)
    assert "12:40 UTC" in progress.message


@pytest.mark.parametrize(("priority", "is_bulk"), [("interactive", False), ("bulk", True)])
def test_the_routing_key_says_whether_a_request_is_bulk(priority: str, is_bulk: bool) -> None:
    parsed = parse_delivery(a_message(key=f"request.default.{priority}"), max_bytes=10_000)
    assert isinstance(parsed, IncomingRequest)
    assert parsed.is_bulk is is_bulk


def a_message(waiting: Waiting | None = None, key: str = "") -> RequestMessage:
    return RequestMessage(
        body=b'{"provider": "gh", "spec": "o/r/HEAD", "request_id": "one"}',
        routing_key=key,
        queue="builds.requests",
        headers={},
        message_id="envelope",
        content_type=None,
        timestamp=None,
        redelivered=False,
        tries=0,
        waiting=waiting,
    )


class Rules:
    """The rules of a service whose settings file is `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limits = BuildLimits(AttemptCache(MemoryExecutor(MemoryWorld())), PolicySettings())
        self.providers = Providers(ProviderSettings())
        self.file = SettingsFile(self.use)
        self.applied = 0

    def use(self, settings: Settings) -> None:
        rules, quotas = SpecRules(settings.providers), Quotas(settings.policy)
        self.providers.use_rules(rules)
        self.limits.use(settings.policy, quotas)
        self.applied += 1

    def write(self, text: str) -> None:
        """Replace the file, as a mounted ConfigMap is."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, self.path)


async def test_a_changed_file_is_in_effect_for_the_next_request_and_an_invalid_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("{}")
    monkeypatch.setenv("RABBIT2DOCKER_CONFIG", str(path))
    rules = Rules(path)
    await rules.file.refresh()
    assert rules.applied == 0
    banned = {"providers": {"banned_specs": {"gh": ["evil/"]}}, "policy": {"tenant_builds": 1}}
    rules.write(yaml.safe_dump(banned))
    await asyncio.gather(*(rules.file.refresh() for _ in range(5)))
    assert (rules.applied, rules.file.problem) == (1, None)
    for broken in (
        "policy: {tenant_build: 1}",
        "policy: [",
        "providers: {banned_specs: {gh: ['(']}}",
        "\x00",
    ):
        rules.write(broken)
        await rules.file.refresh()
        assert "not in effect" in str(rules.file.problem)
        with pytest.raises(RequestRejected, match="does not allow builds of gh evil/r/HEAD"):
            rules.providers.check_allowed("gh", "evil/r/HEAD")
    path.unlink()
    await rules.file.refresh()
    assert "which is not a file" in str(rules.file.problem)
    rules.write("{}")
    await rules.file.refresh()
    assert rules.file.problem is None
    rules.providers.check_allowed("gh", "evil/r/HEAD")


async def test_builds_that_ran_before_the_start_count_as_far_as_their_records_exist() -> None:
    replica = Replica(tenant_builds_per_hour=1)
    replica.attempts.apply(Changed(an_attempt(state=AttemptState.ENDED)))
    with pytest.raises(RequestRejected, match="1 build within an hour"):
        await replica.ask("next")
