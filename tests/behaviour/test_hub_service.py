"""BinderHub's routes of `rabbit2docker hub` with real HTTP, RabbitMQ, consumer and service processes."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
from aiohttp import web

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Accepted, Completed
from rabbit2docker_schemas.providers import PROVIDERS
from tests.behaviour.conftest import MakeHub
from tests.faults.conftest import MakeConsumer
from tests.support.consumer import Consumer
from tests.support.hub_service import HubService, Sent, build_path, parse, texts
from tests.support.ports import free_port
from tests.support.promises import captured, check_promises, ends_of
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

MEGABYTE = 1024 * 1024


def doing(**options: object) -> dict[str, str]:
    """Return the settings with which every build of a consumer does this."""
    arguments = [
        word for name, value in options.items() for word in ("--build-arg", f"{name.upper()}={value}")
    ]
    return {"RABBIT2DOCKER_BUILDER__REPO2DOCKER_ARGS": json.dumps(arguments)}


async def started(
    make_consumer: MakeConsumer, make_hub: MakeHub, **options: object
) -> tuple[Consumer, HubService]:
    consumer, hub = make_consumer(**doing(**options)), make_hub()
    await asyncio.to_thread(consumer.start_and_wait)
    await asyncio.to_thread(hub.start_and_wait)
    return consumer, hub


def all_lines(count: int) -> list[str]:
    return [f"line {number} of the build" for number in range(count)]


async def accepted_in(amqp: AmqpSettings) -> list[Accepted]:
    return [event.data for event in await captured(amqp) if isinstance(event.data, Accepted)]


@asynccontextmanager
async def registry_that_has_everything() -> AsyncIterator[str]:
    async def manifest(request: web.Request) -> web.Response:
        return web.json_response(
            {"schemaVersion": 2, "layers": []},
            content_type="application/vnd.oci.image.manifest.v1+json",
            headers={"Docker-Content-Digest": f"sha256:{'a' * 64}"},
        )

    app = web.Application()
    app.router.add_get("/v2/{path:.*}", manifest)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    try:
        yield urlsplit(site.name).netloc
    finally:
        await runner.cleanup()


class TestBuilds:
    async def test_a_build_streams_events_from_waiting_to_ready(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        _, hub = await started(make_consumer, make_hub)
        sent = await hub.viewer.watch(build_path("plain"))
        assert sent[0].data == {"phase": "waiting", "message": "Waiting for build to start...\n"}
        assert texts(sent) == all_lines(5)
        phases = [each.phase for each in sent]
        assert phases.index("fetching") < phases.index("building") < phases.index("ready")
        [end] = ends_of(await captured(amqp)).values()
        assert isinstance(end.data, Completed)
        assert sent[-1].data == {
            "phase": "ready",
            "message": "Done! Image built\n",
            "imageName": end.data.image,
        }
        assert phases.count("ready") == 1
        assert "failed" not in phases

    async def test_a_failed_build_sends_one_failed_event_with_a_message(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        _, hub = await started(make_consumer, make_hub, fail=3)
        sent = await hub.viewer.watch(build_path("broken"))
        assert [each.phase for each in sent].count("failed") == 1
        assert sent[-1].phase == "failed"
        assert "make it so" in sent[-1].message

    async def test_a_rejected_request_is_a_failed_event(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        _, hub = await started(make_consumer, make_hub)
        [unknown] = await hub.viewer.watch("build/svn/x/y?build_only=true")
        assert unknown.message.startswith("No provider found for prefix svn.")
        [*_, unreadable] = await hub.viewer.watch("build/gh/ada?build_only=true")
        assert unreadable.phase == "failed"
        traversal = await hub.viewer.watch("build/gh/%2e%2e/%2e%2e%2fetc/HEAD?build_only=true")
        assert [each.phase for each in traversal] == ["waiting", "failed"]

    async def test_an_image_that_exists_is_ready_without_a_build(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        async with registry_that_has_everything() as registry:
            consumer = make_consumer(
                RABBIT2DOCKER_IMAGES__CHECK_REGISTRY="true", RABBIT2DOCKER_IMAGES__PREFIX=f"{registry}/r2d-"
            )
            hub = make_hub()
            await asyncio.to_thread(consumer.start_and_wait)
            await asyncio.to_thread(hub.start_and_wait)
            sent = await hub.viewer.watch(build_path("known"))
        assert [each.phase for each in sent] == ["waiting", "ready"]
        assert sent[-1].message == "Done! Found built image\n"
        [accepted] = await accepted_in(amqp)
        assert sent[-1].data["imageName"] == f"{accepted.image}@sha256:{'a' * 64}"


class TestViewers:
    async def test_two_viewers_see_one_build_from_its_beginning(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        consumer, hub = (
            make_consumer(**doing(lines=60, every=0.05)),
            make_hub(RABBIT2DOCKER_HUB__SHARE_SECONDS="0"),
        )
        await asyncio.to_thread(consumer.start_and_wait)
        await asyncio.to_thread(hub.start_and_wait)
        async with hub.viewer.live(build_path("shared")) as sent:
            seen = [await anext(sent)]
            while len(texts(seen)) < 10:
                seen.append(await anext(sent))
            late = asyncio.create_task(hub.viewer.watch(build_path("shared")))
            seen += [each async for each in sent]
        assert texts(seen) == texts(await late) == all_lines(60)
        assert (await late)[-1].data == seen[-1].data
        assert len(consumer.records()) == 1
        assert [accepted.attached for accepted in await accepted_in(amqp)] == [False, True]

    async def test_two_hundred_viewers_of_one_build_all_get_everything(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        consumer, hub = await started(make_consumer, make_hub, lines=300, every=0.03)
        all_viewers = await asyncio.gather(*(hub.viewer.watch(build_path("popular")) for _ in range(200)))
        assert {tuple(texts(sent)) for sent in all_viewers} == {tuple(all_lines(300))}
        assert {sent[-1].phase for sent in all_viewers} == {"ready"}
        assert len(consumer.records()) == 1
        requests = [accepted.request_id for accepted in await accepted_in(amqp)]
        assert len(requests) < 5
        check_promises(await captured(amqp), requests)

    async def test_a_viewer_who_disconnects_does_not_stop_the_build(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        _, hub = await started(make_consumer, make_hub, lines=20, every=0.05)
        async with hub.viewer.live(build_path("left")) as sent:
            await anext(sent)

        async def has_ended() -> bool:
            return bool(ends_of(await captured(amqp)))

        await eventually(has_ended)
        [end] = ends_of(await captured(amqp)).values()
        assert isinstance(end.data, Completed)

    async def test_a_stalled_viewer_is_disconnected_and_takes_no_memory(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        consumer = make_consumer(**doing(lines=30_000))
        hub = make_hub(RABBIT2DOCKER_HUB__STALLED_SECONDS="2")
        await asyncio.to_thread(consumer.start_and_wait)
        await asyncio.to_thread(hub.start_and_wait)
        assert hub.process is not None
        before = psutil.Process(hub.process.pid).memory_info().rss
        slow = [a_slow_reader(hub, build_path("long")) for _ in range(20)]
        try:
            everything = await hub.viewer.watch(build_path("long"))
            assert texts(everything) == all_lines(30_000)
            # 20 times 5 MB, if it were kept for them.
            assert psutil.Process(hub.process.pid).memory_info().rss - before < 60 * MEGABYTE

            async def are_let_go() -> bool:
                _, _, raw = await hub.viewer.raw("metrics")
                return b'hub_streams_total{end="stalled"} 20.0' in raw

            await eventually(are_let_go)
            got = parse(await asyncio.to_thread(what_is_left, slow[0]))
        finally:
            for each in slow:
                each.close()
        assert 0 < len(got) < 30_000
        rest = await hub.viewer.watch(build_path("long"), Last_Event_ID=str(got[-1].id))
        assert texts(got) + texts(rest) == all_lines(30_000)


class TestResuming:
    async def test_viewers_resume_without_loss_after_the_service_was_killed(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        _, hub = await started(make_consumer, make_hub, lines=100, every=0.05)
        seen = await some(hub, build_path("back"), 20)
        await asyncio.to_thread(hub.kill)
        await asyncio.to_thread(hub.start_and_wait)
        rest = await hub.viewer.watch(build_path("back"), Last_Event_ID=str(seen[-1].id))
        assert texts(seen) + texts(rest) == all_lines(100)
        assert [each.phase for each in [*seen, *rest]].count("ready") == 1
        assert "waiting" not in [each.phase for each in rest]

    async def test_a_viewer_who_resumes_after_the_end_gets_the_rest(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        consumer, hub = await started(make_consumer, make_hub, lines=40, every=0.02)
        seen = await some(hub, build_path("later"), 10)
        await hub.viewer.watch(build_path("later"))
        await asyncio.to_thread(hub.stop)
        await asyncio.to_thread(hub.start_and_wait)
        rest = await hub.viewer.watch(build_path("later"), Last_Event_ID=str(seen[-1].id))
        assert texts(seen) + texts(rest) == all_lines(40)
        assert rest[-1].phase == "ready"
        assert len(await accepted_in(amqp)) == len(consumer.records()) == 1

    async def test_a_viewer_who_resumes_before_rabbitmq_is_back_waits_for_it(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        url = urlsplit(amqp.url.get_secret_value())
        async with Proxy(url.port or 5672) as proxy:
            there = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{proxy.port}").geturl()
            consumer = make_consumer(**doing(lines=40, every=0.02))
            hub = make_hub(RABBIT2DOCKER_AMQP__URL=there, RABBIT2DOCKER_HUB__CONNECT_SECONDS="0.2")
            await asyncio.to_thread(consumer.start_and_wait)
            await asyncio.to_thread(hub.start_and_wait)
            seen = await some(hub, build_path("patient"), 10)
            await asyncio.to_thread(hub.stop)
            proxy.refuse(True)
            hub.start()

            async def refusal() -> Sent | None:
                with suppress(OSError, aiohttp.ClientError):
                    return (await hub.viewer.watch(build_path("impatient")))[-1]
                return None

            viewing = asyncio.create_task(rest_of(hub, build_path("patient"), str(seen[-1].id)))
            refused = await eventually(refusal)
            assert refused
            assert refused.data["status_code"] == 503
            assert not viewing.done()
            proxy.refuse(False)
            rest = await viewing
        assert rest
        assert texts(seen) + texts(rest) == all_lines(40)
        assert rest[-1].phase == "ready"

    async def test_viewers_do_not_notice_a_lost_connection_to_rabbitmq(
        self, make_consumer: MakeConsumer, make_hub: MakeHub, amqp: AmqpSettings
    ) -> None:
        url = urlsplit(amqp.url.get_secret_value())
        async with Proxy(url.port or 5672) as proxy:
            there = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{proxy.port}").geturl()
            consumer = make_consumer(**doing(lines=100, every=0.03))
            hub = make_hub(RABBIT2DOCKER_AMQP__URL=there)
            await asyncio.to_thread(consumer.start_and_wait)
            await asyncio.to_thread(hub.start_and_wait)
            async with hub.viewer.live(build_path("cut")) as sent:
                seen = [await anext(sent)]
                while len(texts(seen)) < 30:
                    seen.append(await anext(sent))
                proxy.cut()
                seen += [each async for each in sent]
        assert texts(seen) == all_lines(100)
        assert seen[-1].phase == "ready"


class TestServiceProcess:
    async def test_the_service_starts_without_rabbitmq_and_reports_what_is_missing(
        self, make_hub: MakeHub
    ) -> None:
        hub = make_hub(
            RABBIT2DOCKER_AMQP__URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/",
            RABBIT2DOCKER_HUB__CONNECT_SECONDS="1",
        )
        hub.start()

        async def answers() -> tuple[int, dict[str, object]] | None:
            try:
                status, _, body = await hub.viewer.raw("health")
            except (OSError, aiohttp.ClientError):
                return None
            return status, json.loads(body)

        found = await eventually(answers)
        assert found
        status, said = found
        assert status == 503
        assert said["ok"] is False
        [only] = await hub.viewer.watch(build_path("unserved"))
        assert only.data["status_code"] == 503

    async def test_sigterm_stops_the_service_and_closes_streams_without_a_final_event(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        _, hub = await started(make_consumer, make_hub, lines=400, every=0.05)
        viewing = asyncio.create_task(hub.viewer.raw(build_path("stopped")))

        async def is_watched() -> bool:
            _, _, raw = await hub.viewer.raw("metrics")
            return b"hub_viewers 1.0" in raw

        await eventually(is_watched)
        assert await asyncio.to_thread(hub.stop) == 0
        _, _, raw = await viewing  # fails if the connection broke in the middle of the response
        assert b"retry: " in raw[-20:]
        assert not {"ready", "failed"} & {each.phase for each in parse(raw)}
        assert not [
            line for line in map(json.loads, hub.log.read_text().splitlines()) if line["level"] == "error"
        ]

    async def test_health_versions_and_metrics_describe_the_service(
        self, make_consumer: MakeConsumer, make_hub: MakeHub
    ) -> None:
        _, hub = await started(make_consumer, make_hub)
        status, _, body = await hub.viewer.raw("versions")
        assert status == 200
        assert {"builder_info", "binderhub", "builder"} <= set(json.loads(body))
        status, _, body = await hub.viewer.raw("health")
        assert (status, json.loads(body)) == (
            200,
            {
                "ok": True,
                "checks": [
                    {"service": name, "ok": True} for name in ("RabbitMQ", "record of builds", "database")
                ],
            },
        )
        _, _, body = await hub.viewer.raw("api/repoproviders")
        assert [kind["id"] for kind in json.loads(body)] == list(PROVIDERS)
        status, _, _ = await hub.viewer.raw("metrics")
        assert status == 200
        assert (await hub.viewer.raw("version"))[0] == 404


async def some(hub: HubService, path: str, lines: int) -> list[Sent]:
    """Watch until so many lines have come, or the connection is gone."""
    seen: list[Sent] = []
    try:
        async with hub.viewer.live(path) as sent:
            async for each in sent:
                seen.append(each)
                if len(texts(seen[-1:])) and len(texts(seen)) >= lines:
                    break
    except (OSError, aiohttp.ClientError):
        pass
    return seen


async def rest_of(hub: HubService, path: str, last_id: str) -> list[Sent]:
    """Return the rest of a stream, from the first connection that the service accepts."""
    while True:
        try:
            return await hub.viewer.watch(path, Last_Event_ID=last_id)
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)


def a_slow_reader(hub: HubService, path: str) -> socket.socket:
    """Request a build and read nothing of its stream."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    host, port = hub.bind.split(":")
    made.connect((host, int(port)))
    made.sendall(f"GET /{path} HTTP/1.0\r\nHost: hub\r\n\r\n".encode())
    return made


def what_is_left(slow: socket.socket) -> bytes:
    """Return what the kernel had buffered of the stream, up to the last whole event."""
    slow.settimeout(60)
    got = b""
    try:
        while chunk := slow.recv(65_536):
            got += chunk
    except ConnectionResetError:
        pass
    _, _, body = got.partition(b"\r\n\r\n")
    return body[: body.rfind(b"\n\n") + 2]
