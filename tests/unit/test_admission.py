"""Admission: which requests share a build, and which are answered with the image that exists."""

from typing import cast

import pytest

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.breakers import Breakers, DependencyAway
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import AttemptStatus, StoredOutcome
from rabbit2docker.consumer.following.outcome import stored
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.intake.admission import Admission, AdmissionContext, AdmissionOutcome
from rabbit2docker.consumer.intake.build_limits import BuildLimits
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import ENGINE, RegistryUnavailable
from rabbit2docker.settings import PolicySettings, Settings
from rabbit2docker_schemas.events import Accepted, Completed
from rabbit2docker_schemas.ids import RequestId, build_id_of, terminal_event_id
from rabbit2docker_schemas.requests import BuildRequest, Force
from tests.support.cancel_log import MemoryCancelLog
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.publishing import RecordingPublisher
from tests.support.records import NOW, REPOSITORY

DIGEST = "sha256:" + "1" * 64


class OneRepository:
    """Resolves every request to the same version of one repository."""

    def get(self, prefix: str) -> "OneRepository":
        return self

    def check_allowed(self, prefix: str, spec: str) -> None: ...

    def check_resolved(self, repository: Repository) -> None: ...

    def check(self, spec: str) -> None: ...

    async def resolve(self, spec: str, _access: object = None) -> Repository:
        return REPOSITORY


