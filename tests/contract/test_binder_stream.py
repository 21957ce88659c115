"""BinderHub's routes over real HTTP, compared byte by byte with what its clients expect."""

import json
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from rabbit2docker_schemas import events
from rabbit2docker_schemas.events import Phase
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason, RejectReason
from tests.support.hub_service import AWAY, MemoryBuilds, Sent, parse, serving
from tests.support.waiting import eventually

IMAGE = "registry.example.org/r2d-ada-2dthesis-0123ab:0123"
PATH = "build/gh/ada/thesis/HEAD?build_only=true"


def accepted(**more: Any) -> events.Accepted:
    named = {
        "request_id": "",
        "build_id": "",
        "build_name": "build-ada",
        "provider": "gh",
        "spec": "ada/thesis/HEAD",
    }
    return events.Accepted(**named, resolved_ref="0123", repo_url="https://x", image=IMAGE, **more)


def progress(phase: Phase, message: str) -> events.Progress:
    return events.Progress(build_id="", attempt=1, phase=phase, message=message)


def lines(n: int, *said: str, phase: Phase = Phase.BUILDING, attempt: int = 1) -> events.Log:
    made = [events.LogLine(phase=phase, text=text, ts=datetime.now(UTC)) for text in said]
    return events.Log(build_id="", attempt=attempt, n=n, lines=made)


def completed(**more: Any) -> events.Completed:
    return events.Completed(build_id="", image=IMAGE, digest="sha256:1", resolved_ref="0123", **more)


def failed(reason: FailureReason = FailureReason.BUILD_STEP_FAILED) -> events.Failed:
    return events.Failed(
        build_id="",
        reason=reason,
        category=CATEGORY_OF[reason],
        message="The step `RUN make` ended with exit code 2.",
        hint=HINT_OF[reason],
        attempt=1,
    )


def rejected(reason: RejectReason, message: str = "Because.") -> events.Rejected:
    return events.Rejected(request_id="", reason=reason, message=message)


BUILD_FAILED_HINT = HINT_OF[FailureReason.BUILD_STEP_FAILED]
BUILD: list[events.AnyEventData] = [
    accepted(),
    progress(Phase.WAITING, "Waiting for the Docker engine"),
    progress(Phase.FETCHING, "Fetching the repository"),
    lines(0, "Cloning into 'x'", phase=Phase.FETCHING),
    lines(1, 'RUN echo "a"', "é\u2028 \x1b[1mbold"),
    progress(Phase.PUSHING, "Pushing the image"),
]
SENT = [
    {"phase": "waiting", "message": "Waiting for build to start...\n"},
    {"phase": "waiting", "message": "Waiting for the Docker engine\n"},
    {"phase": "fetching", "message": "Cloning into 'x'\n"},
    {"phase": "building", "message": 'RUN echo "a"\n'},
    {"phase": "building", "message": "é\u2028 \x1b[1mbold\n"},
    {"phase": "pushing", "message": "Pushing the image\n"},
]
READY = {"phase": "ready", "message": "Done! Image built\n", "imageName": IMAGE}


@pytest.fixture
def builds() -> MemoryBuilds:
    return MemoryBuilds()


async def test_a_build_streams_binderhubs_events_and_framing(builds: MemoryBuilds) -> None:
    builds.plan = [*BUILD, completed()]
    async with serving(builds) as viewer:
        status, headers, raw = await viewer.raw(PATH)
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["access-control-allow-headers"] == "cache-control"
    assert "access-control-allow-origin" not in headers
    request = builds.asked[0].request_id
    places = ["1.0.0", "2.0.0", "2.1.1", "2.1.2", "2.1.3", "3.1.3", "end"]
    wanted = [
        f"id: {request}:{place}\ndata: {json.dumps(data)}\n\n".encode()
        for place, data in zip(places, [*SENT, READY], strict=True)
    ]
    assert raw == b"".join(wanted)


