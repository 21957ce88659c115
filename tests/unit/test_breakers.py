"""A dependency that is away is tried by one request at a time, and is used by all as soon as it answers."""

import asyncio

import pytest

from rabbit2docker import metrics
from rabbit2docker.consumer.breakers import (
    FAILURES_TO_OPEN,
    FORGOTTEN_AFTER_SECONDS,
    MAX_HOSTS,
    MAX_NAMED_HOSTS,
    Breakers,
    DependencyAway,
)
from rabbit2docker.consumer.engine_watch import EngineWatch
from rabbit2docker.errors import (
    ENGINE,
    Dependency,
    DependencyKind,
    ProviderUnavailable,
    RequestRejected,
    TransientError,
)
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.memory_executor import MemoryExecutor

pytestmark = pytest.mark.looptime


def host(name: str) -> Dependency:
    return Dependency(DependencyKind.HOST, name)


HOST = host("git.example.org:443")


class Uses:
    """Uses of a dependency that fails or not."""

    def __init__(self) -> None:
        self.breakers = Breakers()
        self.reached = 0
        self.error: Exception | None = ProviderUnavailable("It is away.", outage_of=HOST)

    async def use(self, dependency: Dependency = HOST, *, seconds: float = 0.0) -> str:
        """Use the dependency and return how that ended."""
        try:
            with self.breakers.guard(dependency):
                self.reached += 1
                await asyncio.sleep(seconds)
                if self.error is not None:
                    raise self.error
        except DependencyAway:
            return "spared"
        except (TransientError, RequestRejected):
            return "failed"
        return "done"

    async def fail(self) -> None:
        for _ in range(FAILURES_TO_OPEN):
            assert await self.use() == "failed"


@pytest.fixture
async def uses() -> Uses:
    return Uses()


async def test_after_some_failures_a_dependency_is_spared_and_others_are_not(uses: Uses) -> None:
    await uses.fail()
    assert await uses.use() == "spared"
    assert await uses.use(host("other.example.org:443")) == "failed"
    assert [outage.dependency for outage in uses.breakers.outages()] == [HOST]
    uses.breakers.export()
    away = metrics.REGISTRY.get_sample_value("rabbit2docker_dependencies_away", {"kind": "host"})
    assert away == 1


async def test_one_use_at_a_time_tries_what_is_away_and_its_success_is_for_all(uses: Uses) -> None:
    await uses.fail()
    await asyncio.sleep(10)
    assert sorted(await asyncio.gather(*[uses.use(seconds=5) for _ in range(10)])) == [
        "failed",
        *["spared"] * 9,
    ]
    uses.error = None
    await asyncio.sleep(60)
    trial, others = asyncio.create_task(uses.use(seconds=5)), []
    await asyncio.sleep(1)
    others.append(await uses.use())
    await trial
    others.append(await uses.use())
    assert (await trial, others) == ("done", ["spared", "done"])
    assert uses.breakers.outages() == []


async def test_tries_become_rarer_but_never_rarer_than_one_a_minute(uses: Uses) -> None:
    await uses.fail()
    before = uses.reached
    for _ in range(400):
        await asyncio.sleep(3)
        await uses.use()
    assert 17 <= uses.reached - before <= 30


async def test_a_cancelled_try_leaves_the_next_one_free(uses: Uses) -> None:
    await uses.fail()
    await asyncio.sleep(10)
    trial = asyncio.create_task(uses.use(seconds=100))
    await asyncio.sleep(1)
    trial.cancel()
    await asyncio.wait([trial])
    uses.error = None
    assert await uses.use() == "done"


async def test_an_answer_that_rejects_the_request_shows_that_the_host_is_there(uses: Uses) -> None:
    await uses.fail()
    uses.error = RequestRejected(RejectReason.REF_NOT_FOUND, "There is no such branch.")
    await asyncio.sleep(10)
    assert await uses.use() == "failed"
    assert uses.breakers.outages() == []


async def test_the_fault_of_one_repository_is_not_its_hosts(uses: Uses) -> None:
    repository = Dependency(DependencyKind.REPOSITORY, "https://git.example.org/r")
    uses.error = ProviderUnavailable("It answered with status 500.", outage_of=repository)
    assert [await uses.use() for _ in range(20)] == ["failed"] * 20


async def test_a_named_wait_is_respected_to_its_end_and_passed_on(uses: Uses) -> None:
    uses.error = ProviderUnavailable("It limits requests.", retry_after=1800, outage_of=HOST)
    await uses.use()
    await asyncio.sleep(1000)
    with pytest.raises(DependencyAway) as raised, uses.breakers.guard(HOST):
        raise AssertionError("not reached")
    assert raised.value.retry_after == pytest.approx(800)
    await asyncio.sleep(801)
    uses.error = None
    assert await uses.use() == "done"


async def test_many_hosts_that_requests_name_cost_little_and_are_not_all_named(uses: Uses) -> None:
    for number in range(MAX_HOSTS + 9):
        uses.breakers.open(host(f"h{number}"), "It is away.")
    uses.breakers.open(ENGINE, "The engine is away.")
    assert len(uses.breakers.outages()) == MAX_HOSTS + 1
    sentences = uses.breakers.sentences()
    assert len(sentences) == MAX_NAMED_HOSTS + 2
    assert sentences[-1] == f"{MAX_HOSTS - MAX_NAMED_HOSTS} more repository hosts are away."
    assert any(sentence.startswith("The engine is away. This began at ") for sentence in sentences)


async def test_an_outage_that_nothing_meets_any_more_is_not_reported_for_ever(uses: Uses) -> None:
    await uses.fail()
    await asyncio.sleep(FORGOTTEN_AFTER_SECONDS + 1)
    assert uses.breakers.sentences() == []


async def test_the_engine_is_watched_from_the_start_until_it_is_back(uses: Uses) -> None:
    executor = MemoryExecutor()
    executor.world.engine_problem = "The engine is away."
    watch = asyncio.create_task(EngineWatch(executor, uses.breakers).run())
    await asyncio.sleep(600)
    with pytest.raises(DependencyAway, match=r"The engine is away\. This began at"):
        uses.breakers.check(ENGINE)
    executor.world.engine_problem = None
    await asyncio.sleep(20)
    uses.breakers.check(ENGINE)
    watch.cancel()
