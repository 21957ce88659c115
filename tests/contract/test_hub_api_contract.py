"""The JSON API over real HTTP and a real database; every response is checked against the OpenAPI document."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.errors import NO_SUCH_PAGE
from rabbit2docker.hub.web.openapi import document
from rabbit2docker.settings import HubAuth
from rabbit2docker_schemas import events
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.reasons import RejectReason
from tests.contract.test_binder_stream import BUILD, IMAGE, accepted, completed, failed, lines, rejected
from tests.support.hub_api import Api, happened, kinds, lines_of, shape
from tests.support.hub_service import AWAY, MemoryBuilds, a_store, serving
from tests.support.ports import free_port
from tests.support.waiting import eventually

GH = {"provider": "gh", "spec": "ada/thesis/HEAD"}
OPTIONS = {
    "subdir": "env",
    "build_args": {"A": "1"},
    "labels": {"org.example/x": "y"},
    "appendix": "RUN true",
    "timeout_seconds": 600,
}
JSON = "application/json"


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [*BUILD, completed(attempt=1, lines=3)]
    return builds


@pytest.fixture
async def small_store(tmp_path: Path) -> AsyncIterator[Store]:
    async with a_store(tmp_path, log_bytes=16_384) as store:
        yield store


@pytest.fixture
async def unreachable_store() -> AsyncIterator[Store]:
    url = f"postgresql://unknown:nothing@127.0.0.1:{free_port()}/nowhere"
    async with Store(url, "default") as store:
        yield store


@pytest.fixture
async def api(builds: MemoryBuilds, store: Store) -> AsyncIterator[Api]:
    async with serving(builds, store) as viewer:
        yield Api(viewer.address)


async def a_build(store: Store, *what: events.AnyEventData, request_id: str = "known") -> str:
    """Record a build and return its id."""
    await store.put(happened(request_id, *what))
    return build_id_of("default", request_id)


class TestCreate:
    async def test_a_new_build_is_listed_as_queued_at_once(self, api: Api, builds: MemoryBuilds) -> None:
        answer = await api.post("api/builds", GH)
        assert answer.status == 202
        build = answer.json
        assert (build["state"], build["provider"], build["spec"]) == ("queued", *GH.values())
        assert answer.headers["Location"] == f"/api/builds/{build['id']}"
        [asked] = builds.asked
        assert asked.request_id == build["request_id"]
        assert asked.requester is None
        again = (await api.get(f"api/builds/{build['id']}")).json
        assert again == build
        assert (await api.get(f"api/builds/{build['request_id']}")).json == build
        assert [each["id"] for each in (await api.get("api/builds")).json["builds"]] == [build["id"]]

    async def test_every_option_of_a_request_can_be_given(self, api: Api, builds: MemoryBuilds) -> None:
        answer = await api.post("api/builds", {**GH, **OPTIONS, "force": True})
        assert answer.json["options"] == {**OPTIONS, "force": True, "keep_cache": False}
        [asked] = builds.asked
        assert asked.force
        assert {name: getattr(asked, name) for name in OPTIONS} == OPTIONS

    @pytest.mark.parametrize(
        ("form", "provider", "spec"),
        [
            ({"url": "https://github.com/ada/thesis"}, "gh", "ada/thesis/HEAD"),
            ({"url": "https://github.com/ada/thesis/tree/a/b"}, "gh", "ada/thesis/a/b"),
            ({"url": "https://github.com/ada/thesis/blob/v1/x.ipynb"}, "gh", "ada/thesis/v1"),
            ({"url": "https://github.com/ada/thesis/tree/a", "ref": "v2"}, "gh", "ada/thesis/v2"),
            ({"url": "git@github.com:ada/thesis.git"}, "gh", "ada/thesis/HEAD"),
            (
                {"url": "https://git.example.org/ada/thesis.git", "ref": "a/b"},
                "git",
                "https%3A%2F%2Fgit.example.org%2Fada%2Fthesis.git/a%2Fb",
            ),
            ({"url": "ssh://git@git.example.org/x"}, "git", "ssh%3A%2F%2Fgit%40git.example.org%2Fx/HEAD"),
        ],
    )
    async def test_a_build_can_be_requested_by_the_repositorys_url(
        self, api: Api, builds: MemoryBuilds, form: dict[str, str], provider: str, spec: str
    ) -> None:
        answer = await api.post("api/builds", form)
        assert answer.status == 202
        assert (builds.asked[0].provider, builds.asked[0].spec) == (provider, spec)

    @pytest.mark.parametrize(
        ("form", "words"),
        [
            ({}, "Name either"),
            ({"provider": "gh"}, "Name either"),
            ({"spec": "a/b/c"}, "Name either"),
            ({**GH, "url": "https://github.com/a/b"}, "Name either"),
            ({**GH, "ref": "main"}, "`ref` goes with `url`"),
            ({"url": " "}, "Paste the URL"),
            ({**GH, "requesters": ["root"]}, "unknown field `requesters`"),
            ({**GH, "request_id": "x"}, "`credentials` and `request_id` together"),
            ({**GH, "tenant": "other"}, "unknown field `tenant`"),
            ({**GH, "subdr": "x"}, "did you mean `subdir`"),
            ({**GH, "force": "yes"}, '`force` must be true, false or "cache"'),
            ({**GH, "timeout_seconds": 1}, "`timeout_seconds` must be at least 10"),
            ({**GH, "subdir": "../x"}, "relative path"),
            ({**GH, "subdir": "a\0b"}, "null character"),
            ({"provider": "gh", "spec": "a\nb"}, "control characters"),
            ({"provider": "gh", "spec": "x" * 5000}, "at most 4096"),
            ({"provider": "../gh", "spec": "x"}, "provider"),
            ({**GH, "build_args": {"A B": "x"}}, "build argument"),
            ({"url": "https://me:secret@github.com/a/b"}, "password"),
            ({"provider": "git", "spec": "https%3A%2F%2Fme%3Asecret%40x.org%2Fr/HEAD"}, "password"),
        ],
    )
    async def test_an_invalid_request_is_refused_with_a_message_and_not_published(
        self, api: Api, builds: MemoryBuilds, store: Store, form: dict[str, Any], words: str
    ) -> None:
        answer = await api.post("api/builds", form)
        assert answer.status == 400
        assert words.lower() in answer.message.lower()
        assert "secret" not in answer.text
        assert not builds.asked
        assert (await api.get("api/builds")).json["builds"] == []

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"null", b"[" * 60_000])
    async def test_a_body_that_is_not_an_object_is_refused(
        self, api: Api, builds: MemoryBuilds, body: bytes
    ) -> None:
        answer = await api.call("POST", "api/builds", body, headers={"Content-Type": JSON})
        assert answer.status == 400
        assert not builds.asked

    async def test_two_identical_posts_make_two_requests(self, api: Api, builds: MemoryBuilds) -> None:
        first, second = await asyncio.gather(*(api.post("api/builds", GH) for _ in range(2)))
        assert first.json["id"] != second.json["id"]
        assert len(builds.asked) == 2

    async def test_a_request_that_rabbitmq_did_not_confirm_is_recorded_as_rejected(
        self, api: Api, builds: MemoryBuilds
    ) -> None:
        builds.problem = AWAY
        answer = await api.post("api/builds", GH)
        assert answer.status == 503
        assert "try again" in answer.message
        assert answer.headers["Retry-After"]
        [build] = (await api.get("api/builds")).json["builds"]
        assert (build["state"], build["problem"]["reason"]) == ("rejected", "unavailable")

    async def test_a_build_can_be_requested_while_the_database_is_unavailable(
        self, builds: MemoryBuilds, unreachable_store: Store
    ) -> None:
        async with serving(builds, unreachable_store) as viewer:
            api = Api(viewer.address)
            answer = await api.post("api/builds", GH)
            assert answer.status == 202
            assert len(builds.asked) == 1
            looking = await api.get(f"api/builds/{answer.json['id']}")
            assert (looking.status, "record of builds" in looking.message) == (503, True)
            assert (await viewer.watch("build/gh/ada/thesis/HEAD?build_only=true"))[-1].phase == "ready"


class TestRead:
    async def test_a_build_has_all_recorded_fields(self, api: Api, store: Store) -> None:
        build_id = await a_build(store, *BUILD, completed(attempt=1, lines=3, size=5))
        build = (await api.get(f"api/builds/{build_id}")).json
        assert (build["state"], build["image"], build["digest"], build["size"]) == (
            "completed",
            IMAGE,
            "sha256:1",
            5,
        )
        assert build["logs"] == [{"attempt": 1, "lines": 3, "kept": 3}]

    async def test_a_failed_build_has_a_cause_and_a_hint(self, api: Api, store: Store) -> None:
        build_id = await a_build(store, *BUILD, failed())
        problem = (await api.get(f"api/builds/{build_id}")).json["problem"]
        assert problem["reason"] == "build_step_failed"
        assert problem["category"] == "user"
        assert problem["message"]
        assert problem["hint"]

    @pytest.mark.parametrize("path", ["", "/log", "/events"])
    @pytest.mark.parametrize("id_", ["unknown", "%2e%2e", "a%2Fb", "a%00b", "x" * 129, "%27%20OR%201=1", "é"])
    async def test_an_unknown_id_is_404(self, api: Api, id_: str, path: str) -> None:
        assert (await api.get(f"api/builds/{id_}{path}")).status == 404

    async def test_builds_are_listed_page_by_page(self, api: Api, store: Store) -> None:
        made = [await a_build(store, accepted(), request_id=f"r{number}") for number in range(5)]
        found: list[str] = []
        before = ""
        while True:
            page = (await api.get(f"api/builds?limit=2{before}")).json
            found += [build["id"] for build in page["builds"]]
            if "next" not in page:
                break
            before = f"&before={page['next']}"
        assert sorted(found) == sorted(made)

    async def test_the_list_can_be_filtered(self, api: Api, store: Store) -> None:
        ended = await a_build(store, *BUILD, completed(), request_id="ended")
        broken = await a_build(store, *BUILD, failed(), request_id="broken")
        ours = await a_build(
            store,
            accepted(requester="ada").model_copy(update={"spec": "ada/other/HEAD"}),
            request_id="ours",
        )

        async def found(query: str) -> set[str]:
            return {build["id"] for build in (await api.get(f"api/builds?{query}")).json["builds"]}

        assert await found("state=completed") == {ended}
        assert await found("state=completed&state=failed") == {ended, broken}
        assert await found("requester=ada") == {ours}
        assert await found("q=other") == {ours}
        assert await found("q=nothing-like-it") == set()
        assert await found("q=%25") == set()

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=201",
            "limit=x",
            "state=asleep",
            f"q={'x' * 300}",
            "before=nonsense",
            "before=%00",
        ],
    )
    async def test_an_invalid_list_query_is_refused_with_a_message(self, api: Api, query: str) -> None:
        answer = await api.get(f"api/builds?{query}")
        assert answer.status == 400
        assert query.partition("=")[0] in answer.message


class TestLogs:
    @pytest.fixture
    async def build_id(self, store: Store) -> str:
        return await a_build(store, *BUILD, completed(attempt=1, lines=3))

    async def test_the_log_of_an_ended_build_is_plain_text(self, api: Api, build_id: str) -> None:
        answer = await api.get(f"api/builds/{build_id}/log")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.text == "Cloning into 'x'\nRUN echo \"a\"\né\u2028 \x1b[1mbold\n"
        assert "Content-Disposition" not in answer.headers

    async def test_a_range_of_lines_can_be_read(self, api: Api, build_id: str) -> None:
        assert (await api.get(f"api/builds/{build_id}/log?first=1&last=1")).text == 'RUN echo "a"\n'
        assert (await api.get(f"api/builds/{build_id}/log?first=9")).text == ""

    async def test_a_log_can_be_read_as_json(self, api: Api, build_id: str) -> None:
        answer = (await api.get(f"api/builds/{build_id}/log?format=json&first=1&last=1")).json
        assert answer["extent"] == {"attempt": 1, "lines": 3, "kept": 3}
        [line] = answer["lines"]
        assert (line["n"], line["phase"], line["text"]) == (1, "building", 'RUN echo "a"')

    async def test_a_downloaded_log_has_a_file_name(self, api: Api, build_id: str) -> None:
        answer = await api.get(f"api/builds/{build_id}/log?download=1")
        assert answer.headers["Content-Disposition"] == f'attachment; filename="build-{build_id}.log"'

    async def test_each_attempt_has_its_own_log(self, api: Api, store: Store) -> None:
        build_id = await a_build(
            store, accepted(), lines(0, "first try"), lines(0, "second try", attempt=2), request_id="twice"
        )
        assert (await api.get(f"api/builds/{build_id}/log")).text == "second try\n"
        assert (await api.get(f"api/builds/{build_id}/log?attempt=1")).text == "first try\n"
        assert (await api.get(f"api/builds/{build_id}/log?attempt=3")).status == 404

    async def test_a_log_marks_lost_lines(self, api: Api, store: Store) -> None:
        lost = events.Gap(build_id="", attempt=1, first=1, last=3)
        build_id = await a_build(store, accepted(), lines(0, "a"), lost, lines(4, "e"), request_id="holes")
        assert (
            await api.get(f"api/builds/{build_id}/log")
        ).text == "a\n[lines 1 to 3 are missing: lost]\ne\n"

    async def test_a_log_marks_lines_that_were_too_many_to_store(
        self, api: Api, small_store: Store, builds: MemoryBuilds
    ) -> None:
        many = [lines(n, *(f"line {k} {'x' * 80}" for k in range(n, n + 50))) for n in range(0, 2000, 50)]
        build_id = await a_build(small_store, accepted(), *many, completed(attempt=1, lines=2000))
        async with serving(builds, small_store) as viewer:
            api = Api(viewer.address)
            said = (await api.get(f"api/builds/{build_id}/log")).text.splitlines()
            [extent] = (await api.get(f"api/builds/{build_id}")).json["logs"]
        first, last = extent["cut_first"], extent["cut_last"]
        assert 0 < first < last < 1999
        assert (
            said[first] == f"[lines {first} to {last} are missing: the log is too long to be stored in full]"
        )
        assert said[first - 1].startswith(f"line {first - 1} ")
        assert said[first + 1].startswith(f"line {last + 1} ")
        assert said[-1].startswith("line 1999 ")

    @pytest.mark.parametrize(
        "query", ["first=-1", "first=x", "last=1&first=2", "format=xml", "attempt=0", "download=yes"]
    )
    async def test_an_invalid_log_query_is_refused(self, api: Api, build_id: str, query: str) -> None:
        answer = await api.get(f"api/builds/{build_id}/log?{query}")
        assert answer.status == 400

    async def test_a_build_without_output_has_an_empty_log(self, api: Api, store: Store) -> None:
        build_id = await a_build(store, accepted(), request_id="silent")
        assert (await api.get(f"api/builds/{build_id}/log")).text == ""
        assert (await api.get(f"api/builds/{build_id}/log?format=json")).json["lines"] == []


WHOLE = ["accepted", "progress", "progress", "log", "progress", "completed"]
"""Kinds in their order; the number of batches of lines is not part of the contract."""
LINES = [(1, 0, "Cloning into 'x'"), (1, 1, 'RUN echo "a"'), (1, 2, "é\u2028 \x1b[1mbold")]


class TestEvents:
    async def test_a_stream_has_all_events_from_accepted_to_the_end(self, api: Api) -> None:
        id_ = (await api.post("api/builds", GH)).json["id"]
        sent = await api.follow(id_)
        assert shape(sent) == WHOLE
        assert lines_of(sent) == LINES
        assert [each.data["kind"] for each in sent] == kinds(sent)
        assert sent[-1].data["data"]["image"] == IMAGE
        assert len({each.id for each in sent}) == len(sent)

    async def test_resuming_after_the_end_answers_204(self, api: Api) -> None:
        id_ = (await api.post("api/builds", GH)).json["id"]
        sent = await api.follow(id_)
        answer = await api.get(f"api/builds/{id_}/events", Last_Event_ID=str(sent[-1].id))
        assert (answer.status, answer.body) == (204, b"")

    @pytest.mark.parametrize("ended", [False, True])
    async def test_resuming_at_any_event_gets_the_rest_exactly_once(
        self, api: Api, builds: MemoryBuilds, store: Store, ended: bool
    ) -> None:
        made = (await api.post("api/builds", GH)).json
        whole = await api.follow(made["id"])
        if ended:  # the rest comes from the database then
            await store.put(happened(made["request_id"], *builds.plan))
            assert (await api.get(f"api/builds/{made['id']}")).json["state"] == "completed"
        for place in range(len(whole) - 1):
            rest = await api.follow(made["id"], Last_Event_ID=str(whole[place].id))
            assert shape([*whole[: place + 1], *rest]) == WHOLE
            assert lines_of(whole[: place + 1]) + lines_of(rest) == LINES

    async def test_resuming_does_not_depend_on_the_size_of_batches(
        self, api: Api, builds: MemoryBuilds
    ) -> None:
        id_ = (await api.post("api/builds", GH)).json["id"]
        whole = await api.follow(id_)
        builds.plan = [
            accepted(),
            lines(0, *(text for _, _, text in LINES)),
            completed(attempt=1, lines=3),
        ]
        rest = await api.follow(id_, Last_Event_ID=str(whole[3].id))
        assert lines_of(rest) == LINES[1:]

    @pytest.mark.parametrize("place", ["", "nonsense", "1.2.3", "-1.0.0.0", "9.9.9.9", "1.0.0.0\x85"])
    async def test_an_invalid_last_event_id_starts_at_the_beginning(self, api: Api, place: str) -> None:
        id_ = (await api.post("api/builds", GH)).json["id"]
        assert shape(await api.follow(id_, Last_Event_ID=place)) == WHOLE

    async def test_an_ended_build_is_streamed_from_the_database(self, api: Api, store: Store) -> None:
        id_ = await a_build(store, *BUILD, failed())
        sent = await api.follow(id_)
        assert shape(sent) == [*WHOLE[:-1], "failed"]
        assert lines_of(sent) == LINES

    async def test_a_rejection_ends_the_stream(self, api: Api, builds: MemoryBuilds) -> None:
        builds.plan = [rejected(RejectReason.NOT_ALLOWED)]
        id_ = (await api.post("api/builds", GH)).json["id"]
        [only] = await api.follow(id_)
        assert (only.event, only.data["data"]["reason"]) == ("rejected", "not_allowed")
        assert (await api.get(f"api/builds/{id_}/events", Last_Event_ID=str(only.id))).status == 204

    async def test_lost_lines_are_streamed_as_a_gap(self, api: Api, builds: MemoryBuilds) -> None:
        lost = events.Gap(build_id="", attempt=1, first=0, last=9)
        builds.plan = [accepted(), lost, lines(10, "x"), completed(attempt=1, lines=11)]
        id_ = (await api.post("api/builds", GH)).json["id"]
        sent = await api.follow(id_)
        assert kinds(sent) == ["accepted", "gap", "log", "completed"]
        rest = await api.follow(id_, Last_Event_ID="1.0.1.5")
        assert rest[0].data["data"]["first"] == 5

    async def test_a_silent_stream_gets_keepalive_comments(self, builds: MemoryBuilds, store: Store) -> None:
        builds.plan = [accepted()]
        async with serving(builds, store, keepalive_seconds=0.05) as viewer:
            api = Api(viewer.address)
            id_ = (await api.post("api/builds", GH)).json["id"]
            async with viewer.live_bytes(f"api/builds/{id_}/events") as chunks:
                seen = b""
                while seen.count(b":keepalive\n\n") < 3:
                    seen += await anext(chunks)

    async def test_a_stream_stops_when_its_reader_disconnects(self, api: Api, builds: MemoryBuilds) -> None:
        builds.plan = [accepted()]
        id_ = (await api.post("api/builds", GH)).json["id"]
        async with api.live(id_) as sent:
            assert (await anext(sent)).event == "accepted"
            assert builds.reading == 1
        await eventually(lambda: builds.reading == 0)

    async def test_too_many_readers_are_refused_with_503(self, builds: MemoryBuilds, store: Store) -> None:
        builds.plan = [accepted()]
        async with serving(builds, store, viewers=1) as viewer:
            api = Api(viewer.address)
            id_ = (await api.post("api/builds", GH)).json["id"]
            async with api.live(id_) as sent:
                await anext(sent)
                answer = await api.get(f"api/builds/{id_}/events")
                assert answer.status == 503


class TestDelete:
    async def test_a_running_build_can_be_cancelled(
        self, api: Api, builds: MemoryBuilds, store: Store
    ) -> None:
        id_ = await a_build(store, accepted(), lines(0, "x"))
        assert (await api.delete(f"api/builds/{id_}")).status == 202
        assert builds.cancelled == [(id_, "an anonymous user")]

    async def test_a_queued_request_is_withdrawn_by_its_own_id(self, api: Api, builds: MemoryBuilds) -> None:
        build = (await api.post("api/builds", GH)).json
        assert (await api.delete(f"api/builds/{build['id']}")).status == 202
        assert builds.cancelled == [(build["request_id"], "an anonymous user")]

    async def test_an_ended_build_cannot_be_cancelled(
        self, api: Api, builds: MemoryBuilds, store: Store
    ) -> None:
        id_ = await a_build(store, *BUILD, completed())
        answer = await api.delete(f"api/builds/{id_}")
        assert answer.status == 409
        assert "completed" in answer.message
        assert not builds.cancelled

    async def test_a_cancellation_that_rabbitmq_did_not_confirm_is_503(
        self, api: Api, builds: MemoryBuilds, store: Store
    ) -> None:
        id_ = await a_build(store, accepted())
        builds.problem = AWAY
        assert (await api.delete(f"api/builds/{id_}")).status == 503


class TestRebuild:
    async def test_a_rebuild_repeats_the_request(self, api: Api, builds: MemoryBuilds) -> None:
        first = (await api.post("api/builds", {**GH, **OPTIONS})).json
        answer = await api.post(f"api/builds/{first['id']}/rebuild")
        assert answer.status == 202
        assert answer.json["id"] != first["id"]
        assert answer.json["options"] == {**OPTIONS, "force": False, "keep_cache": False}
        one, other = builds.asked
        assert one.model_dump(exclude={"request_id"}) == other.model_dump(exclude={"request_id"})

    @pytest.mark.parametrize(
        ("end", "asked", "repeated"),
        [
            (completed(), {}, True),
            (completed(), {"force": True, "keep_cache": True}, True),
            (failed(), {}, False),
            (events.Cancelled(build_id="", by="ada", attempt=1), {}, False),
            (failed(), {"force": True}, True),
            (failed(), {"force": True, "keep_cache": True}, "cache"),
        ],
    )
    async def test_a_rebuild_is_forced_if_the_build_completed_or_was_forced(
        self,
        api: Api,
        store: Store,
        builds: MemoryBuilds,
        end: events.TerminalEventData,
        asked: dict[str, Any],
        repeated: bool | str,
    ) -> None:
        id_ = await a_build(store, accepted(options=events.BuildOptions(**asked)), end)
        assert (await api.post(f"api/builds/{id_}/rebuild")).status == 202
        assert builds.asked[-1].force == repeated

    @pytest.mark.parametrize(("after", "repeated"), [("completed", True), ("failed", False)])
    async def test_a_rebuild_counts_the_end_that_the_client_has_seen_before_the_store(
        self, api: Api, store: Store, builds: MemoryBuilds, after: str, repeated: bool
    ) -> None:
        id_ = await a_build(store, *BUILD)
        assert (await api.post(f"api/builds/{id_}/rebuild?after={after}")).status == 202
        assert builds.asked[-1].force is repeated
        assert (await api.post(f"api/builds/{id_}/rebuild?after=unknown")).status == 400

    async def test_a_rebuild_accepts_no_options(self, api: Api, store: Store, builds: MemoryBuilds) -> None:
        id_ = await a_build(store, *BUILD, completed())
        assert (await api.post(f"api/builds/{id_}/rebuild", {"spec": "x"})).status == 400
        assert (await api.post(f"api/builds/{id_}/rebuild", {})).status == 202
        assert len(builds.asked) == 1


class TestOpenApiDocument:
    @pytest.mark.parametrize("auth", list(HubAuth))
    def test_the_document_is_valid_openapi(self, auth: HubAuth) -> None:
        described = json.loads(json.dumps(document("/services/x/", auth)))
        assert described["openapi"].startswith("3.1")
        validate(described)
        assert [server["url"] for server in described["servers"]] == ["/services/x"]

    async def test_the_document_needs_no_token(self, builds: MemoryBuilds, store: Store) -> None:
        async with serving(builds, store, auth="tokens", tokens={"ci": "x"}) as viewer:
            status, headers, body = await viewer.raw("api/openapi.json")
        assert (status, headers["Content-Type"]) == (200, JSON)
        assert "/api/builds/{id}/events" in json.loads(body)["paths"]

    async def test_every_documented_path_exists(self, api: Api) -> None:
        for template, operations in document("/", HubAuth.NONE)["paths"].items():
            for method in {"get", "post", "delete"} & set(operations):
                path = template.lstrip("/").replace("{id}", "unknown")
                answer = await api.call(method.upper(), path)
                assert answer.status != 405
                assert NO_SUCH_PAGE not in answer.text
