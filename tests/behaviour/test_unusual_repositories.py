"""Repositories that are unusual and right, or unusual and wrong: on one consumer, side by side."""

import asyncio
import json
import urllib.request
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from deploy.dev.demo import registry_digest

from rabbit2docker.client import BuildEvents
from rabbit2docker.settings import AmqpSettings
from tests.support.consumer import Consumer
from tests.support.git_http import GitHttp, git_http, redirect
from tests.support.hub_api import Api
from tests.support.hub_service import HubService, Sent
from tests.support.idle_base import make_idle_base
from tests.support.rabbitmq import RabbitMQ
from tests.support.repositories import (
    BASE_IMAGE,
    Repository,
    dockerfile,
    repository,
    skip_without_services,
    tools_path,
)
from tests.support.stories import Story, build
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.xdist_group("unusual-repositories"),
]

MARK = "\ufeff"
"""The byte order mark that some editors put in front of a text."""
PRINTS_BYTES = (
    r"RUN printf 'before\n\000nul\000\n\377\376bad\303(\n\355\240\200half\n\342\200\250sep\302\205nel\n'; "
    "echo after-$((1 + 1)) \\\n    joined"
)
PRINTED = [
    "before",
    "nul",
    "\ufffd\ufffdbad\ufffd(",
    "\ufffd\ufffd\ufffdhalf",
    "\u2028sep\x85nel",
    "after-2 joined",
]
UNIQUE = f"ENV BUILT_BY_TEST={uuid.uuid4().hex}"
STAGES = f"""FROM {BASE_IMAGE} AS parent
{UNIQUE}
ONBUILD RUN echo triggered-$((1 + 1)) > /triggered
FROM parent AS made
RUN <<END
set -e
echo from-a-heredoc-$((2 + 2)) > /made
END
FROM {BASE_IMAGE}
{UNIQUE}
COPY --from=made /made /triggered /
COPY <<END /text
from-a-text
END
RUN cat /made /triggered /text
"""
REFUSED = ("..", "/etc", "a/../..", "-a")


def crlf(text: str) -> bytes:
    """Return a text as some editors of Windows save it."""
    return (MARK + text.replace("\n", "\r\n")).encode()


@dataclass
class Site:
    """A consumer, a hub, and what has come of the requests."""

    amqp: AmqpSettings
    hub: HubService
    git: GitHttp
    stack: ExitStack
    stories: dict[str, Story] = field(default_factory=dict)
    watched: list[Sent] = field(default_factory=list)
    """What a client of BinderHub got about the build that prints bytes."""

    def repository(self, name: str, files: dict[str, str | bytes]) -> Repository:
        return self.stack.enter_context(repository(name, files))

    async def run(self) -> None:
        """Request all builds at once."""
        text = dockerfile(PRINTS_BYTES)["Dockerfile"]
        windows = self.repository("windows", {"Dockerfile": crlf(text)})
        self.git.faults.append(redirect("/gone/", "http://no-such-host.invalid/"))
        away = f"{self.git.server.url}/gone/r"
        work: list[Coroutine[Any, Any, None]] = [
            self.watch(windows),
            self.build("stages", self.stages(), subdir="./a b//\u00fc/"),
            self.build("generated", self.generated()),
            self.build("head", self.without_head()),
            self.build("redirect", Repository.spec_of(away, "main")),
            self.build("redirect of a commit", Repository.spec_of(away, windows.head())),
            *(self.build(way, windows.spec(), subdir=way, is_checked=False) for way in REFUSED),
        ]
        await asyncio.gather(*work)

    async def build(self, name: str, spec: str, **options: Any) -> None:
        self.stories[name] = await build(self.amqp, spec, **options)

    async def watch(self, windows: Repository) -> None:
        """Build for a client of BinderHub; ask again, and once more after the registry has lost the image."""
        path = f"build/git/{windows.spec()}?build_only=true"
        self.watched = await self.hub.viewer.watch(path)
        await self.build("there", windows.spec())
        image = self.stories["there"].completed.image
        await asyncio.to_thread(remove_from_registry, image)
        await self.build("lost", windows.spec())

    def stages(self) -> str:
        return self.repository("stages", {"a b/\u00fc/Dockerfile": STAGES, **dockerfile("RUN false")}).spec()

    def generated(self) -> str:
        environment = f"# {uuid.uuid4().hex}\ndependencies:\n  - python=3.9\n"
        packages = "# needed\ncurl\n\njq # as well\n".replace("\n", "\r\n")
        return self.repository(
            "generated", {"environment.yml": crlf(environment), "apt.txt": packages.encode()}
        ).spec()

    def without_head(self) -> str:
        made = self.repository("head", {"README.md": "Text."})
        made.git("symbolic-ref", "HEAD", "refs/heads/gone")
        return made.spec("HEAD")


def remove_from_registry(image: str) -> None:
    """Remove an image from the registry alone."""
    host, _, rest = image.partition("/")
    name = rest.partition("@")[0].rpartition(":")[0]
    url = f"http://{host}/v2/{name}/manifests/{registry_digest(image)}"
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60) as answer:
        assert answer.status == 202


