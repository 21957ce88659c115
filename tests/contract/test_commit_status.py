"""Commit statuses: from the delivery of a push to the calls of GitHub's and GitLab's APIs, over real HTTP and a real store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rabbit2docker.hub.commit_status import CommitStatusWriter, make_call, report_of, send
from rabbit2docker.hub.store.models import CommitStatus
from rabbit2docker.hub.store.store import Store
from rabbit2docker.settings import HubSettings, ProviderSettings, Settings
from rabbit2docker.tasks import cancel_and_wait
from rabbit2docker_schemas import events
from rabbit2docker_schemas.ids import build_id_of
from tests.contract.test_binder_stream import BUILD, completed, failed
from tests.contract.test_webhooks import COMMIT, OTHER, SECRET, deliver, deliver_gitlab, github, gitlab
from tests.support.commit_hosts import CommitHosts, broken, commit_hosts, hung_up, known, limited
from tests.support.hub_api import happened
from tests.support.hub_service import MemoryBuilds, Viewer, serving
from tests.support.waiting import eventually

TOKEN = "a token for statuses"
WEBHOOKS: list[dict[str, Any]] = [
    {"provider": "gh", "repository": "course/*", "secret": SECRET, "status_token": TOKEN},
    {"provider": "gl", "repository": "group/sub/lecture", "secret": OTHER, "status_token": TOKEN},
    {"provider": "gh", "repository": "silent/*", "secret": SECRET},
]
STATUS = CommitStatus(request_id="r", provider="gh", repository="course/lecture", sha=COMMIT)


@pytest.fixture
async def hosts() -> AsyncIterator[CommitHosts]:
    async with commit_hosts(TOKEN) as hosts:
        yield hosts


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Viewer]:
    async with serving(MemoryBuilds(), store, webhooks=WEBHOOKS) as viewer:
        yield viewer


def settings_for(hosts: CommitHosts) -> Settings:
    providers = ProviderSettings(github_api_url=hosts.url, gitlab_api_url=f"{hosts.url}/api/v4")
    return Settings(hub=HubSettings.model_validate({"webhooks": WEBHOOKS}), providers=providers)


@asynccontextmanager
async def writing(store: Store, hosts: CommitHosts, **options: Any) -> AsyncIterator[None]:
    quick = {"poll_seconds": 0.01, "pause_seconds": 0.0, "retry_pauses": (0.01,), **options}
    public = "https://hub.example.org/services/builds/"
    writer = CommitStatusWriter(store, settings_for(hosts), public_url=public, **quick)
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        await cancel_and_wait([task])


async def ends(store: Store, request_id: str, end: events.AnyEventData) -> None:
    await store.put(happened(request_id, *BUILD, end))


async def states_are(hosts: CommitHosts, *states: str) -> None:
    await eventually(lambda: [each["state"] for each in hosts.written] == list(states))


async def left(store: Store, *, within: timedelta = timedelta(days=2)) -> list[CommitStatus]:
    """Return the statuses that are due within this time."""
    return list(await store.commit_statuses.due(datetime.now(UTC) + within, limit=10))


async def test_a_push_to_github_gets_pending_and_then_the_end_of_its_build(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    status, answer = await deliver(hub, github())
    assert status == 202
    async with writing(store, hosts):
        await states_are(hosts, "pending")
    await ends(store, answer["request_id"], completed(attempt=1))
    # Another process, as after a restart.
    async with writing(store, hosts):
        await states_are(hosts, "pending", "success")
        await eventually(lambda: has_none(store))
    build_id = build_id_of("default", answer["request_id"])
    for written in hosts.written:
        assert written["path"] == f"/repos/course/lecture/statuses/{COMMIT}"
        assert written["target_url"] == f"https://hub.example.org/services/builds/builds/{build_id}"
        assert written["context"] == "rabbit2docker"


async def has_none(store: Store) -> bool:
    return not await left(store)


async def test_a_push_to_gitlab_whose_build_failed_shows_the_reason(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    _, answer = await deliver_gitlab(hub, gitlab())
    hosts.before.append(known)
    async with writing(store, hosts):
        await eventually(lambda: hosts.calls == 1)
        await ends(store, answer["request_id"], failed().model_copy(update={"message": "x" * 300 + "\nmore"}))
        await states_are(hosts, "failed")
    [written] = hosts.written
    assert written["path"] == f"/api/v4/projects/group%2Fsub%2Flecture/statuses/{COMMIT}"
    assert written["description"] == "x" * 139 + "…"
    assert written["name"] == "rabbit2docker"


async def test_a_build_that_ended_before_anything_was_written_gets_its_end_alone(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    _, answer = await deliver(hub, github())
    await ends(store, answer["request_id"], completed(attempt=1))
    async with writing(store, hosts):
        await eventually(lambda: has_none(store))
    await states_are(hosts, "success")


async def test_a_limit_an_outage_and_a_lost_connection_are_tried_again(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    hosts.before += [limited, broken, hung_up]
    await deliver(hub, github())
    async with writing(store, hosts):
        await states_are(hosts, "pending")
    assert hosts.calls == 4


async def test_a_host_is_left_alone_for_as_long_as_it_asks(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    def busy(request: web.Request) -> web.Response:
        return web.json_response(
            {"message": "secondary rate limit"}, status=403, headers={"Retry-After": "600"}
        )

    hosts.before.append(busy)
    await deliver(hub, github())
    async with writing(store, hosts):
        await eventually(lambda: hosts.calls == 1)
        await eventually(lambda: is_tried(store))
    assert await left(store, within=timedelta(seconds=590)) == []
    [status] = await left(store)
    assert (status.tries, status.announced) == (1, False)


async def is_tried(store: Store) -> bool:
    return [status.tries for status in await left(store)] == [1]


async def test_a_refused_status_is_given_up_and_others_are_written(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    hosts.before.append(lambda request: web.json_response({"message": "Not Found"}, status=404))
    assert (await deliver(hub, github()))[0] == 202
    assert (await deliver(hub, github("course/other")))[0] == 202
    async with writing(store, hosts):
        await states_are(hosts, "pending")
        await eventually(lambda: has_none(store))
    assert hosts.calls == 2
    assert hosts.written[0]["path"].startswith("/repos/course/other/")


async def test_a_status_that_fails_again_and_again_is_given_up(
    hub: Viewer, store: Store, hosts: CommitHosts
) -> None:
    hosts.before += [broken] * 100
    await deliver(hub, github())
    async with writing(store, hosts, retry_pauses=(0.0,)):
        await eventually(lambda: has_none(store))
    assert hosts.calls == 14


async def test_without_a_token_nothing_is_written(hub: Viewer, store: Store) -> None:
    assert (await deliver(hub, github("silent/lecture")))[0] == 202
    assert await left(store) == []


async def test_a_renamed_repository_is_followed_within_the_host_and_nowhere_else(hosts: CommitHosts) -> None:
    call = make_call(settings_for(hosts), STATUS, report_of(None, ""), TOKEN)
    async with commit_hosts(TOKEN) as elsewhere, aiohttp.ClientSession() as session:

        def moved(url: str) -> web.Response:
            return web.Response(status=307, headers={"Location": url})

        hosts.before.append(lambda request: moved(f"/repositories/7/statuses/{COMMIT}"))
        assert (await send(session, call)).is_written
        assert hosts.written[-1]["path"] == f"/repositories/7/statuses/{COMMIT}"

        hosts.before.append(lambda request: moved(f"{elsewhere.url}/repositories/7/statuses/{COMMIT}"))
        answer = await send(session, call)
        assert not answer.is_written
        assert not answer.may_pass
        assert elsewhere.calls == 0


async def test_a_store_that_is_away_does_not_stop_the_build() -> None:
    builds = MemoryBuilds()
    async with (
        Store("sqlite:////proc/nowhere/hub.sqlite", "default") as away,
        serving(builds, away, webhooks=WEBHOOKS, requests_per_webhook=0) as viewer,
    ):
        status, _ = await deliver(viewer, github())
    assert (status, len(builds.asked)) == (202, 1)