async def test_a_wait_before_the_answer_is_said_with_its_end(builds: MemoryBuilds) -> None:
    limited = "github.com limits this service's requests. The next try is at 14:05 UTC, in 12 minutes."
    wait = events.Progress(build_id="", attempt=0, phase=Phase.WAITING, message=limited)
    builds.plan = [wait, accepted(), completed()]
    async with serving(builds) as viewer:
        sent = await viewer.watch(PATH)
    assert [event.data for event in sent] == [SENT[0], {"phase": "waiting", "message": f"{limited}\n"}, READY]


@pytest.mark.parametrize("cached", [False, True])
async def test_the_build_of_another_version_than_the_requested_one_is_said(
    builds: MemoryBuilds, cached: bool
) -> None:
    notice = "ada/thesis has no branch 'master': its default branch is used instead."
    builds.plan = [accepted(cached=cached, notice=notice), completed(cached=cached)]
    async with serving(builds) as viewer:
        sent = [event.data for event in await viewer.watch(PATH)]
    assert {"phase": "waiting", "message": f"{notice}\n"} in sent
    assert sent[-1]["phase"] == "ready"


async def test_the_first_event_does_not_wait_for_an_answer_to_the_request(builds: MemoryBuilds) -> None:
    async with serving(builds) as viewer, viewer.live(PATH) as sent:
        assert (await anext(sent)).data == SENT[0]
        assert len(builds.asked) == 1
        await builds.add(*BUILD, completed())
        assert [each.data async for each in sent] == [*SENT[1:], READY]


async def test_an_image_that_exists_is_ready_after_the_first_event(builds: MemoryBuilds) -> None:
    builds.plan = [accepted(cached=True), completed(cached=True)]
    async with serving(builds) as viewer:
        [first, only] = await viewer.watch(PATH)
    assert first.data == SENT[0]
    assert only.data == {"phase": "ready", "message": "Done! Found built image\n", "imageName": IMAGE}


async def test_a_failed_build_sends_one_event_with_cause_and_hint(builds: MemoryBuilds) -> None:
    builds.plan = [accepted(), lines(0, "make: ***"), failed()]
    async with serving(builds) as viewer:
        sent = await viewer.watch(PATH)
    assert [each.phase for each in sent] == ["waiting", "building", "failed"]
    hint = HINT_OF[FailureReason.BUILD_STEP_FAILED]
    assert sent[-1].data == {
        "phase": "failed",
        "message": f"The step `RUN make` ended with exit code 2.\n{hint}\n",
        "page": f"/builds/{builds.asked[0].request_id}",
    }


@pytest.mark.parametrize(
    ("settings", "variable", "begin"),
    [
        ({"base_url": "/services/binder/"}, None, "/services/binder/builds/"),
        (
            {"base_url": "/services/binder/"},
            "https://hub.example.org/services/binder/",
            "https://hub.example.org/services/binder/builds/",
        ),
        (
            {"public_url": "https://b.example.org"},
            "https://hub.example.org/",
            "https://b.example.org/builds/",
        ),
    ],
)
async def test_a_failed_event_links_to_the_page_of_its_build(
    builds: MemoryBuilds,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    variable: str | None,
    begin: str,
) -> None:
    if variable:
        monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", variable)
    builds.plan = [accepted(), failed()]
    hub: dict[str, Any] = settings
    async with serving(builds, **hub) as viewer:
        sent = await viewer.watch(PATH)
        page = sent[-1].data["page"]
        last_line = sent[-1].message.splitlines()[-1]
        assert last_line == (
            f"See the whole log at {page}" if page.startswith("https:") else BUILD_FAILED_HINT
        )
        assert page == f"{begin}{builds.asked[0].request_id}"
        status, _, body = await viewer.raw(f"builds/{page.rpartition('/')[2]}", Accept="text/html")
    assert (status, b"<html" in body) == (200, True)


