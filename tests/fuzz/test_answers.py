"""Answers of code hosts and registries: each is understood, or an error with words and a wait that can be kept."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from rabbit2docker.amqp.ports import RequestMessage
from rabbit2docker.consumer.images.registry import Registry
from rabbit2docker.consumer.intake.waiting import plan_wait, waiting_progress
from rabbit2docker.consumer.providers.gh import GitHubProvider
from rabbit2docker.consumer.providers.git_remote import _read_refs
from rabbit2docker.consumer.providers.refs import is_object_id
from rabbit2docker.errors import RegistryDenied, RequestRejected, TransientError
from rabbit2docker.settings import DockerSettings, ImageSettings, ProviderSettings
from rabbit2docker_schemas.events import Completed
from rabbit2docker_schemas.ids import build_id_of
from tests.fuzz.inputs import bodies, byte_variants, fuzzed

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SHA = "0123456789" * 4
GITHUB: list[Any] = [
    {"ref": "refs/heads/main", "object": {"type": "commit", "sha": SHA}},
    {"object": {"type": "tag", "sha": SHA}},
    {"message": "API rate limit exceeded"},
]
REGISTRY: list[Any] = [
    {"schemaVersion": 2, "layers": [{"size": 7}, {"size": 8}]},
    {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]},
    {"token": "abc", "expires_in": 300},
]
TEXTS = st.sampled_from(
    [
        "0",
        "60",
        "9" * 30,
        "1e400",
        "-1",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 99 Foo 2026",
        "٣",
        "",
        "x" * 9000,
    ]
) | st.text(max_size=12)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("Retry-After", "X-RateLimit-Reset", "X-RateLimit-Remaining", "ETag", "WWW-Authenticate"),
            *("Docker-Content-Digest", "Docker-Distribution-Api-Version"),
        ]
    ),
    TEXTS
    | st.sampled_from(
        [
            'Bearer realm="https://auth.example.org/token",service="s",scope="repository:a:pull"',
            'Bearer realm="http://[::1",x="',
            "Basic realm=x",
            "Bearer",
            "sha256:" + "0" * 64,
            "0",
        ]
    ),
    max_size=4,
)
STATUSES = st.sampled_from([200, 200, 200, 304, 400, 401, 403, 404, 409, 422, 429, 451, 500, 503])


class Answer:
    """One answer, in the part of aiohttp's interface that the clients use."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self._body = status, CIMultiDict(headers), body
        self.content = self

    async def iter_any(self) -> Any:
        yield self._body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Answers:
    """A session that gives one answer after the other, and the last one indefinitely."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers

    def request(self, *_: object, **__: object) -> Answer:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    get = request


def sessions(samples: list[Any]) -> st.SearchStrategy[aiohttp.ClientSession]:
    content = bodies(samples) | bodies(samples).map(lambda one: b"[" + one + b"]") | st.just(SHA.encode())
    answers = st.lists(st.builds(Answer, STATUSES, HEADERS, content), min_size=1, max_size=4)
    return answers.map(lambda found: cast(aiohttp.ClientSession, Answers(found)))


def has_words(error: RequestRejected) -> None:
    """Check that the requester learns something."""
    assert error.message.strip()


def can_be_waited_for(error: TransientError) -> None:
    """Plan the wait after an error, and make the event that announces it."""
    received = RequestMessage(b"", "", "builds.requests", {}, "m", None, None, redelivered=False, tries=0)
    wait = plan_wait(received, error, now=NOW, patience=timedelta(hours=6))
    assert wait is not None
    assert waiting_progress(build_id_of("default", "r"), error, wait, now=NOW).model_dump_json()


@fuzzed()
@given(sessions(GITHUB), st.sampled_from(["HEAD", "main", "master", "0123456", SHA, "v1"]))
def test_any_answer_of_github_is_a_commit_a_refusal_or_a_wait(
    runner: asyncio.Runner, session: aiohttp.ClientSession, ref: str
) -> None:
    provider = GitHubProvider(ProviderSettings(), session)
    try:
        found = runner.run(provider.resolve(f"owner/repository/{ref}"))
    except RequestRejected as error:
        has_words(error)
    except TransientError as error:
        can_be_waited_for(error)
    else:
        assert len(found.resolved_ref) in (40, 64)


@fuzzed()
@given(sessions(REGISTRY))
def test_any_answer_of_a_registry_is_an_image_none_a_denial_or_a_wait(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, session: aiohttp.ClientSession
) -> None:
    directory = tmp_path_factory.getbasetemp()
    registry = Registry(session, ImageSettings(), DockerSettings(config=directory))
    try:
        found = runner.run(registry.find("registry.example.org/image:1"))
    except RegistryDenied as error:
        has_words(error)
    except TransientError as error:
        can_be_waited_for(error)
    else:
        if found:
            end = Completed(build_id="b", image="i", digest=found.digest, size=found.size, resolved_ref="r")
            assert end.model_dump_json()


@fuzzed()
@given(byte_variants([f"{SHA}\tHEAD\n{SHA}\trefs/heads/main\n{SHA}\trefs/tags/v1^{{}}\n".encode()]))
def test_any_list_of_refs_is_read(output: bytes) -> None:
    assert all(map(is_object_id, _read_refs(output.decode(errors="replace")).values()))
