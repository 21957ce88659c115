"""The choice of requests, from messages as the streams have them to the plan of a replay."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rabbit2docker.amqp.stream_scan import StreamMessage
from rabbit2docker.consumer.providers.specs import pin
from rabbit2docker.replay.images import built_images
from rabbit2docker.replay.logged import UnreadableRequest, read_logged
from rabbit2docker.replay.plan import Candidate, Plan
from rabbit2docker.replay.publication import began_at, body_of, new_replay_id, request_id_of
from rabbit2docker.replay.selection import Selection
from rabbit2docker.replay.workspace import Workspace
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import (
    Accepted,
    AnyEventData,
    BuildOptions,
    Cancelled,
    Completed,
    Failed,
    Rejected,
)
from rabbit2docker_schemas.ids import EventId, build_id_of
from rabbit2docker_schemas.parsing import read_request
from rabbit2docker_schemas.reasons import Category, FailureReason, RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.routing import request_key

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPLAY = new_replay_id(NOW)


class Past:
    """A log and its events, written as the service writes them."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.messages: list[StreamMessage] = []
        self.minutes = 0

    def _at(self) -> datetime:
        self.minutes += 1
        return NOW - timedelta(hours=10) + timedelta(minutes=self.minutes)

    def log(self, id_: str, spec: str = "o/r/main", *, tenant: str = "alpha", **fields: Any) -> "Past":
        body = json.dumps({"provider": "gh", "spec": spec, "request_id": id_, **fields}).encode()
        at = self._at()
        self.messages.append(
            StreamMessage(
                len(self.messages), request_key(tenant, "interactive"), {}, body, "application/json", None, at
            )
        )
        return self

    def event(self, data: AnyEventData, tenant: str = "alpha") -> "Past":
        event = Event(EventId(f"e{self.minutes}"), tenant, self._at(), data)
        message = StreamMessage(0, event.routing_key, event.headers(), event.body(), None, None, event.time)
        self.workspace.beginnings.setdefault(tenant, (NOW - timedelta(days=7)).timestamp())
        self.workspace.add_events(tenant, [message], NOW)
        return self

    def accepted(self, id_: str, *, build: str | None = None, ref: str = COMMIT, image: str = "") -> "Past":
        data = Accepted(
            request_id=id_,
            build_id=build or build_id_of("alpha", id_),
            build_name="b",
            provider="gh",
            spec="o/r/main",
            resolved_ref=ref,
            repo_url="https://github.com/o/r",
            image=image or f"i/o-r:{ref}",
            options=BuildOptions(),
        )
        return self.event(data)

    def completed(
        self, id_: str, version: str | None = "2025.1", *, ref: str = COMMIT, image: str = "", **more: Any
    ) -> "Past":
        data = Completed(
            build_id=build_id_of("alpha", id_),
            image=image or f"i/o-r:{ref}",
            digest="sha256:1",
            resolved_ref=ref,
            repo2docker_version=version,
            **more,
        )
        return self.event(data)

    def failed(self, id_: str, reason: FailureReason = FailureReason.DISK_FULL) -> "Past":
        category = Category.INFRASTRUCTURE
        return self.event(
            Failed(
                build_id=build_id_of("alpha", id_),
                reason=reason,
                category=category,
                message="m",
                hint="h",
                attempt=1,
            )
        )

    def rejected(self, id_: str, reason: RejectReason) -> "Past":
        return self.event(Rejected(request_id=id_, reason=reason, message="No."))

    def built(self, id_: str, version: str | None = "2025.1", **more: Any) -> "Past":
        return self.log(id_).accepted(id_).completed(id_, version, **more)

    def plan(self, **conditions: Any) -> tuple[list[Candidate], Plan]:
        period = {"since": NOW - timedelta(days=1), "until": NOW}
        selection = Selection(**{**period, **conditions})
        self.workspace.query("DELETE FROM requests")
        requests = map(read_logged, self.messages)
        self.workspace.add_requests(
            request
            for request in requests
            if selection.is_asked_for(request)
            and (not selection.tenants or request.tenant in selection.tenants)
        )
        self.workspace.finish()
        plan = Plan(self.workspace, selection)
        return list(plan.candidates()), plan

    def chosen(self, **conditions: Any) -> list[str]:
        return [one.newest.request_id for one in self.plan(**conditions)[0] if not one.excluded]

    def excluded(self, **conditions: Any) -> list[str]:
        return [one.excluded for one in self.plan(**conditions)[0] if one.excluded]