async def test_a_cancelled_build_ends_with_a_failed_event(builds: MemoryBuilds) -> None:
    builds.plan = [accepted(), events.Cancelled(build_id="", by="ada", attempt=1)]
    async with serving(builds) as viewer:
        sent = await viewer.watch(PATH)
    assert (sent[-1].phase, sent[-1].message) == ("failed", "The build was cancelled by ada.\n")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (RejectReason.REF_NOT_FOUND, "Could not resolve ref for gh:ada/thesis/HEAD. Double check your URL"),
        (
            RejectReason.REPOSITORY_PRIVATE,
            "Could not resolve ref for gh:ada/thesis/HEAD. Double check your URL",
        ),
        (RejectReason.UNKNOWN_PROVIDER, "No provider found for prefix gh. "),
        (RejectReason.NOT_ALLOWED, "Sorry, ada/thesis/HEAD is not allowed to launch. Please contact admins"),
        (RejectReason.INVALID_SPEC, "Because."),
    ],
)
async def test_a_rejection_has_binderhubs_sentence_and_the_reason(
    builds: MemoryBuilds, reason: RejectReason, words: str
) -> None:
    builds.plan = [rejected(reason)]
    async with serving(builds) as viewer:
        [_, only] = await viewer.watch(PATH)
    assert only.phase == "failed"
    assert only.message.startswith(words)
    assert only.message.endswith("Because.\n")


async def test_lost_lines_are_reported_in_a_phase_that_ends_nothing(builds: MemoryBuilds) -> None:
    gap = events.Gap(build_id="", attempt=1, first=1, last=40)
    builds.plan = [accepted(), lines(0, "a"), gap, lines(41, "b"), completed()]
    async with serving(builds) as viewer:
        sent = await viewer.watch(PATH)
    assert [each.phase for each in sent] == ["waiting", "building", "unknown", "building", "ready"]
    assert "lines 1 to 40" in sent[2].message


async def test_a_second_attempt_continues_in_the_same_stream(builds: MemoryBuilds) -> None:
    builds.plan = [
        accepted(),
        lines(0, "a", "b"),
        progress(Phase.WAITING, "Attempt 1 failed: The node was lost. Trying again."),
        lines(0, "c", attempt=2),
        completed(),
    ]
    async with serving(builds) as viewer:
        sent = await viewer.watch(PATH)
        again = await viewer.watch(PATH, Last_Event_ID=str(sent[3].id))
    assert [each.message for each in sent[1:5]] == [
        "a\n",
        "b\n",
        "Attempt 1 failed: The node was lost. Trying again.\n",
        "c\n",
    ]
    assert [each.data for each in again] == [each.data for each in sent[4:]]


class TestKeepalive:
    async def test_a_silent_stream_gets_keepalive_comments(self, builds: MemoryBuilds) -> None:
        builds.plan = [accepted()]
        async with serving(builds, keepalive_seconds=0.05) as viewer:
            raw = b""
            async with viewer.live_bytes(PATH) as chunks:
                async for chunk in chunks:
                    raw += chunk
                    if raw.endswith(b":keepalive\n\n:keepalive\n\n"):
                        await builds.add(completed())
        assert [each.phase for each in parse(raw)] == ["waiting", "ready"]

    async def test_a_viewer_gets_waiting_before_a_consumer_takes_the_request(
        self, builds: MemoryBuilds
    ) -> None:
        async with serving(builds) as viewer, viewer.live(PATH) as sent:
            assert (await anext(sent)).data == SENT[0]
            await builds.add(*BUILD, completed())
            rest = [each.data async for each in sent]
        assert rest == [*SENT[1:], READY]


