"""Push webhooks over real HTTP, with deliveries as GitHub and GitLab document them."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from yarl import URL

from rabbit2docker.errors import BrokerUnavailable
from rabbit2docker.hub.web.webhooks import MAX_WEBHOOK_BYTES
from rabbit2docker_schemas.ids import build_id_of
from rabbit2docker_schemas.routing import Priority
from tests.support.hub_service import MemoryBuilds, Viewer, serving

COMMIT, TAG, NONE = "a" * 40, "b" * 40, "0" * 40
SECRET, OTHER = "a secret of GitHub's", "a token of GitLab's"
WEBHOOKS: list[dict[str, Any]] = [
    {"provider": "gh", "repository": "Course/*", "secret": SECRET},
    {"provider": "gh", "repository": "team/tagged", "secret": SECRET, "refs": ["v*", "main"]},
    {"provider": "gl", "repository": "group/sub/lecture", "secret": OTHER},
]


@pytest.fixture
def builds() -> MemoryBuilds:
    return MemoryBuilds()


def github(name: str = "course/lecture", ref: str = "refs/heads/main", **changes: Any) -> dict[str, Any]:
    push = {
        "ref": ref,
        "before": "c" * 40,
        "after": COMMIT,
        "deleted": False,
        "repository": {"full_name": name, "default_branch": "main"},
        "head_commit": {"id": COMMIT},
    }
    return push | changes


def gitlab(ref: str = "refs/heads/main", **changes: Any) -> dict[str, Any]:
    project = {"path_with_namespace": "group/sub/lecture", "default_branch": "main"}
    push = {"object_kind": "push", "ref": ref, "after": COMMIT, "checkout_sha": COMMIT, "project": project}
    return push | changes


async def post(viewer: Viewer, host: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
    sent = {"Content-Type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{viewer.address}webhooks/{host}", data=body, headers=sent) as answer,
    ):
        return answer.status, await answer.json()


async def deliver(
    viewer: Viewer, payload: Any, *, secret: str = SECRET, event: str = "push"
) -> tuple[int, Any]:
    body = json.dumps(payload).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={signature}"}
    return await post(viewer, "github", body, headers)


async def deliver_gitlab(viewer: Viewer, payload: Any, *, token: str = OTHER) -> tuple[int, Any]:
    headers = {"X-Gitlab-Token": token, "X-Gitlab-Event": "Push Hook"}
    return await post(viewer, "gitlab", json.dumps(payload).encode(), headers)


async def test_a_push_becomes_a_bulk_request_for_its_commit(builds: MemoryBuilds) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        status, answer = await deliver(viewer, github())
    [request] = builds.asked
    assert (request.provider, request.spec) == ("gh", f"course/lecture/{COMMIT}")
    assert (request.requester, builds.priorities) == ("webhook course/lecture", [Priority.BULK])
    assert (status, answer["request_id"]) == (202, request.request_id)
    assert answer["build_id"] == build_id_of("default", answer["request_id"])


async def test_a_push_to_gitlab_names_the_project_escaped(builds: MemoryBuilds) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        assert (await deliver_gitlab(viewer, gitlab()))[0] == 202
    [request] = builds.asked
    assert (request.provider, request.spec) == ("gl", f"group%2Fsub%2Flecture/{COMMIT}")


async def test_a_delivery_that_comes_again_is_one_request_on_every_instance(builds: MemoryBuilds) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        await deliver(viewer, github())
        status, answer = await deliver(viewer, github())
        assert status == 200
        assert "received before" in answer["message"]
        await deliver(viewer, github(before="d" * 40))
    async with serving(builds, webhooks=WEBHOOKS) as another:
        assert (await deliver(another, github()))[0] == 202
    first, other, again = (request.request_id for request in builds.asked)
    assert first == again != other


async def test_a_delivery_whose_request_was_not_confirmed_is_taken_when_it_comes_again(
    builds: MemoryBuilds,
) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        builds.problem = BrokerUnavailable("RabbitMQ is away.")
        status, answer = await deliver(viewer, github())
        assert (status, builds.asked) == (503, [])
        assert "cannot be requested at the moment" in answer["message"]
        builds.problem = None
        assert (await deliver(viewer, github()))[0] == 202


@pytest.mark.parametrize("secret", ["", "another secret of GitHub's"])
async def test_a_forged_delivery_requests_nothing(builds: MemoryBuilds, secret: str) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        status, answer = await deliver(viewer, github(), secret=secret)
        assert (status, answer["message"].partition(".")[0]) == (
            403,
            "The delivery is not signed with the secret of course/lecture",
        )
        assert (await post(viewer, "github", json.dumps(github()).encode(), {}))[0] == 403
        for token in ("", secret, "é" * 20):
            assert (await deliver_gitlab(viewer, gitlab(), token=token))[0] == 403
    assert builds.asked == []


async def test_a_changed_body_has_no_valid_signature(builds: MemoryBuilds) -> None:
    body = json.dumps(github()).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        assert (await post(viewer, "github", body.replace(b"a" * 40, b"e" * 40), headers))[0] == 403
        assert (await post(viewer, "github", body, headers))[0] == 202
    assert len(builds.asked) == 1


@pytest.mark.parametrize(
    "name", ["other/lecture", "course", "", "course/../x", "course/a/b", "course/lec\nture"]
)
async def test_a_repository_that_is_not_registered_requests_nothing(builds: MemoryBuilds, name: str) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        status, answer = await deliver(viewer, github(name))
        assert status == 404
        assert "is not registered here" in answer["message"]
    assert builds.asked == []


@pytest.mark.parametrize(
    ("payload", "event", "words"),
    [
        ({"zen": "x", **github()}, "ping", "is set up"),
        (github(), "issues", "is not a push"),
        (github(ref="refs/heads/other"), "push", "other is not among the branches and tags"),
        (github(ref="refs/tags/v1"), "push", "v1 is not among"),
        (github("team/tagged", "refs/heads/develop"), "push", "built: v*, main"),
        (github(after=NONE, deleted=True, head_commit=None), "push", "main was deleted"),
    ],
)
async def test_what_is_not_to_be_built_is_answered_in_words(
    builds: MemoryBuilds, payload: Any, event: str, words: str
) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        status, answer = await deliver(viewer, payload, event=event)
        assert status == 200
        assert words in answer["message"]
    assert builds.asked == []


async def test_tags_are_built_where_they_are_listed_and_at_the_commit(builds: MemoryBuilds) -> None:
    tagged = {**WEBHOOKS[2], "refs": ["v*"]}
    async with serving(builds, webhooks=[WEBHOOKS[1], tagged]) as viewer:
        assert (await deliver(viewer, github("team/tagged", "refs/tags/v1", after=TAG)))[0] == 202
        push = gitlab("refs/tags/v1", object_kind="tag_push", after=TAG)
        assert (await deliver_gitlab(viewer, push))[0] == 202
        gone = gitlab("refs/tags/v1", object_kind="tag_push", after=NONE, checkout_sha=None)
        assert (await deliver_gitlab(viewer, gone))[0] == 200
    assert [request.spec for request in builds.asked] == [
        f"team/tagged/{COMMIT}",
        f"group%2Fsub%2Flecture/{COMMIT}",
    ]


async def test_a_flood_of_pushes_is_limited_by_repository(builds: MemoryBuilds) -> None:
    async with serving(builds, webhooks=WEBHOOKS, requests_per_webhook=2) as viewer:
        found = [await deliver(viewer, github(before=f"{number:040x}")) for number in range(1, 5)]
        assert [status for status, _ in found] == [202, 202, 429, 429]
        assert "course/lecture have requested 2 builds within an hour" in found[-1][1]["message"]
        assert (await deliver(viewer, github("course/other")))[0] == 202
    assert len(builds.asked) == 3


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"payload=%7B%7D", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"[]", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}", {}, 404),
        (b'{"repository": 5}', {}, 404),
    ],
)
async def test_bad_content_is_answered_in_words(
    builds: MemoryBuilds, body: bytes, headers: dict[str, str], status: int
) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        found, answer = await post(viewer, "github", body, headers)
        assert found == status
        assert answer["message"]
        large = github(commits=[{"message": "x" * 400_000}])
        assert (await deliver(viewer, large))[0] == 202


async def test_a_delivery_that_is_too_large_is_refused_before_it_is_read(builds: MemoryBuilds) -> None:
    async with serving(builds, webhooks=WEBHOOKS) as viewer:
        url = URL(viewer.address)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_WEBHOOK_BYTES + 1}\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"A delivery may have 1048576 bytes." in answer