@pytest.fixture
def past() -> Iterator[Past]:
    found = Past()
    yield found
    found.workspace.close()


class TestGroups:
    def test_equal_requests_are_one_whatever_their_ids_and_requesters(self, past: Past) -> None:
        past.built("a").log("b", requester="ada").accepted("b").completed("b").built("c")
        [one], plan = past.plan()
        assert (one.newest.request_id, one.requests) == ("c", 3)
        assert (plan.totals.chosen, plan.totals.requests) == (1, 3)

    def test_options_and_unknown_fields_of_a_later_version_make_a_difference(self, past: Past) -> None:
        past.log("a").log("b", subdir="x").log("c", colour="green").log("d", labels={"a": "b"})
        assert past.plan()[1].totals.excluded.total() == 4

    def test_a_redelivery_that_is_logged_twice_counts_once(self, past: Past) -> None:
        past.built("a")
        past.messages.append(past.messages[0])
        [one], _ = past.plan()
        assert one.requests == 1

    def test_tenants_stay_apart(self, past: Past) -> None:
        past.built("a").log("b", tenant="beta")
        past.workspace.beginnings["beta"] = 0.0
        found, _ = past.plan(outcomes=("completed", "never-ended"))
        assert [(one.tenant, one.newest.request_id) for one in found] == [("alpha", "a"), ("beta", "b")]

    def test_with_the_same_commit_equal_images_are_one_and_the_spec_names_the_commit(
        self, past: Past
    ) -> None:
        other = "f" * 40
        past.built("a").log("b").accepted("b", ref=other).completed("b", ref=other).log("never-accepted")
        found, _ = past.plan(same_commit=True, outcomes=("completed",))
        assert [one.content["spec"] for one in found] == [f"o/r/{COMMIT}", f"o/r/{other}"]


class TestOutcomes:
    @pytest.mark.parametrize(
        ("outcome", "expected"),
        [
            ("completed", ["a"]),
            ("failed", ["b"]),
            ("failed:disk_full", ["b"]),
            ("failed:infrastructure", ["b"]),
            ("failed:user", []),
            ("cancelled", ["c"]),
            ("rejected", ["d"]),
            ("rejected:expired", ["d"]),
            ("never-ended", ["e", "f"]),
        ],
    )
    def test_an_outcome_chooses_its_own(self, past: Past, outcome: str, expected: list[str]) -> None:
        past.log("a", "o/a/main").accepted("a").completed("a")
        past.log("b", "o/b/main").accepted("b").failed("b")
        past.log("c", "o/c/main").accepted("c")
        past.event(Cancelled(build_id=build_id_of("alpha", "c"), by="ada", attempt=1))
        past.log("d", "o/d/main").rejected("d", RejectReason.EXPIRED)
        past.log("e", "o/e/main").accepted("e").log("f", "o/f/main")
        assert sorted(past.chosen(outcomes=(outcome,))) == expected

    def test_what_failed_and_then_completed_is_left_out(self, past: Past) -> None:
        past.log("a").accepted("a").failed("a").built("b")
        assert past.excluded(outcomes=("failed",)) == ["has been rebuilt since"]

    def test_what_runs_is_left_out(self, past: Past) -> None:
        past.built("a").log("b").accepted("b")
        assert past.excluded() == ["has not ended yet; `--outcome never-ended` chooses it"]

    def test_a_request_that_joined_has_the_end_of_the_build_that_it_joined(self, past: Past) -> None:
        past.log("a", "o/a/main").log("b", "o/b/main").accepted("a")
        past.accepted("b", build=build_id_of("alpha", "a")).failed("a")
        assert sorted(past.chosen(outcomes=("failed",))) == ["a", "b"]

    def test_an_end_before_a_new_acceptance_belongs_to_an_earlier_build(self, past: Past) -> None:
        past.log("a").accepted("a").failed("a")
        past.minutes += 5
        past.accepted("a")
        assert past.chosen(outcomes=("never-ended",)) == ["a"]

    def test_an_outcome_older_than_the_events_is_not_taken_for_none(self, past: Past) -> None:
        past.log("a")
        past.workspace.beginnings["alpha"] = NOW.timestamp()
        assert past.excluded(outcomes=("never-ended",)) == [
            "outcome not known any more: the events are deleted"
        ]

    def test_events_after_the_moment_of_the_choice_do_not_change_it(self, past: Past) -> None:
        past.log("a").accepted("a")
        past.minutes += 24 * 60
        past.completed("a")
        assert past.chosen(outcomes=("never-ended",)) == ["a"]

    def test_a_poison_request_is_only_replayed_by_its_name(self, past: Past) -> None:
        past.log("a").rejected("a", RejectReason.DELIVERY_LIMIT)
        assert past.excluded()[0].startswith("the service failed on it before")
        assert past.chosen(outcomes=("rejected:delivery_limit",)) == ["a"]
        assert past.chosen(ids=("a",)) == ["a"]