class TestResuming:
    @pytest.mark.parametrize("seen", range(1, len(SENT) + 1))
    async def test_resuming_by_last_event_id_loses_and_repeats_nothing(
        self, builds: MemoryBuilds, seen: int
    ) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            first = await viewer.watch(PATH)
            rest = await viewer.watch(PATH, Last_Event_ID=str(first[seen - 1].id))
        assert [each.data for each in rest] == [*SENT, READY][seen:]
        assert [each.id for each in rest] == [each.id for each in first[seen:]]
        assert len(builds.asked) == 1

    async def test_after_the_end_a_reconnecting_browser_gets_204(self, builds: MemoryBuilds) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            sent = await viewer.watch(PATH)
            status, _, body = await viewer.raw(PATH, Last_Event_ID=str(sent[-1].id))
        assert (status, body) == (204, b"")
        assert len(builds.asked) == 1

    @pytest.mark.parametrize(
        "id_",
        [
            "17",
            "",
            "x" * 5000,
            "hub-00000000-00-00:1.1.1",
            "hub-6924e0f0-" + "0" * 20 + "-" + "0" * 20 + ":1.1.1",
        ],
    )
    async def test_an_invalid_last_event_id_starts_a_new_request(
        self, builds: MemoryBuilds, id_: str
    ) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            sent = await viewer.watch(PATH, Last_Event_ID=id_)
        assert [each.data for each in sent] == [*SENT, READY]

    async def test_a_last_event_id_gives_no_access_to_another_build(self, builds: MemoryBuilds) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            sent = await viewer.watch(PATH)
            other = await viewer.watch(PATH.replace("ada", "bob"), Last_Event_ID=str(sent[3].id))
        assert len(other) == len(sent)
        assert [request.spec for request in builds.asked] == ["ada/thesis/HEAD", "bob/thesis/HEAD"]

    async def test_another_instance_resumes_a_stream(self, builds: MemoryBuilds) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            sent = await viewer.watch(PATH)
        async with serving(builds) as viewer:
            rest = await viewer.watch(PATH, Last_Event_ID=str(sent[2].id))
        assert [each.data for each in rest] == [*SENT, READY][3:]


class TestErrorEvents:
    async def only(self, builds: MemoryBuilds, path: str, **hub: Any) -> Sent:
        async with serving(builds, **hub) as viewer:
            [only] = await viewer.watch(path)
        assert only.phase == "failed"
        assert only.message.endswith("\n")
        assert not builds.asked
        return only

    @pytest.mark.parametrize("query", ["", "?build_only=false", "?build_only=1", "?launch=true"])
    async def test_without_build_only_the_request_is_refused(self, builds: MemoryBuilds, query: str) -> None:
        sent = await self.only(builds, "build/gh/ada/thesis/HEAD" + query)
        assert sent.data["status_code"] == 400
        assert "build_only=true" in sent.message

    @pytest.mark.parametrize("provider", ["GH", "-", "%20", "g" * 40])
    async def test_an_invalid_provider_is_refused(self, builds: MemoryBuilds, provider: str) -> None:
        sent = await self.only(builds, f"build/{provider}/ada/thesis/HEAD?build_only=true")
        assert sent.message.startswith("No provider found for prefix")

    async def test_a_spec_that_is_too_long_is_refused(self, builds: MemoryBuilds) -> None:
        sent = await self.only(builds, f"build/gh/ada/{'x' * 5000}/HEAD?build_only=true")
        assert "4096" in sent.message

    async def test_an_unavailable_rabbitmq_is_a_failed_event_with_503(self, builds: MemoryBuilds) -> None:
        builds.problem = AWAY
        sent = await self.only(builds, PATH)
        assert sent.data["status_code"] == 503

    async def test_too_many_viewers_get_a_failed_event_with_503(self, builds: MemoryBuilds) -> None:
        async with serving(builds, viewers=1) as viewer, viewer.live(PATH) as first:
            await anext(first)
            [only] = await viewer.watch(PATH)
        assert only.data["status_code"] == 503

    async def test_an_internal_error_is_a_failed_event_with_500(self, builds: MemoryBuilds) -> None:
        builds.problem = ZeroDivisionError()
        sent = await self.only(builds, PATH)
        assert sent.data["status_code"] == 500