class Intake:
    """An admission with records in memory, and a registry that has `image` or nothing."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.world = MemoryWorld()
        self.executor = MemoryExecutor(self.world)
        self.publisher = RecordingPublisher()
        self.image: ImageInfo | None = None
        self.images: dict[str, ImageInfo] | None = None
        """The registry, by name without the tag, instead of `image`."""
        self.looked_up: list[str] = []
        self.repositories: list[str] = []
        self.problem = ""
        """The reason why no repository can be created in the registry."""
        self.cancels = MemoryCancelLog()
        self.attempts = attempts = AttemptCache(self.executor)
        self.breakers = Breakers()
        self.admission = Admission(
            AdmissionContext(
                executor=self.executor,
                attempts=attempts,
                events=EventPublisher(self.publisher, instance="test"),
                providers=cast("Providers", OneRepository()),
                find_image=self.find_image,
                settings=settings or Settings(),
                cancellation=Cancellation(self.executor, attempts, self.cancels),
                limits=BuildLimits(attempts, PolicySettings()),
                breakers=self.breakers,
                ensure_repository=self.ensure_repository,
            )
        )

    async def find_image(self, image: str, _tenant: str = "default") -> ImageInfo | None:
        self.looked_up.append(image)
        return self.image if self.images is None else self.images.get(image.rpartition(":")[0])

    async def ensure_repository(self, image: str) -> None:
        self.repositories.append(image)
        if self.problem:
            raise RegistryUnavailable(self.problem)

    async def ask(self, name: str, *, force: Force = False, tenant: str = "default") -> AdmissionOutcome:
        request = BuildRequest(provider="gh", spec="o/r/HEAD", force=force)
        return await self.admission.admit(IncomingRequest(tenant, RequestId(name), request, NOW))


@pytest.fixture
def intake() -> Intake:
    return Intake()


async def test_forced_requests_join_no_build(intake: Intake) -> None:
    modes: list[Force] = [False, True, True, "cache"]
    found = [await intake.ask(f"r{number}", force=force) for number, force in enumerate(modes)]
    assert found == [AdmissionOutcome.ACCEPTED] * 4
    assert len({record.spec.build_id for record in intake.world.records.values()}) == 4
    assert len({record.spec.image for record in intake.world.records.values()}) == 1


@pytest.mark.parametrize("force", [True, "cache"])
async def test_a_forced_request_is_built_although_the_image_exists(intake: Intake, force: Force) -> None:
    intake.image = ImageInfo(DIGEST, 1)
    assert await intake.ask("forced", force=force) == AdmissionOutcome.ACCEPTED
    assert len(intake.world.records) == 1


async def test_a_forced_request_that_is_delivered_again_gets_the_same_build(intake: Intake) -> None:
    await intake.ask("ordinary")
    await intake.ask("forced", force=True)
    assert await intake.ask("forced", force=True) == AdmissionOutcome.DUPLICATE
    fresh = Intake()  # a service that does not know the records yet
    fresh.world.records.update(intake.world.records)
    assert await fresh.ask("forced", force=True) == AdmissionOutcome.ATTACHED
    assert len(fresh.world.records) == 2


async def test_an_ordinary_request_joins_a_forced_build_only_if_there_is_no_image(intake: Intake) -> None:
    await intake.ask("forced", force=True)
    assert await intake.ask("one") == AdmissionOutcome.ATTACHED
    intake.image = ImageInfo(DIGEST, 1)
    assert await intake.ask("two") == AdmissionOutcome.CACHED
    assert len(intake.world.records) == 1


async def test_an_ordinary_request_prefers_the_ordinary_build(intake: Intake) -> None:
    await intake.ask("ordinary")
    await intake.ask("forced", force=True)
    assert await intake.ask("joining") == AdmissionOutcome.ATTACHED
    [ordinary] = [record for record in intake.world.records.values() if not record.spec.request.force]
    assert set(ordinary.status.requests) == {"ordinary", "joining"}


async def test_an_image_that_exists_is_named_with_its_digest(intake: Intake) -> None:
    intake.image = ImageInfo(DIGEST, 1)
    await intake.ask("one")
    [end] = [event.data for event in intake.publisher.events if isinstance(event.data, Completed)]
    assert end.image.endswith(f":{REPOSITORY.resolved_ref}@{DIGEST}")


async def test_a_build_starts_only_once_its_repository_exists_in_the_registry(intake: Intake) -> None:
    intake.problem = "The repository cannot be created."
    with pytest.raises(RegistryUnavailable, match="cannot be created"):
        await intake.ask("one")
    assert not intake.world.records
    intake.problem = ""
    await intake.ask("one")
    [record] = intake.world.records.values()
    assert intake.repositories == [record.spec.image] * 2


async def test_a_request_does_not_join_a_build_that_is_being_cancelled(intake: Intake) -> None:
    await intake.ask("first")
    [name] = intake.world.records

    def cancelled(status: AttemptStatus) -> AttemptStatus:
        return status.model_copy(update={"cancelled_by": "ada"})

    await intake.executor.update_status(name, cancelled)  # by a replica of which this one has not heard yet
    assert await intake.ask("second") == AdmissionOutcome.ACCEPTED
    first, second = intake.world.records.values()
    assert set(first.status.requests) == {"first"}
    assert set(second.status.requests) == {"second"}
    assert second.status.cancelled_by is None


async def test_a_request_does_not_join_a_build_whose_end_is_decided(intake: Intake) -> None:
    await intake.ask("first")
    [name] = intake.world.records
    outcome = StoredOutcome(kind="failed", data={})
    await intake.executor.update_status(name, lambda status: status.model_copy(update={"outcome": outcome}))
    assert await intake.ask("second") == AdmissionOutcome.ACCEPTED
    assert len(intake.world.records) == 2


async def test_a_request_gets_the_image_of_a_build_that_has_completed_and_is_not_reported_yet(
    intake: Intake,
) -> None:
    """Without a look at the registry, it would be built again."""
    await intake.ask("first")
    [name] = intake.world.records
    end = Completed(
        build_id=intake.world.records[name].spec.build_id,
        image="registry.example/one:0",
        digest=DIGEST,
        resolved_ref="0",
    )
    await intake.executor.update_status(
        name, lambda status: status.model_copy(update={"outcome": stored(end)})
    )
    intake.attempts.put(intake.world.records[name].snapshot())
    assert await intake.ask("second") == AdmissionOutcome.CACHED
    assert len(intake.world.records) == 1
    assert [event.kind for event in intake.publisher.events] == ["accepted", "accepted", "completed"]
    ends = [event.subject for event in intake.publisher.events]
    assert ends == [end.build_id, build_id_of("default", "second"), build_id_of("default", "second")]


async def test_the_same_request_after_its_record_was_forgotten_is_another_generation(intake: Intake) -> None:
    await intake.ask("one")
    [first] = intake.world.records.values()
    intake.world.remove(first.spec.name)
    fresh = Intake()  # a service that has forgotten the record
    await fresh.ask("one")
    [second] = fresh.world.records.values()
    assert first.spec.build_id == second.spec.build_id
    ends = [terminal_event_id(spec.build_id, spec.generation) for spec in (first.spec, second.spec)]
    assert ends[0] != ends[1]


async def test_an_existing_image_is_answered_with_the_same_end_at_each_delivery(intake: Intake) -> None:
    intake.image = ImageInfo(DIGEST, 1)
    await intake.ask("one")
    await intake.ask("one")
    ends = [event for event in intake.publisher.events if event.is_terminal]
    assert len({event.id for event in ends}) == 1
    assert ends[0].data == ends[1].data
    intake.image = ImageInfo("sha256:" + "2" * 64, 1)
    await intake.ask("one")
    assert len({event.id for event in intake.publisher.events if event.is_terminal}) == 2


async def test_while_the_engine_is_away_no_build_is_created_but_images_are_found(intake: Intake) -> None:
    intake.breakers.open(ENGINE, "The engine is away.")
    with pytest.raises(DependencyAway, match="The engine is away"):
        await intake.ask("needs the engine")
    assert not intake.world.records
    intake.image = ImageInfo(DIGEST, 1)
    assert await intake.ask("has its image") == AdmissionOutcome.CACHED
    intake.image = None
    intake.breakers.close(ENGINE)
    assert await intake.ask("needs the engine") == AdmissionOutcome.ACCEPTED


def sharing() -> Intake:
    """Return an admission for tenants that share the images of public content."""
    shared = {"images": {"prefix": "r.example/shared-"}}
    return Intake(Settings.model_validate({"tenants": {"alpha": shared, "beta": shared}}))


def name_without_tag(image: str | None) -> str:
    return str(image).rpartition(":")[0]


async def test_a_tenant_that_shares_is_answered_with_its_own_image_of_private_content_and_no_other_is() -> (
    None
):
    intake = sharing()
    assert await intake.ask("one", tenant="alpha") == AdmissionOutcome.ACCEPTED
    [record] = intake.world.records.values()
    own, shared = name_without_tag(record.spec.private_image), name_without_tag(record.spec.image)
    assert own.startswith("r.example/shared-alpha.")
    assert intake.repositories == [record.spec.private_image, record.spec.image]
    intake = sharing()
    intake.images = {own: ImageInfo(DIGEST, 1)}
    assert await intake.ask("two", tenant="alpha") == AdmissionOutcome.CACHED
    answers = [event.data for event in intake.publisher.events]
    assert [name_without_tag(answer.image) for answer in answers if isinstance(answer, Accepted)] == [own]
    assert [answer.image for answer in answers if isinstance(answer, Completed)] == [
        f"{record.spec.private_image}@{DIGEST}"
    ]
    intake.looked_up.clear()
    assert await intake.ask("three", tenant="beta") == AdmissionOutcome.ACCEPTED
    assert own not in map(name_without_tag, intake.looked_up)
    assert shared in map(name_without_tag, intake.looked_up)


async def test_a_build_of_private_content_that_has_just_completed_is_named_as_it_was_pushed() -> None:
    intake = sharing()
    await intake.ask("one", tenant="alpha")
    [record] = intake.world.records.values()
    end = Completed(
        build_id=record.spec.build_id,
        image=str(record.spec.private_image),
        digest=DIGEST,
        resolved_ref=record.spec.resolved_ref,
    )
    outcome = StoredOutcome(kind="completed", data=end.model_dump(mode="json"))
    intake.attempts.put(
        await intake.executor.update_status(
            record.spec.name, lambda status: status.model_copy(update={"outcome": outcome})
        )
    )
    assert await intake.ask("two", tenant="alpha") == AdmissionOutcome.CACHED
    [found] = [event.data for event in intake.publisher.events if isinstance(event.data, Completed)]
    assert found.image == f"{record.spec.private_image}@{DIGEST}"
