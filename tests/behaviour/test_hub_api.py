"""The JSON API of `rabbit2docker hub` with real HTTP, RabbitMQ, databases, consumer and service processes."""

import asyncio
import re
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest

from rabbit2docker.settings import AmqpSettings
from tests.behaviour.conftest import MakeHub
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import COMMIT, Consumer
from tests.support.hub_api import Api, kinds, lines_of
from tests.support.hub_service import HubService, Sent, build_path, texts
from tests.support.promises import captured, ends_of
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

PINNED = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")


def create_request(name: str, **options: object) -> dict[str, Any]:
    """Return the body of a request for a build by the fake repo2docker, with its options."""
    return {
        "provider": "git",
        "spec": f"{quote(f'https://127.0.0.1/{name}', safe='')}/{COMMIT}",
        "build_args": {option.upper(): str(value) for option, value in options.items()},
    }


async def running(*programs: Consumer | HubService) -> None:
    for program in programs:
        await asyncio.to_thread(program.start_and_wait)


def all_lines(count: int) -> list[str]:
    return [f"line {number} of the build" for number in range(count)]


def said(sent: list[Sent]) -> list[str]:
    """Return the lines of the build, after checking that each number comes once and in order."""
    lines = lines_of(sent)
    assert [number for _, number, _ in lines] == list(range(len(lines)))
    return [text for _, _, text in lines if text.startswith("line ")]


async def log_of(api: Api, id_: str) -> list[str]:
    text = (await api.get(f"api/builds/{id_}/log")).text
    assert "missing" not in text
    return [line for line in text.splitlines() if line.startswith("line ")]


async def stands(api: Api, id_: str, *states: str) -> dict[str, Any]:
    """Wait until a build is in this state, and return it."""

    async def does() -> dict[str, Any] | None:
        answer = await api.get(f"api/builds/{id_}")
        build: dict[str, Any] = answer.json
        return build if answer.status == 200 and build["state"] in states else None

    found: dict[str, Any] | None = await eventually(does)
    assert found
    return found


async def until(api: Api, id_: str, lines: int, **headers: str) -> list[Sent]:
    """Follow a build until so many lines have come, or the connection is gone."""
    seen: list[Sent] = []
    try:
        async with api.live(id_, **headers) as sent:
            async for each in sent:
                seen.append(each)
                if len(lines_of(seen)) >= lines:
                    break
    except (OSError, aiohttp.ClientError):
        pass
    return api.checked(seen)


