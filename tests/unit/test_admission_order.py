"""The order in which admission creates, answers and lets others speak."""

import asyncio
from datetime import UTC, datetime

from rabbit2docker.amqp.ports import IsNeeded, always
from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.intake.admission import Admission, AdmissionContext, AdmissionOutcome
from rabbit2docker.consumer.intake.build_limits import BuildLimits
from rabbit2docker.consumer.intake.cancellation import Cancellation
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.settings import PolicySettings, ProviderSettings, Settings
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.ids import RequestId
from tests.support.cancel_log import MemoryCancelLog
from tests.support.consumer import a_request
from tests.support.memory_executor import MemoryExecutor, MemoryWorld
from tests.support.publishing import RecordingPublisher

INCOMING = IncomingRequest("default", RequestId("one"), a_request("one"), datetime.now(UTC))


class SlowPublisher(RecordingPublisher):
    async def publish(
        self, event: Event, *, patience: float | None = None, is_needed: IsNeeded = always
    ) -> bool:
        for _ in range(10):  # the followers have every opportunity
            await asyncio.sleep(0)
        return await super().publish(event, patience=patience, is_needed=is_needed)


async def test_nothing_is_published_of_a_new_build_before_its_acceptance() -> None:
    """A follower starts as soon as the record exists, which is before the answer."""
    executor, publisher = MemoryExecutor(MemoryWorld()), SlowPublisher()
    attempts = AttemptCache(executor)
    kinds_at_first_word: list[list[str]] = []

    async def speak() -> None:
        await attempts.until_answered(INCOMING.build_id)
        kinds_at_first_word.append(list(publisher.kinds))

    speaking: list[asyncio.Task[None]] = []
    attempts.subscribe(lambda _: speaking.append(asyncio.create_task(speak())))

    async def find_image(image: str, _tenant: str = "default") -> ImageInfo | None:
        return None

    context = AdmissionContext(
        executor=executor,
        attempts=attempts,
        events=EventPublisher(publisher, instance="test"),
        providers=Providers(ProviderSettings(allow_private_addresses=True)),
        find_image=find_image,
        settings=Settings(),
        cancellation=Cancellation(executor, attempts, MemoryCancelLog()),
        limits=BuildLimits(attempts, PolicySettings()),
    )
    assert await Admission(context).admit(INCOMING) is AdmissionOutcome.ACCEPTED
    await asyncio.gather(*speaking)
    assert kinds_at_first_word == [["accepted"]]
