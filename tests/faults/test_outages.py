"""Outages of what requests and builds need: they wait, others go on, and all of them end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings
from rabbit2docker_schemas.events import Accepted, Completed, Progress, Rejected
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest
from tests.faults.conftest import MakeConsumer, ask
from tests.support.consumer import Consumer, a_request
from tests.support.promises import captured, check_promises, until_answered, until_ended
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker
MANIFEST = json.dumps({"schemaVersion": 2, "layers": [{"size": 7}]})


class PushedImages:
    """A registry that has what the fake docker of a consumer has pushed; a proxy stands before it."""

    def __init__(self, docker: Path) -> None:
        app = web.Application()
        app.router.add_get("/v2/{name:.+}/manifests/{tag}", self._answer)
        self.server = TestServer(app)
        self._pushed = docker / "pushed"

    @asynccontextmanager
    async def behind_proxy(self) -> AsyncIterator[Proxy]:
        async with self.server, Proxy(self.server.port or 0) as proxy:
            yield proxy

    async def _answer(self, request: web.Request) -> web.Response:
        pushed = self._pushed.read_text() if self._pushed.exists() else ""
        is_there = f"/{request.match_info['name']}:{request.match_info['tag']}\n" in pushed
        headers = {"Docker-Distribution-Api-Version": "registry/2.0"}
        return web.Response(status=200 if is_there else 404, text=MANIFEST, headers=headers)


def with_registry(port: int, **variables: str) -> dict[str, str]:
    """Return the settings of a consumer whose registry is at `port`."""
    return {
        "RABBIT2DOCKER_IMAGES__CHECK_REGISTRY": "true",
        "RABBIT2DOCKER_IMAGES__PREFIX": f"127.0.0.1:{port}/r2d-",
        **variables,
    }


async def waits(amqp: AmqpSettings) -> dict[str, list[Progress]]:
    """Return the announced waits of all builds."""
    found: dict[str, list[Progress]] = {}
    for event in await captured(amqp):
        if isinstance(event.data, Progress) and event.data.detail.gives_up_at:
            found.setdefault(event.data.build_id, []).append(event.data)
    return found


def degraded(consumer: Consumer) -> str:
    """Return what a ready consumer says of its outages."""
    status, body = consumer.get("/health/ready")
    assert status == 200
    return " ".join(json.loads(body)["degraded"])


async def test_requests_wait_for_the_registry_and_none_of_them_fails(
    make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
) -> None:
    builds = [a_request(f"b{number}", lines=1) for number in range(4)]
    requests = [
        build.model_copy(update={"request_id": f"{build.request_id}-{number}"})
        for build in builds
        for number in range(10)
    ]
    names = [str(request.request_id) for request in requests]
    async with PushedImages(tmp_path / "docker").behind_proxy() as proxy:
        proxy.refuse(True)
        consumer = make_consumer(**with_registry(proxy.port))
        await asyncio.to_thread(consumer.start_and_wait)
        await ask(settings, *requests)

        async def all_wait() -> bool:
            return len(await waits(amqp)) == len(names)

        await eventually(all_wait)
        assert f"127.0.0.1:{proxy.port} cannot be reached" in degraded(consumer)
        assert 'rabbit2docker_dependencies_away{kind="registry"} 1.0' in consumer.get("/metrics")[1]
        proxy.refuse(False)

        async def built() -> set[str]:
            accepted = [event.data for event in await captured(amqp) if isinstance(event.data, Accepted)]
            is_complete = {answer.request_id for answer in accepted} == set(names)
            return {answer.build_id for answer in accepted} if is_complete else set()

        events = await until_ended(amqp, len(await eventually(built)))
        assert not [event for event in events if isinstance(event.data, Rejected)]
        assert all(isinstance(end, Completed) for end in check_promises(events, names).values())
        # A wait is announced once, however many rounds it takes.
        assert all(len(found) == 1 for found in (await waits(amqp)).values())
        await eventually(lambda: degraded(consumer) == "")
        consumer.stop()


async def test_builds_and_requests_wait_for_the_engine_across_a_restart_while_others_go_on(
    make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings, tmp_path: Path
) -> None:
    async with PushedImages(tmp_path / "docker").behind_proxy() as proxy:
        consumer = make_consumer(
            **with_registry(
                proxy.port,
                RABBIT2DOCKER_BUILDER__PUSH_RETRIES="0",
                RABBIT2DOCKER_BUILDER__DOCKER_WAIT_SECONDS="2",
            )
        )
        await asyncio.to_thread(consumer.start_and_wait)
        release = tmp_path / "release"
        await ask(settings, a_request("known", lines=1), a_request("begun", hold=release))
        await until_ended(amqp, 1)
        away = consumer.fake_docker / "away"
        away.touch()
        release.touch()
        await eventually(lambda: "Docker engine" in degraded(consumer))
        known = a_request("known", lines=1).model_copy(update={"request_id": "image-exists"})
        await ask(settings, a_request("waiting"), a_request("withdrawn"), known)
        expected = {build_id_of("default", name) for name in ("begun", "waiting", "withdrawn")}

        async def all_wait() -> bool:
            return set(await waits(amqp)) == expected

        await eventually(all_wait)
        [cached] = [
            event.data
            for event in await until_answered(amqp, 3)
            if isinstance(event.data, Accepted) and event.data.request_id == "image-exists"
        ]
        assert cached.cached
        await asyncio.to_thread(consumer.kill)
        await asyncio.to_thread(consumer.start_and_wait)
        await eventually(lambda: "Docker engine" in degraded(consumer))
        async with publishing(settings, wait_seconds=180) as publisher:
            await RequestPublisher(publisher, "default").cancel(CancelRequest(request_id="withdrawn"))

        async def rejections() -> set[tuple[str, str]]:
            rejected = [event.data for event in await captured(amqp) if isinstance(event.data, Rejected)]
            return {(answer.request_id, str(answer.reason)) for answer in rejected}

        assert await eventually(rejections) == {("withdrawn", "cancelled")}
        away.unlink()
        events = await until_ended(amqp, 4)
        ends = check_promises(events, ["known", "begun", "waiting", "image-exists"])
        assert all(isinstance(end, Completed) for end in ends.values())
        assert (ends["begun"].attempt, ends["waiting"].attempt) == (2, 1)
        consumer.stop()


async def test_a_host_that_says_nothing_delays_only_the_requests_that_name_it(
    make_consumer: MakeConsumer, amqp: AmqpSettings, settings: Settings
) -> None:
    connections = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.read(4096):
            pass
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = quote(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/r", safe="")
    consumer = make_consumer(
        RABBIT2DOCKER_PROVIDERS__TIMEOUT="1", RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS="3"
    )
    await asyncio.to_thread(consumer.start_and_wait)
    dead = [BuildRequest(provider="git", spec=f"{url}/main", request_id=f"dead{n}") for n in range(40)]
    await ask(settings, *dead, a_request("alive", lines=1))
    ends = check_promises(await until_ended(amqp, 1), ["alive"])
    assert isinstance(ends["alive"], Completed)
    # Without a breaker, each of the others would have waited for the host in turn.
    assert connections < 15

    async def all_wait() -> bool:
        return len(await waits(amqp)) == len(dead)

    await eventually(all_wait)
    consumer.stop()
    server.close()