@pytest.fixture(scope="module")
def site(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything that the tests look at; the builds run side by side."""
    skip_without_services()
    directory = tmp_path_factory.mktemp("unusual")
    (directory / "served").mkdir()
    base = make_idle_base(directory)
    arguments = json.dumps([f"--Repo2Docker.base_image={base}"])
    variables = {"PATH": tools_path(), "RABBIT2DOCKER_BUILDER__REPO2DOCKER_ARGS": arguments}
    with ExitStack() as stack:
        amqp = stack.enter_context(rabbitmq.own_vhost())
        consumer, hub = Consumer(directory, amqp, real=True, **variables), HubService(directory, amqp)
        hub.fork = True
        stack.callback(hub.end)
        stack.callback(consumer.end_everything)
        made = Site(amqp, hub, stack.enter_context(git_http(directory / "served")), stack)
        consumer.start_and_wait()
        hub.start_and_wait()
        asyncio.run(made.run())
        yield made


def printed(texts: list[str]) -> list[str]:
    """Return what the step that prints bytes has printed."""
    lines = [text.split(" ", 2)[2] for text in texts if text.startswith("#") and text.count(" ") > 1]
    return [line for line in lines if line in PRINTED]


class TestEncodings:
    def test_a_dockerfile_of_windows_is_built(self, site: Site) -> None:
        [frame] = [sent for sent in site.watched if sent.phase == "ready"]
        assert frame.data["imageName"] == site.stories["there"].completed.image.partition("@")[0]

    def test_files_of_windows_name_the_version_and_the_packages(self, site: Site) -> None:
        story = site.stories["generated"]
        assert story.completed.digest
        log = "\n".join(story.log)
        assert "Building conda environment for python=3.9\n" in log
        assert "apt-get install --yes --no-install-recommends curl jq &&" in log

    async def test_bytes_that_are_no_text_break_no_door_and_lose_no_line(self, site: Site) -> None:
        """Each line arrives at every door: a client of BinderHub, the API, the store's log, and the tenant's stream."""
        assert printed([sent.message.rstrip("\n") for sent in site.watched]) == PRINTED
        api = Api(site.hub.address)
        builds = (await api.get("api/builds?q=windows")).json["builds"]
        *_, found = (each for each in builds if each["state"] == "completed")  # the first that was requested
        sent = await api.follow(found["id"])
        lines = [line["text"] for each in sent if each.event == "log" for line in each.data["data"]["lines"]]
        assert printed(lines) == PRINTED
        assert sent[-1].data["data"]["lines"] == len(lines)
        stored = await eventually(lambda: self.stored(api, found["id"]))
        assert printed(stored) == PRINTED
        async with BuildEvents(site.amqp) as events:
            read = Story([event async for event in events.of_build(found["id"])])
        assert printed(read.log) == PRINTED

    async def stored(self, api: Api, build_id: str) -> list[str]:
        """Return the log, once the store has its end."""
        build = (await api.get(f"api/builds/{build_id}")).json
        return (await api.get(f"api/builds/{build_id}/log")).text.split("\n") if build["ended_at"] else []


class TestStages:
    def test_stages_triggers_and_heredocs_are_built_from_a_directory_however_it_is_spelled(
        self, site: Site
    ) -> None:
        story = site.stories["stages"]
        assert story.completed.digest == registry_digest(story.completed.image)
        said = [line.rpartition(" ")[2] for line in story.log]
        assert {"from-a-heredoc-4", "triggered-2", "from-a-text"} <= set(said), story.log
        steps = [item.detail for item in story.progress if item.detail.steps]
        assert all(detail.step <= detail.steps for detail in steps if detail.step and detail.steps), steps

    @pytest.mark.parametrize("way", REFUSED)
    def test_a_directory_that_may_lead_out_is_rejected_before_anything_is_fetched(
        self, site: Site, way: str
    ) -> None:
        rejected = site.stories[way].rejected
        assert rejected.reason == "invalid_request"
        assert "subdir" in rejected.message
        assert "inside the repository" in rejected.message


def test_an_image_that_the_registry_has_lost_is_pushed_again_although_the_engine_has_it(site: Site) -> None:
    there, lost = site.stories["there"], site.stories["lost"]
    assert there.accepted.cached
    assert not lost.accepted.cached
    assert lost.completed.image == there.completed.image.partition("@")[0]
    assert lost.completed.digest == registry_digest(lost.completed.image)


class TestNowhere:
    def test_a_default_branch_that_does_not_exist_is_no_version(self, site: Site) -> None:
        rejected = site.stories["head"].rejected
        assert rejected.reason == "ref_not_found"
        assert "has no default branch: it may be empty. Use a branch, tag or commit." in rejected.message

    def test_a_redirect_to_a_host_that_does_not_exist_is_an_answer_at_once(self, site: Site) -> None:
        rejected = site.stories["redirect"].rejected
        assert rejected.reason == "repository_not_found"
        assert (
            "redirects to http://no-such-host.invalid/r. There is no host no-such-host.invalid."
            in rejected.message
        )
        assert site.stories["redirect"].progress == []

    def test_a_fetch_that_is_redirected_to_a_host_that_does_not_exist_is_tried_once(self, site: Site) -> None:
        story = site.stories["redirect of a commit"]
        assert (story.failed.reason, story.failed.category) == ("fetch_failed", "user")
        assert "there is no host no-such-host.invalid" in story.failed.message
        assert "The repository redirects to http://no-such-host.invalid/r" in story.log
        assert story.failed.attempt == 1