class TestRequests:
    @pytest.mark.parametrize(
        "accept",
        ["text/event-stream", "text/event-stream, */*", "*/*", "application/json", "text/event-stream;q=0.9"],
    )
    async def test_every_accept_header_is_accepted(self, builds: MemoryBuilds, accept: str) -> None:
        builds.plan = [*BUILD, completed()]
        async with serving(builds) as viewer:
            assert len(await viewer.watch(PATH, Accept=accept)) == len(SENT) + 1

    async def test_escapes_in_a_spec_are_kept(self, builds: MemoryBuilds) -> None:
        builds.plan = [completed()]
        spec = "https%3A%2F%2Fgit.example.org%2Fada%2Fx/feature%2Fy"
        async with serving(builds, base_url="/services/binder/") as viewer:
            await viewer.watch(f"build/git/{spec}/?build_only=True")
        assert (builds.asked[0].provider, builds.asked[0].spec) == ("git", spec)

    async def test_concurrent_requests_for_the_same_spec_share_one_request(
        self, builds: MemoryBuilds
    ) -> None:
        async with serving(builds) as viewer, viewer.live(PATH) as one, viewer.live(PATH) as other:
            assert (await anext(one)).data == (await anext(other)).data
            async with viewer.live(PATH.replace("thesis", "notes")) as third:
                await anext(third)
        assert [request.spec for request in builds.asked] == ["ada/thesis/HEAD", "ada/notes/HEAD"]

    async def test_a_request_after_the_end_of_a_build_is_a_new_one(self, builds: MemoryBuilds) -> None:
        builds.plan = [accepted(), failed()]
        async with serving(builds) as viewer:
            await viewer.watch(PATH)
            await viewer.watch(PATH)
        assert len({request.request_id for request in builds.asked}) == 2

    async def test_a_stream_stops_when_its_viewer_disconnects(self, builds: MemoryBuilds) -> None:
        builds.plan = [accepted()]
        async with serving(builds) as viewer:
            async with viewer.live(PATH) as sent:
                await anext(sent)
                await eventually(lambda: builds.reading == 1)
            await eventually(lambda: builds.reading == 0)


TOKENS: dict[str, Any] = {"auth": "tokens", "tokens": {"ada": "ada-secret"}}
ADA = {"Authorization": "Bearer ada-secret"}
BANNED = {"ban_networks": {"127.0.0.0/8": "here"}}
SVN, NO_LAUNCH, LONG = "build/svn/x/HEAD", "build/gh/ada/thesis/HEAD", f"build/gh/{'x' * 5000}"


class TestOrderOfChecks:
    """Of several errors, the first in BinderHub's order is reported."""

    @pytest.mark.parametrize(
        ("path", "hub", "headers", "expected"),
        [
            (f"{SVN}?build_token=x", {**TOKENS, **BANNED}, {}, (403, "Requests from here are not allowed\n")),
            (f"{SVN}?build_token=x", TOKENS, {}, (403, "A token is required")),
            (f"{SVN}?build_token=x", TOKENS, ADA, (403, "Invalid build token\n")),
            (f"{SVN}?build_only=true", TOKENS, ADA, (None, "No provider found for prefix svn.")),
            (NO_LAUNCH, TOKENS, ADA, (400, "This service builds images and does not launch servers")),
            (f"{LONG}?build_only=true", TOKENS, ADA, (400, "`spec` must have at most 4096")),
        ],
    )
    async def test_the_first_of_several_errors_in_binderhubs_order_is_reported(
        self,
        builds: MemoryBuilds,
        path: str,
        hub: dict[str, Any],
        headers: dict[str, str],
        expected: tuple[int | None, str],
    ) -> None:
        async with serving(builds, **hub) as viewer:
            status, got, raw = await viewer.raw(path, **headers)
        [only] = parse(raw)
        assert (status, got["content-type"], got["cache-control"]) == (200, "text/event-stream", "no-cache")
        assert (only.phase, only.data.get("status_code")) == ("failed", expected[0])
        assert only.message.startswith(expected[1])
        assert only.id is None
        assert raw.endswith(b"\n\n")
        assert raw.count(b"data: ") == 1
        assert not builds.asked

    async def test_an_unknown_provider_is_refused_with_the_list_of_known_ones(
        self, builds: MemoryBuilds
    ) -> None:
        async with serving(builds) as viewer:
            [only] = await viewer.watch(f"{SVN}?build_only=true")
        assert only.data == {
            "phase": "failed",
            "message": "No provider found for prefix svn. There are gh, git, gist, gl, zenodo, figshare, hydroshare, "
            "dataverse and ckan.\n",
        }