class TestBuilders:
    def test_an_older_version_is_chosen_and_a_newer_one_is_not(self, past: Past) -> None:
        past.log("a", "o/a/main").accepted("a", image="i/a:1").completed("a", "2025.1", image="i/a:1")
        past.log("b", "o/b/main").accepted("b", image="i/b:1").completed("b", "2026.4.0", image="i/b:1")
        past.log("c", "o/c/main").accepted("c", image="i/c:1").completed("c", None, image="i/c:1")
        assert past.chosen(built_with=("repo2docker<2026.4",)) == ["a"]
        assert past.excluded(built_with=("repo2docker<2026.4",)) == ["not known what built it"]

    def test_an_image_that_existed_has_the_version_of_its_build(self, past: Past) -> None:
        past.built("a").log("b").accepted("b").completed("b", None, cached=True)
        [one], _ = past.plan(built_with=("repo2docker<2026.4",))
        assert (one.newest.request_id, one.newest.outcome.repo2docker) == ("b", "2025.1")

    def test_what_a_newer_builder_has_rebuilt_is_left_out(self, past: Past) -> None:
        past.built("a").log("replay", replay_of="a").accepted("replay")
        past.completed("replay", "2026.4", image=f"i/o-r:{COMMIT}@sha256:2")
        assert past.chosen(built_with=("repo2docker<2026.4",)) == []

    def test_what_failed_to_be_rebuilt_is_not_tried_each_night(self, past: Past) -> None:
        past.built("a").log("replay", replay_of="a").accepted("replay").failed("replay")
        assert past.excluded(built_with=("repo2docker<2026.4",)) == ["its replay ended as failed: disk_full"]

    def test_what_is_being_rebuilt_is_left_out(self, past: Past) -> None:
        past.built("a").log("replay", replay_of="a")
        assert past.excluded(built_with=("repo2docker<2026.4",)) == [
            "is being replayed already: that has not ended yet"
        ]

    def test_the_image_of_the_build_pod_chooses_or_excludes(self, past: Past) -> None:
        past.built("a", builder_image="quay.io/r2d:1")
        for glob, expected in (("quay.io/*", ["a"]), ("!quay.io/*", []), ("!quay.io/r2d:2", ["a"])):
            assert past.chosen(builder_images=(glob,)) == expected


