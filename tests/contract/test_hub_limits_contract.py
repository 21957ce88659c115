"""Rate limits, build tokens, network bans and places in the queue, over real HTTP and counted in a real database."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import aiohttp
import jwt
import pytest

from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.build_tokens import mint
from rabbit2docker_schemas.events import Phase, Progress, ProgressDetail
from tests.contract.test_binder_stream import BUILD, PATH, accepted, completed
from tests.support.hub_service import MemoryBuilds, Sent, Viewer, parse, serving
from tests.support.ports import free_port

ADA, BOB, ROOT = ({"Authorization": f"Bearer {name}-secret"} for name in ("ada", "bob", "root"))
NAMED: dict[str, Any] = {
    "auth": "tokens",
    "tokens": {name: f"{name}-secret" for name in ("ada", "bob", "root")},
    "admins": ["root"],
    "share_seconds": 0,
    "requests_per_user": 2,
}
SECRET = "5e" * 32


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [*BUILD, completed()]
    return builds


async def post(viewer: Viewer, path: str = "api/builds", **headers: str) -> tuple[int, Any, Any]:
    """Request a build by the JSON API."""
    request = {"provider": "gh", "spec": "ada/thesis/HEAD"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(viewer.address + path, json=request, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.json()


async def ends(viewer: Viewer, path: str = PATH, **headers: str) -> Sent:
    return (await viewer.watch(path, **headers))[-1]


class TestRateLimit:
    async def test_the_rate_limit_is_a_failed_event_with_429_and_headers(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store, **NAMED) as viewer:
            for left in (1, 0):
                status, headers, raw = await viewer.raw(PATH, **ADA)
                assert (status, parse(raw)[-1].phase) == (200, "ready")
                assert headers["X-RateLimit-Limit"] == "2"
                assert headers["X-RateLimit-Remaining"] == str(left)
                assert 0 < int(headers["X-RateLimit-Reset"]) - time.time() <= 3601
            status, headers, raw = await viewer.raw(PATH, **ADA)
            assert status == 200
            assert headers["content-type"] == "text/event-stream"
            [only] = parse(raw)
            assert (only.phase, only.data["status_code"]) == ("failed", 429)
            begin = (
                "Rate limit exceeded. You (ada) have requested 2 builds within an hour, which is the limit. "
            )
            assert only.message.startswith(begin)
            assert only.message.removeprefix(begin) in (
                "Try again in 60 minutes.\n",
                "Try again in 59 minutes.\n",
            )
            assert headers["X-RateLimit-Remaining"] == "0"
            assert len(builds.asked) == 2
            assert (await ends(viewer, **BOB)).phase == "ready"

    async def test_the_json_api_answers_429_for_the_same_limit(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store, **NAMED) as viewer:
            assert (await ends(viewer, **ADA)).phase == "ready"
            status, headers, _ = await post(viewer, **ADA)
            assert (status, headers["X-RateLimit-Remaining"]) == (202, "0")
            status, headers, said = await post(viewer, **ADA)
            assert status == said["status"] == 429
            assert said["message"].startswith("Rate limit exceeded. You (ada) have requested 2 builds")
            assert 0 < int(headers["Retry-After"]) <= 3601
            assert headers["X-RateLimit-Limit"] == "2"
            assert headers["X-RateLimit-Remaining"] == "0"
            assert len(builds.asked) == 2
            assert (await viewer.raw("api/builds", **ADA))[0] == 200

    async def test_a_rebuild_counts_for_the_limit(self, builds: MemoryBuilds, store: Store) -> None:
        async with (
            serving(builds, store, **NAMED) as viewer,
            aiohttp.ClientSession(headers=ADA, skip_auto_headers=["Content-Type"]) as session,
        ):
            _, _, made = await post(viewer, **ADA)
            seen = []
            for _ in range(2):
                async with session.post(f"{viewer.address}api/builds/{made['id']}/rebuild") as answer:
                    seen.append(answer.status)
        assert seen == [202, 429]

    async def test_instances_share_the_count(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, **NAMED) as one, serving(builds, store, **NAMED) as other:
            phases = [(await ends(each, **ADA)).phase for each in (one, other, one, other)]
        assert phases == ["ready", "ready", "failed", "failed"]

    async def test_resuming_does_not_count(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, **{**NAMED, "requests_per_user": 1}) as viewer:
            sent = await viewer.watch(PATH, **ADA)
            for each in sent[:-1]:
                assert (await ends(viewer, Last_Event_ID=str(each.id), **ADA)).phase == "ready"
            assert (await ends(viewer, **ADA)).data["status_code"] == 429

    async def test_an_invalid_request_does_not_count(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, **{**NAMED, "requests_per_user": 1}) as viewer:
            for path in (
                "build/svn/ada/thesis/HEAD?build_only=true",
                "build/gh/ada/thesis/HEAD",
                f"build/gh/{'x' * 5000}?build_only=true",
            ):
                assert (await ends(viewer, path, **ADA)).phase == "failed"
            assert (await ends(viewer, **ADA)).phase == "ready"

    async def test_sharing_a_request_does_not_count(self, builds: MemoryBuilds, store: Store) -> None:
        builds.plan = [accepted()]
        hub = {**NAMED, "share_seconds": 60, "requests_per_user": 1}
        async with serving(builds, store, **hub) as viewer, viewer.live(PATH, **BOB) as bobs:
            await anext(bobs)
            async with viewer.live(PATH, **ADA) as adas, viewer.live(PATH, **ADA) as again:
                assert (await anext(adas)).phase == (await anext(again)).phase == "waiting"
        assert len(builds.asked) == 1

    async def test_many_anonymous_viewers_behind_one_address_share_one_request(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        # It does not end before all of them have come: a later viewer would make another request.
        builds.plan = [accepted()]
        async with (
            serving(builds, store, requests_per_address=1, share_seconds=60) as viewer,
            AsyncExitStack() as leaving,
        ):
            coming = (leaving.enter_async_context(viewer.live(PATH)) for _ in range(60))
            crowd = await asyncio.gather(*coming)
            firsts = await asyncio.gather(*(anext(events) for events in crowd))
            assert {first.phase for first in firsts} == {"waiting"}
            other = await ends(viewer, PATH.replace("thesis", "notes"))
        assert other.message.startswith("Rate limit exceeded. Your address (127.0.0.1) has requested 1 build")
        assert len(builds.asked) == 1

    async def test_a_rate_limited_user_does_not_block_others(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        hub = {**NAMED, "share_seconds": 60, "requests_per_user": 1}
        async with serving(builds, store, **hub) as viewer:
            assert (await ends(viewer, PATH.replace("thesis", "notes"), **ADA)).phase == "ready"
            adas, bobs = await asyncio.gather(ends(viewer, **ADA), ends(viewer, **BOB))
        assert bobs.phase == "ready"
        assert adas.phase in ("ready", "failed")
        assert [request.requester for request in builds.asked] == ["ada", "bob"]

    async def test_addresses_behind_trusted_proxies_are_counted(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store, requests_per_address=1, share_seconds=0) as viewer:
            phases = [
                (await ends(viewer, X_Forwarded_For=header)).phase
                for header in ("192.0.2.7", "198.51.100.3, 192.0.2.7", "192.0.2.8", "192.0.2.8:99")
            ]
        assert phases == ["ready", "failed", "ready", "failed"]

    async def test_admins_have_no_limit(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, **NAMED) as viewer:
            for _ in range(4):
                status, headers, raw = await viewer.raw(PATH, **ROOT)
                assert (status, parse(raw)[-1].phase) == (200, "ready")
                assert "X-RateLimit-Limit" not in headers

    async def test_an_unavailable_database_lifts_the_limit(self, builds: MemoryBuilds) -> None:
        url = f"postgresql://unknown:nothing@127.0.0.1:{free_port()}/nowhere"
        async with Store(url, "default") as nowhere, serving(builds, nowhere, **NAMED) as viewer:
            for _ in range(4):
                assert (await ends(viewer, **ADA)).phase == "ready"


class TestServices:
    """Services are limited apart from people, and those that act for people count as the person they name."""

    SERVICES: ClassVar[dict[str, Any]] = {
        **NAMED,
        "tokens": {**NAMED["tokens"], "ci": "ci-secret"},
        "services": ["ci"],
        "requests_per_user": 1,
    }
    CI: ClassVar = {"Authorization": "Bearer ci-secret"}

    async def test_a_service_has_no_limit_by_default_and_its_own_if_one_is_set(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store, **self.SERVICES) as viewer:
            assert [(await ends(viewer, **self.CI)).phase for _ in range(3)] == ["ready"] * 3
        async with serving(builds, store, **self.SERVICES, requests_per_service=2) as viewer:
            phases = [(await ends(viewer, **self.CI)).phase for _ in range(3)]
            refused = await ends(viewer, **self.CI)
            assert (await ends(viewer, **ADA)).phase == "ready"
        assert phases == ["ready", "ready", "failed"]
        assert "The service ci has requested 2 builds within an hour" in refused.message

    async def test_a_build_for_a_person_counts_for_that_person(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        async with serving(builds, store, **self.SERVICES) as viewer:
            assert (await ends(viewer, f"{PATH}&requester=ada", **self.CI)).phase == "ready"
            assert (await ends(viewer, **ADA)).data["status_code"] == 429
            assert (await ends(viewer, f"{PATH}&requester=ada", **self.CI)).data["status_code"] == 429
            assert (await ends(viewer, f"{PATH}&requester=bob", **self.CI)).phase == "ready"
        assert [request.requester for request in builds.asked] == ["ada", "bob"]


class TestOpenStreams:
    async def test_one_user_at_the_limit_leaves_others_their_streams(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        builds.plan = [accepted()]
        hub = {**NAMED, "requests_per_user": 0, "share_seconds": 60, "viewers_per_user": 2}
        async with serving(builds, store, **hub) as viewer, viewer.live(PATH, **ADA) as one:
            await anext(one)
            api = f"api/builds/{builds.asked[0].request_id}/events"
            async with viewer.live(api, **ADA) as two:
                await anext(two)
                [only] = await viewer.watch(PATH, **ADA)
                status, headers, body = await viewer.raw(api, **ADA)
                async with viewer.live(PATH, **BOB) as bobs:
                    assert (await anext(bobs)).phase == "waiting"
            await eventually_watches(viewer, PATH, **ADA)
        assert (only.phase, only.data["status_code"]) == ("failed", 429)
        assert only.message == (
            "You (ada) have 2 streams of events open at once, which is the limit. Close some of them, then try again.\n"
        )
        assert (status, json.loads(body)["message"] + "\n") == (429, only.message)
        assert int(headers["Retry-After"]) > 0

    async def test_clients_without_a_name_are_limited_by_address(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        builds.plan = [accepted()]
        async with (
            serving(builds, store, viewers_per_user=1) as viewer,
            viewer.live(PATH, X_Forwarded_For="192.0.2.7") as one,
        ):
            await anext(one)
            [only] = await viewer.watch(PATH, X_Forwarded_For="192.0.2.7")
            async with viewer.live(PATH, X_Forwarded_For="192.0.2.8") as other:
                assert (await anext(other)).phase == "waiting"
        assert only.message.startswith("Your address (192.0.2.7) has 1 stream of events open at once")

    async def test_a_service_holds_the_streams_of_many_people(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        builds.plan = [accepted()]
        hub = {**TestServices.SERVICES, "share_seconds": 60, "viewers_per_user": 1}
        async with (
            serving(builds, store, **hub) as viewer,
            viewer.live(PATH, **TestServices.CI) as one,
            viewer.live(PATH, **TestServices.CI) as two,
            viewer.live(f"{PATH}&requester=ada", **TestServices.CI) as adas,
        ):
            assert [(await anext(each)).phase for each in (one, two, adas)] == ["waiting"] * 3
            [only] = await viewer.watch(f"{PATH}&requester=ada", **TestServices.CI)
        assert only.data["status_code"] == 429


async def eventually_watches(viewer: Viewer, path: str, **headers: str) -> None:
    """Wait until a stream is not refused any more: the service notices a closed connection a little later."""
    while True:
        async with viewer.live(path, **headers) as sent:
            if (await anext(sent)).phase == "waiting":
                return


class TestBuildTokens:
    def token(self, viewer: Viewer, **wrong: Any) -> str:
        """Return a token as BinderHub's own page makes it."""
        host = viewer.address.removeprefix("http://").rstrip("/")
        claims = {"exp": int(time.time()) + 300, "aud": "gh/ada/thesis/HEAD", "origin": host, **wrong}
        return jwt.encode(claims, key=bytes.fromhex(SECRET), algorithm="HS256")

    async def test_a_valid_build_token_lifts_the_limit(self, builds: MemoryBuilds, store: Store) -> None:
        hub = {**NAMED, "requests_per_user": 1, "build_token_secret": SECRET}
        async with serving(builds, store, **hub) as viewer:
            free = f"{PATH}&build_token={self.token(viewer)}"
            for _ in range(3):
                assert (await ends(viewer, free, **ADA)).phase == "ready"
            assert (await ends(viewer, **ADA)).phase == "ready"
            assert (await ends(viewer, **ADA)).data["status_code"] == 429
            assert (await ends(viewer, free, **ADA)).phase == "ready"

    async def test_a_build_token_does_not_authenticate(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, **{**NAMED, "build_token_secret": SECRET}) as viewer:
            only = await ends(viewer, f"{PATH}&build_token={self.token(viewer)}")
        assert only.data["status_code"] == 403
        assert "token is required" in only.message
        assert not builds.asked

    @pytest.mark.parametrize(
        "wrong", [{"aud": "gh/ada/notes/HEAD"}, {"origin": "evil.example.org"}, {"exp": 1_000_000_000}]
    )
    async def test_a_build_token_for_another_build_is_refused_in_binderhubs_words(
        self, builds: MemoryBuilds, store: Store, wrong: dict[str, Any]
    ) -> None:
        async with serving(builds, store, build_token_secret=SECRET) as viewer:
            [only] = await viewer.watch(f"{PATH}&build_token={self.token(viewer, **wrong)}")
        assert only.data == {"phase": "failed", "status_code": 403, "message": "Invalid build token\n"}
        assert not builds.asked

    async def test_without_a_secret_no_build_token_is_valid(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store) as viewer:
            [only] = await viewer.watch(f"{PATH}&build_token={self.token(viewer)}")
        assert only.message == "Invalid build token\n"

    async def test_a_build_token_is_checked_against_the_pages_origin_and_the_escaped_spec(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        spec = "https%3A%2F%2Fgit.example.org%2Fx/main"
        token = mint(SECRET, "git", spec, origin="hub.example.org")
        path = f"build/git/{spec}?build_only=true&build_token={token}"
        async with serving(builds, store, build_token_secret=SECRET) as viewer:
            assert (await ends(viewer, path, Origin="https://hub.example.org")).phase == "ready"
            assert (await ends(viewer, path)).message == "Invalid build token\n"


class TestBannedNetworks:
    async def test_a_banned_network_is_refused_everywhere_but_for_probes(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        hub: dict[str, Any] = {"ban_networks": {"192.0.2.0/24": "the lab"}}
        there = {"X_Forwarded_For": "192.0.2.9"}
        async with serving(builds, store, **hub) as viewer:
            [only] = await viewer.watch(PATH, **there)
            assert only.data == {
                "phase": "failed",
                "status_code": 403,
                "message": "Requests from the lab are not allowed\n",
            }
            for path in (
                "api/builds",
                "api/builds/x/events",
                "api/repoproviders",
                "api/openapi.json",
                "nowhere",
            ):
                status, _, body = await viewer.raw(path, **there)
                assert (status, json.loads(body)["message"]) == (403, "Requests from the lab are not allowed")
            for path in ("", "new"):
                status, _, body = await viewer.raw(path, Accept="text/html", **there)
                assert status == 403
                assert b"the lab" in body
            for path in ("health", "versions", "metrics"):
                assert (await viewer.raw(path, **there))[0] == 200
            status, _, said = await post(viewer, **{"X-Forwarded-For": "192.0.2.9"})
            assert (status, said["status"]) == (403, 403)
            assert not builds.asked
            assert (await ends(viewer, X_Forwarded_For="198.51.100.1")).phase == "ready"

    async def test_a_forged_forwarded_address_does_not_lift_the_ban(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        hub: dict[str, Any] = {"ban_networks": {"127.0.0.0/8": "here"}, "trusted_proxies": []}
        async with serving(builds, store, **hub) as viewer:
            assert (await ends(viewer, X_Forwarded_For="198.51.100.1")).phase == "failed"

    async def test_a_forged_forwarded_address_does_not_ban_a_client(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        hub: dict[str, Any] = {"ban_networks": {"192.0.2.0/24": "the lab"}, "trusted_proxies": ["10.0.0.0/8"]}
        async with serving(builds, store, **hub) as viewer:
            assert (await ends(viewer, X_Forwarded_For="192.0.2.9")).phase == "ready"

    async def test_the_ban_is_checked_before_everything_else(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        hub = {**NAMED, "ban_networks": {"127.0.0.0/8": "here"}}
        async with serving(builds, store, **hub) as viewer:
            [only] = await viewer.watch("build/svn/x?build_token=x")
        assert only.message == "Requests from here are not allowed\n"


def place(ahead: int) -> Progress:
    """Return the announcement of a place; the stream passes its text on."""
    detail = ProgressDetail(ahead=ahead)
    return Progress(build_id="", attempt=0, phase=Phase.WAITING, message=f"{ahead} before.", detail=detail)


PHASES = ["waiting", "fetching", "building", "building", "pushing", "ready"]


class TestPlaces:
    async def test_a_waiting_viewer_gets_its_place_until_the_request_is_accepted(
        self, builds: MemoryBuilds
    ) -> None:
        builds.plan = [place(3)]
        async with serving(builds) as viewer, viewer.live(PATH) as sent:
            first = await anext(sent)
            assert first.data == {"phase": "waiting", "message": "Waiting for build to start...\n"}
            shown = await anext(sent)
            assert shown.data == {"phase": "waiting", "message": "3 before.\n"}
            assert shown.id is None
            await builds.add(place(0))
            assert (await anext(sent)).message == "0 before.\n"
            # An announcement that was published at the moment of the acceptance is out of date.
            await builds.add(BUILD[0], place(0), *BUILD[1:], completed())
            rest = [each async for each in sent]
        assert [each.phase for each in rest] == PHASES
        assert str(rest[0].id).endswith(":2.0.0")

    async def test_a_waiting_viewer_resumes_without_loss(self, builds: MemoryBuilds) -> None:
        builds.plan = [place(3)]
        async with serving(builds) as viewer, viewer.live(PATH) as sent:
            seen = [await anext(sent), await anext(sent)]
        async with serving(builds) as other, other.live(PATH, Last_Event_ID=str(seen[0].id)) as sent:
            assert (await anext(sent)).message == "3 before.\n"
            await builds.add(*BUILD, completed())
            rest = [each async for each in sent]
        assert [each.phase for each in rest] == PHASES
        assert len(builds.asked) == 1

    async def test_readers_of_the_json_api_get_places_without_ids(
        self, builds: MemoryBuilds, store: Store
    ) -> None:
        builds.plan = [place(3), BUILD[0], place(0), *BUILD[1:], completed()]
        async with serving(builds, store) as viewer:
            _, _, made = await post(viewer)
            async with viewer.live_bytes(f"api/builds/{made['id']}/events") as chunks:
                frames = b"".join([chunk async for chunk in chunks]).split(b"\n\n")
        [shown] = [frame for frame in frames if b"ahead" in frame]
        assert shown == b'event: queue\ndata: {"ahead":3}'
        ids = [frame for frame in frames if frame.startswith(b"id: ")]
        assert ids[1].startswith(b"id: 1.1."), "places do not count in positions"
        assert b"event: completed" in ids[-1]

    async def test_nothing_is_said_of_an_unknown_place(self, builds: MemoryBuilds) -> None:
        builds.plan = []
        async with serving(builds, keepalive_seconds=0.05) as viewer:
            raw = b""
            async with viewer.live_bytes(PATH) as chunks:
                async for chunk in chunks:
                    raw += chunk
                    if raw.endswith(b":keepalive\n\n:keepalive\n\n"):
                        await builds.add(accepted(), completed())
        assert [each.phase for each in parse(raw)] == ["waiting", "ready"]