class TestMethods:
    @pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH"])
    async def test_a_build_route_answers_get_only(self, builds: MemoryBuilds, method: str) -> None:
        async with (
            serving(builds) as viewer,
            aiohttp.ClientSession() as session,
            session.request(method, viewer.address + PATH) as answer,
        ):
            assert answer.status == 405
        assert not builds.asked

    async def test_a_page_of_the_allowed_origin_may_send_a_token(self, builds: MemoryBuilds) -> None:
        asked = {"Origin": "https://lab.example.org", "Access-Control-Request-Headers": "authorization"}
        async with (
            serving(builds, **TOKENS, allow_origin="https://lab.example.org") as viewer,
            aiohttp.ClientSession() as session,
            session.options(viewer.address + PATH, headers=asked) as answer,
        ):
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "https://lab.example.org"
            assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert "last-event-id" in answer.headers["Access-Control-Allow-Headers"]
        assert not builds.asked

    async def test_health_answers_head(self, builds: MemoryBuilds) -> None:
        async with (
            serving(builds) as viewer,
            aiohttp.ClientSession() as session,
            session.head(f"{viewer.address}health") as answer,
        ):
            assert answer.status == 200


@pytest.mark.parametrize(
    ("allowed", "header"), [(None, "*"), ("https://lab.example.org", "https://lab.example.org")]
)
async def test_pages_of_other_origins_may_read_the_versions(
    builds: MemoryBuilds, allowed: str | None, header: str
) -> None:
    async with serving(builds, allow_origin=allowed) as viewer:
        status, headers, _ = await viewer.raw("versions", Origin="https://lab.example.org")
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, header)


class TestMalformedRequests:
    @pytest.mark.parametrize(
        "path",
        [
            "build/gh/ada/thesis/HEAD?build_only=%ff",
            "build/gh/ada/thesis/HEAD?build_only=true&build_token=%ff",
            "build/%ff/ada/thesis/HEAD?build_only=true",
        ],
    )
    async def test_a_malformed_request_is_refused_in_the_stream_without_an_internal_error(
        self, builds: MemoryBuilds, path: str
    ) -> None:
        async with serving(builds) as viewer:
            [only] = await viewer.watch(path)
        assert only.phase == "failed"
        assert only.data.get("status_code") != 500
        assert not builds.asked

    async def test_a_spec_with_invalid_utf8_is_passed_on_unchanged(self, builds: MemoryBuilds) -> None:
        builds.plan = [rejected(RejectReason.INVALID_SPEC)]
        async with serving(builds) as viewer:
            [_, only] = await viewer.watch("build/gh/ada/%ff/HEAD?build_only=true")
        assert (only.phase, builds.asked[0].spec) == ("failed", "ada/%ff/HEAD")

    @pytest.mark.parametrize("only", ["true", "True", "TRUE"])
    async def test_build_only_is_case_insensitive(self, builds: MemoryBuilds, only: str) -> None:
        builds.plan = [accepted(cached=True), completed(cached=True)]
        async with serving(builds) as viewer:
            [_, ready] = await viewer.watch(f"{NO_LAUNCH}?build_only={only}")
        assert ready.phase == "ready"