class TestBuilds:
    async def test_a_build_can_be_requested_followed_and_read_afterwards(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        api = Api(hub.address)
        answer = await api.post("api/builds", create_request("plain", lines=30))
        assert answer.status == 202
        id_ = answer.json["id"]
        sent = await api.follow(id_)
        assert kinds(sent).count("accepted") == 1
        assert kinds(sent)[-1] == "completed"
        assert said(sent) == all_lines(30)
        build = await stands(api, id_, "completed")
        assert build["image"] == sent[-1].data["data"]["image"]
        assert build["options"] == {**build["options"], "build_args": {"LINES": "30"}}
        assert await log_of(api, id_) == all_lines(30)
        assert (await api.get(f"api/builds/{id_}/events", Last_Event_ID=str(sent[-1].id))).status == 204
        replayed = await api.follow(id_)
        assert said(replayed) == all_lines(30)
        assert kinds(replayed)[-1] == "completed"

    async def test_builds_of_binderhubs_clients_are_recorded_too(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        sent = await hub.viewer.watch(build_path("watched"))
        assert sent[-1].phase == "ready"
        api = Api(hub.address)
        [build] = (await api.get("api/builds?q=watched")).json["builds"]
        assert (await stands(api, build["id"], "completed"))["image"] == sent[-1].data["imageName"]
        assert await log_of(api, build["id"]) == texts(sent)

    async def test_a_running_build_can_be_cancelled(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        api = Api(hub.address)
        id_ = (await api.post("api/builds", create_request("endless", lines=100_000, every=0.05))).json["id"]
        following = asyncio.create_task(api.follow(id_))
        await stands(api, id_, "building")
        assert (await api.delete(f"api/builds/{id_}")).status == 202
        assert (await following)[-1].event == "cancelled"
        build = await stands(api, id_, "cancelled")
        assert build["cancelled_by"] == "an anonymous user"
        assert (await api.delete(f"api/builds/{id_}")).status == 409

    async def test_a_request_that_waits_for_a_slot_can_be_withdrawn(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="1"), hub)
        api = Api(hub.address)
        first = (await api.post("api/builds", create_request("first", lines=100_000, every=0.05))).json["id"]
        await stands(api, first, "building")
        second = (await api.post("api/builds", create_request("second"))).json["id"]
        following = asyncio.create_task(api.follow(second))
        assert (await api.delete(f"api/builds/{second}")).status == 202
        assert (await api.delete(f"api/builds/{first}")).status == 202
        sent = await following
        assert sent[-1].data["data"]["reason"] == "cancelled"
        assert [each.event for each in sent if each.event != "queue"] == ["rejected"]
        assert (await stands(api, second, "rejected"))["problem"]["reason"] == "cancelled"

    async def test_a_rebuild_has_an_image_reference_that_no_node_has_cached(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        api = Api(hub.address)
        id_ = (await api.post("api/builds", create_request("again"))).json["id"]
        await api.follow(id_)
        once = await stands(api, id_, "completed")
        images = {once["image"]}
        for number in (2, 3):
            again = (await api.post(f"api/builds/{id_}/rebuild")).json["id"]
            end = (await api.follow(again))[-1]
            assert end.event == "completed"
            assert PINNED.fullmatch(end.data["data"]["image"])
            assert (await stands(api, again, "completed"))["image"] == end.data["data"]["image"]
            images.add(end.data["data"]["image"])
            assert len(images) == number


class TestCrashes:
    async def test_a_killed_service_loses_no_line_for_readers_or_the_record(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        api = Api(hub.address)
        id_ = (await api.post("api/builds", create_request("killed", lines=150, every=0.05))).json["id"]
        reading = asyncio.create_task(until(api, id_, 10_000))
        await until(api, id_, 20)
        await asyncio.to_thread(hub.kill)
        seen = await reading
        assert 0 < len(said(seen)) < 150
        await asyncio.to_thread(hub.start_and_wait)
        rest = await api.follow(id_, Last_Event_ID=str(seen[-1].id))
        assert said([*seen, *rest]) == all_lines(150)
        received = kinds([*seen, *rest])
        assert (received.count("accepted"), received.count("completed")) == (1, 1)
        await stands(api, id_, "completed")
        assert await log_of(api, id_) == all_lines(150)

    async def test_a_build_that_ends_while_the_service_is_down_is_recorded(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        hub = make_hub()
        await running(make_consumer(), hub)
        api = Api(hub.address)
        id_ = (await api.post("api/builds", create_request("alone", lines=60, every=0.05))).json["id"]
        seen = await until(api, id_, 10)
        await asyncio.to_thread(hub.kill)

        async def has_ended() -> bool:
            return bool(ends_of(await captured(amqp)))

        await eventually(has_ended)
        await asyncio.to_thread(hub.start_and_wait)
        await stands(api, id_, "completed")
        assert await log_of(api, id_) == all_lines(60)
        rest = await api.follow(id_, Last_Event_ID=str(seen[-1].id))
        assert said([*seen, *rest]) == all_lines(60)
        assert kinds(rest)[-1] == "completed"


@pytest.mark.docker
class TestSeveralInstances:
    async def test_two_instances_on_one_database_act_as_one(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, postgresql_url: str
    ) -> None:
        one, other = (make_hub(RABBIT2DOCKER_HUB__STORE_URL=postgresql_url) for _ in range(2))
        await running(make_consumer(), one, other)
        here, there = Api(one.address), Api(other.address)
        id_ = (await here.post("api/builds", create_request("both", lines=200, every=0.05))).json["id"]
        assert (await there.get(f"api/builds/{id_}")).status == 200
        seen = await until(here, id_, 30)
        further = await until(there, id_, 30, Last_Event_ID=str(seen[-1].id))
        # Whichever instance feeds the database is killed: the other one takes over.
        await asyncio.to_thread(one.kill)
        await asyncio.to_thread(one.start_and_wait)
        await asyncio.to_thread(other.kill)
        rest = await here.follow(id_, Last_Event_ID=str(further[-1].id))
        assert said([*seen, *further, *rest]) == all_lines(200)
        await stands(here, id_, "completed")
        assert await log_of(here, id_) == all_lines(200)

    async def test_an_unavailable_database_loses_no_build_and_no_record(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, postgresql_url: str
    ) -> None:
        target = urlsplit(postgresql_url)
        async with Proxy(target.port or 5432) as proxy:
            proxy.refuse(True)
            through = postgresql_url.replace(f":{target.port}/", f":{proxy.port}/")
            hub = make_hub(RABBIT2DOCKER_HUB__STORE_URL=through)
            await running(make_consumer())
            await asyncio.to_thread(hub.start)
            api = Api(hub.address)

            async def says_what_is_missing() -> bool:
                try:
                    status, _, body = await hub.viewer.raw("health")
                except aiohttp.ClientError:
                    return False
                return status == 503 and b'"database", "ok": false' in body

            await eventually(says_what_is_missing)
            id_ = (await api.post("api/builds", create_request("unrecorded", lines=20))).json["id"]
            sent = await hub.viewer.watch(build_path("watched"))
            assert sent[-1].phase == "ready"
            assert (await api.get(f"api/builds/{id_}")).status == 503
            proxy.refuse(False)
            build = await stands(api, id_, "completed")
            assert build["provider"] == "git"
            assert await log_of(api, id_) == all_lines(20)
            [watched] = (await api.get("api/builds?q=watched")).json["builds"]
            await stands(api, watched["id"], "completed")
            assert await log_of(api, watched["id"]) == all_lines(5)


class TestServiceLog:
    async def test_the_services_log_contains_no_token(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        tokens = '{"ada": "a-long-secret", "bob": "another-secret"}'
        hub = make_hub(
            RABBIT2DOCKER_HUB__AUTH="tokens",
            RABBIT2DOCKER_HUB__TOKENS=tokens,
            RABBIT2DOCKER_LOG__LEVEL="debug",
        )
        await running(make_consumer(), hub)
        anonymous = Api(hub.address)
        ada, bob = anonymous.with_token("a-long-secret"), anonymous.with_token("another-secret")
        id_ = (await ada.post("api/builds", create_request("closed"))).json["id"]
        assert (await ada.follow(id_))[-1].event == "completed"
        assert (await stands(ada, id_, "completed"))["requesters"] == ["ada"]
        assert (await bob.get(f"api/builds/{id_}")).status == 404
        for path in ("api/builds", f"api/builds/{id_}/events", "nowhere", build_path("x")):
            await hub.viewer.raw(f"{path}{'&' if '?' in path else '?'}token=a-long-secret")
        assert await asyncio.to_thread(hub.stop) == 0
        log = hub.log.read_text()
        assert log
        assert "secret" not in log
