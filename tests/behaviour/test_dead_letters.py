"""Dead letters over the JSON API and at a limited rate, with the exported user, on a real RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from rabbit2docker.amqp.dead_letter_help import EXPLANATIONS, UNROUTABLE
from rabbit2docker.amqp.dead_letters import dead_letters, redrive_one_by_one
from rabbit2docker.consumer.intake.worker import DEAD_LETTERED
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.routing import DEAD_QUEUE, FORGED, REQUESTS_QUEUE
from tests.behaviour.conftest import ImportUsers
from tests.support.exported_users import ExportedUsers
from tests.support.hub_api import Api
from tests.support.hub_service import MemoryBuilds, serving
from tests.support.letters import Letter, count, leave
from tests.support.waiting import eventually

PATH = "api/dead-letters"
TOKENS = {"root": "root-secret", "ada": "ada-secret"}
OURS = Letter("ours", "unavailable")
FORGERY = Letter("forgery", FORGED)
THEIRS = Letter("theirs", "not_allowed", tenant="other")
UNKNOWN = Letter("unknown", "unroutable", tenant="*", body=b"\xff\x00 no JSON")


@pytest.fixture
def users(import_users: ImportUsers) -> ExportedUsers:
    return import_users("default", "other")


@pytest.fixture
async def api(users: ExportedUsers) -> AsyncIterator[Api]:
    url = users.url("rabbit2docker-dead-letters")
    async with serving(
        MemoryBuilds(), auth="tokens", tokens=TOKENS, admins=["root"], dead_letters_url=url
    ) as viewer:
        yield Api(viewer.address).with_token("root-secret")


async def in_queue(amqp: AmqpSettings, queue: str, expected: int) -> None:
    async def is_so() -> bool:
        return await count(amqp, queue) == expected

    await eventually(is_so)


async def ids(api: Api) -> dict[str, str]:
    """Return the letters' ids by the names of their repositories."""
    answer = await api.get(PATH)
    assert answer.status == 200, answer
    return {letter["spec"].split("/")[1]: letter["id"] for letter in answer.json["letters"]}


def test_every_reason_of_dead_letters_is_explained() -> None:
    by_rabbitmq = {"expired", "delivery_limit", "maxlen"}
    assert set(EXPLANATIONS) == {*DEAD_LETTERED, *by_rabbitmq, FORGED, UNROUTABLE}


@pytest.mark.broker
class TestApi:
    async def test_an_admin_redrives_and_discards_the_letters_of_the_own_tenant(
        self, api: Api, amqp: AmqpSettings
    ) -> None:
        await leave(amqp, THEIRS, OURS, FORGERY, UNKNOWN)
        found = await ids(api)
        assert list(found) == ["ours", "forgery"]
        shown = (await api.get(f"{PATH}/{found['ours']}")).json
        assert shown["action"] == EXPLANATIONS["unavailable"].action
        assert shown["body"].encode() == OURS.content
        assert shown["headers"] == {"own": "header"}

        answer = await api.post(f"{PATH}/redrive", {"ids": [found["ours"], "0123456789", found["forgery"]]})
        outcomes = [(each["id"], each["outcome"]) for each in answer.json["results"]]
        assert outcomes == [
            (found["ours"], "published"),
            ("0123456789", "missing"),
            (found["forgery"], "kept"),
        ]
        await in_queue(amqp, REQUESTS_QUEUE, 1)
        assert (await api.get(f"{PATH}/{found['ours']}")).status == 404

        answer = await api.post(f"{PATH}/discard", {"ids": [found["forgery"]]})
        assert [each["outcome"] for each in answer.json["results"]] == ["discarded"]
        assert await ids(api) == {}
        await in_queue(amqp, DEAD_QUEUE, 2)

    async def test_letters_of_all_tenants_are_handled_where_the_operator_says_so(
        self, users: ExportedUsers, amqp: AmqpSettings
    ) -> None:
        await leave(amqp, THEIRS, UNKNOWN)
        url = users.url("rabbit2docker-dead-letters")
        async with serving(MemoryBuilds(), dead_letters_url=url, dead_letters_of_all_tenants=True) as viewer:
            api = Api(viewer.address)
            both = (await api.get(PATH)).json
            assert [letter["message_id"] for letter in both["letters"]] == ["theirs", "unknown"]
            assert both["more"] is False
            one = (await api.get(f"{PATH}?limit=1")).json
            assert (len(one["letters"]), one["more"]) == (1, True)
            by_reason = (await api.get(f"{PATH}?reason=unroutable")).json["letters"]
            assert [letter["message_id"] for letter in by_reason] == ["unknown"]

    async def test_others_and_pages_of_other_sites_are_refused(self, api: Api, amqp: AmqpSettings) -> None:
        await leave(amqp, OURS)
        chosen = {"ids": list((await ids(api)).values())}
        ada = api.with_token("ada-secret")
        assert (await ada.get(PATH)).status == 403
        assert (await ada.get(f"{PATH}/{chosen['ids'][0]}")).status == 403
        for action in ("redrive", "discard"):
            assert (await ada.post(f"{PATH}/{action}", chosen)).status == 403
            assert (await api.post(f"{PATH}/{action}", chosen, Sec_Fetch_Site="cross-site")).status == 403
            assert (await api.post(f"{PATH}/{action}", {"ids": ["nonsense"]})).status == 400
            form = await api.call(
                "POST", f"{PATH}/{action}", b"ids=1", headers={"Content-Type": "text/plain"}
            )
            assert form.status == 415
        assert len(await ids(api)) == 1

    async def test_a_refused_login_is_reported_in_the_words_of_rabbitmq(self, amqp: AmqpSettings) -> None:
        url = amqp.url.get_secret_value().replace("guest:guest", "guest:wrong")
        async with serving(MemoryBuilds(), dead_letters_url=url) as viewer:
            answer = await Api(viewer.address).get(PATH)
        assert answer.status == 503
        assert "refuses user 'guest'" in answer.message
        assert "wrong" not in answer.message


async def test_without_credentials_the_api_says_how_to_enable_it() -> None:
    async with serving(MemoryBuilds()) as viewer:
        answer = await Api(viewer.address).get(PATH)
    assert answer.status == 404
    assert "RABBIT2DOCKER_HUB__DEAD_LETTERS_URL" in answer.message


async def test_credentials_that_cannot_be_used_end_the_start() -> None:
    with pytest.raises(ConfigurationError, match="HUB__DEAD_LETTERS_URL"):
        async with serving(MemoryBuilds(), dead_letters_url="https://example.org"):
            pass


@pytest.mark.broker
async def test_at_a_rate_letters_are_published_one_by_one_and_the_queue_is_free_in_between(
    users: ExportedUsers, amqp: AmqpSettings
) -> None:
    await leave(
        amqp, Letter("one", "internal"), FORGERY, Letter("two", "internal"), Letter("three", "internal")
    )
    settings = amqp.model_copy(update={"url": users.settings("rabbit2docker-dead-letters").url})
    open_letters = partial(dead_letters, settings)
    waiting, turn = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def wait() -> None:
        waiting.release()
        await turn.acquire()

    done = redrive_one_by_one(open_letters, lambda letter: letter.message_id != "two", wait)
    for expected in ("one", "forgery", "three"):
        step = asyncio.ensure_future(anext(done))
        await waiting.acquire()
        async with open_letters() as letters:
            assert expected in [letter.message_id for letter in await letters.listed()]
        turn.release()
        assert (await step).message_id == expected
    assert [letter async for letter in done] == []
    await in_queue(amqp, REQUESTS_QUEUE, 2)
    await in_queue(amqp, DEAD_QUEUE, 2)