class TestRequests:
    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            ({"repositories": ("o/*",)}, ["a"]),
            ({"repositories": ("O/A",)}, ["a"]),
            ({"repositories": ("git.example.org/*",)}, ["b"]),
            ({"repositories": ("https://git.example.org/x/y",)}, ["b"]),
            ({"providers": ("git",)}, ["b"]),
            ({"requesters": ("ada",)}, ["b"]),
            ({"tenants": ("beta",)}, []),
            ({"ids": ("a",)}, ["a"]),
            ({"ids": (build_id_of("alpha", "b"),)}, ["b"]),
            ({"images": ("i/a:*",)}, ["a"]),
            ({"since": NOW - timedelta(minutes=1)}, []),
        ],
    )
    def test_a_condition_chooses(self, past: Past, conditions: dict[str, Any], expected: list[str]) -> None:
        past.log("a", "o/a/main").accepted("a", image="i/a:1").completed("a", image="i/a:1")
        git = "https%3A%2F%2Fgit.example.org%2Fx%2Fy.git/HEAD"
        past.log("b", git, provider="git", requester="ada").accepted("b", image="i/b:1").completed(
            "b", image="i/b:1"
        )
        assert past.chosen(**conditions) == expected

    def test_a_tenant_without_a_stream_is_named(self, past: Past) -> None:
        past.log("a", tenant="gone")
        found, _ = past.plan(ids=("a",))
        assert "the tenant gone has no stream any more" in found[0].excluded

    def test_a_request_that_this_version_cannot_carry_out_is_named(self, past: Past) -> None:
        past.log("a", subdir="../outside").accepted("a").completed("a")
        assert past.excluded() == [
            "cannot be read by this version: `subdir` must be a relative path inside the repository."
        ]

    @pytest.mark.parametrize(
        "body", [b"", b"\xff", b"[]", b"{}", b'{"provider": 1, "spec": 2}', b'{"a":' * 100_000]
    )
    def test_what_is_no_request_is_said_and_nothing_else_raised(self, body: bytes) -> None:
        message = StreamMessage(0, request_key("alpha", "bulk"), {}, body, None, None, NOW)
        with pytest.raises(UnreadableRequest):
            read_logged(message)

    def test_a_request_of_another_schema_version_is_named(self) -> None:
        headers = {"ce-type": "io.rabbit2docker.build.requested.v0"}
        body = json.dumps({"provider": "gh", "spec": "o/r/main"}).encode()
        message = StreamMessage(0, request_key("alpha", "bulk"), headers, body, None, None, NOW)
        with pytest.raises(UnreadableRequest, match=r"requested\.v0"):
            read_logged(message)

    def test_a_structured_cloudevent_is_read(self) -> None:
        data = {"provider": "gh", "spec": "o/r/main"}
        event = {
            "specversion": "1.0",
            "id": "x",
            "type": "io.rabbit2docker.build.requested.v1",
            "source": "s",
            "data": data,
        }
        body = json.dumps(event).encode()
        message = StreamMessage(
            0, request_key("alpha", "bulk"), {}, body, "application/cloudevents+json", None, NOW
        )
        found = read_logged(message)
        assert (found.request_id, found.content["spec"]) == ("x", "o/r/main")

    @pytest.mark.parametrize(
        "conditions",
        [
            {"outcomes": ("finished",)},
            {"outcomes": ("failed:nonsense",)},
            {"outcomes": ("completed:x",)},
            {"built_with": ("repo2docker",)},
            {"built_with": ("pip<3",)},
        ],
    )
    def test_a_condition_that_does_not_exist_is_refused(self, conditions: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Selection(since=NOW, until=NOW, **conditions)


class TestPublication:
    def test_a_replayed_request_keeps_what_it_asks_for_and_loses_deadline_and_credentials(
        self, past: Past
    ) -> None:
        gone = {"not_after": "2026-01-01T00:00:00Z", "credentials": "personal-1"}
        past.log("a", **gone, colour="green", requester="ada", force=True)
        past.accepted("a").completed("a")
        [one], _ = past.plan()
        id_ = request_id_of(REPLAY, one)
        content = json.loads(body_of(one, id_, None))
        assert content == {
            "provider": "gh",
            "spec": "o/r/main",
            "request_id": id_,
            "replay_of": "a",
            "colour": "green",
            "requester": "ada",
            "force": True,
        }
        assert json.loads(body_of(one, id_, False))["force"] is False
        assert read_request(body_of(one, id_, "cache")).force == "cache"

    def test_a_replay_of_a_replay_names_the_first_request(self, past: Past) -> None:
        past.built("a").log("replay-1", replay_of="a").accepted("replay-1").completed("replay-1")
        [one], _ = past.plan()
        assert one.original_id == "a"

    def test_ids_are_the_same_each_time_and_differ_between_replays(self, past: Past) -> None:
        past.built("a")
        [one], _ = past.plan()
        other = new_replay_id(NOW)
        assert request_id_of(REPLAY, one) == request_id_of(REPLAY, one) != request_id_of(other, one)
        BuildRequest(provider="gh", spec="o/r/main", request_id=request_id_of(REPLAY, one))
        assert began_at(REPLAY) == NOW

    @given(ref=st.text("abcdef0123456789./-_", min_size=1, max_size=40).filter(lambda ref: ref.strip("/")))
    def test_a_spec_with_another_ref_names_the_same_repository(self, ref: str) -> None:
        for prefix, spec in (("gh", "o/r/some/branch"), ("git", "https%3A%2F%2Fexample.org%2Fr/main")):
            changed = pin(prefix, spec, COMMIT, hosts={}).resolved_spec
            one, two = (pin(prefix, text, ref, hosts={}) for text in (spec, changed))
            assert (one.repo_url, one.build_slug) == (two.repo_url, two.build_slug)
            assert changed.endswith(f"/{COMMIT}")


class TestImages:
    def test_an_image_is_listed_once_as_it_was_built_last(self, past: Past) -> None:
        past.built("a", "2025.1", size=10).built("b", "2026.4").log("c").accepted("c")
        past.completed("c", None, cached=True)
        past.workspace.finish()
        [image] = built_images(past.workspace)
        assert (image.image, image.repo2docker_version, image.source) == (
            f"i/o-r:{COMMIT}",
            "2026.4",
            "https://github.com/o/r",
        )
        assert image.requested_at is not None
        assert image.built_at < image.requested_at
