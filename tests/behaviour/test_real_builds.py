"""Builds with real repo2docker, a real Docker engine and a real registry."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import pytest
from aiohttp import web
from deploy.dev import engine, machine
from deploy.dev.demo import registry_digest
from deploy.dev.engine import MadeEngine
from deploy.dev.machine import Ledger
from docker.models.images import Image

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.events import Cancelled, Completed, Failed, Log, Progress, Rejected
from tests.support.consumer import Consumer
from tests.support.dataset_hosts import DatasetHosts
from tests.support.git_http import cut_pack, git_http
from tests.support.idle_base import IDLE_BASE, make_idle_base
from tests.support.rabbitmq import RabbitMQ
from tests.support.repositories import (
    BASE_IMAGE,
    Repository,
    dockerfile,
    repository,
    skip_without_services,
    tools_path,
)
from tests.support.stories import Story, asked, build
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.docker,
    pytest.mark.broker,
    pytest.mark.xdist_group("real-builds"),
]

PREFIX = os.environ.get("RABBIT2DOCKER_IMAGES__PREFIX", "")
MakeRepository = Callable[..., Repository]


# --- Fixtures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def amqp(rabbitmq: RabbitMQ) -> Iterator[AmqpSettings]:
    """One virtual host for all of these tests: each uses repositories of its own."""
    skip_without_services()
    with rabbitmq.own_vhost() as settings:
        yield settings


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    """A client of the engine that builds."""
    made = docker.DockerClient(base_url=os.environ.get("RABBIT2DOCKER_DOCKER__HOST"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def process(amqp: AmqpSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consumer]:
    arguments = json.dumps([f"--Repo2Docker.base_image={IDLE_BASE}"])
    consumer = Consumer(
        tmp_path_factory.mktemp("consumer"),
        amqp,
        real=True,
        PATH=tools_path(),
        RABBIT2DOCKER_BUILDER__REPO2DOCKER_ARGS=arguments,
    )
    yield consumer
    consumer.end_everything()


@pytest.fixture
def consumer(process: Consumer) -> Iterator[Consumer]:
    """The shared consumer, running."""
    if process.process is None or process.has_ended():
        process.start_and_wait()
    yield process
    assert not process.has_ended(), process.log.read_text()
    assert not [line for line in process.lines() if line["level"] == "error"]


@pytest.fixture
def make_repository(amqp: AmqpSettings) -> Iterator[MakeRepository]:
    opened: list[Any] = []

    def make(name: str, files: dict[str, str]) -> Repository:
        context = repository(name, files)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in opened:
        context.__exit__(None, None, None)


@contextmanager
def other_consumer(directory: Path, amqp: AmqpSettings, **variables: str) -> Iterator[Consumer]:
    """Run a consumer with other settings; it must be the only one on its virtual host."""
    consumer = Consumer(directory, amqp, real=True, PATH=tools_path(), **variables)
    try:
        consumer.start_and_wait()
        yield consumer
    finally:
        consumer.end_everything()


@asynccontextmanager
async def in_thread(context: AbstractContextManager[Consumer]) -> AsyncIterator[Consumer]:
    """Enter and leave a blocking context in a thread, while servers of this event loop continue."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def run_image(client: docker.DockerClient, image: str) -> str:
    """Pull an image from the registry, run it and return its output."""
    client.images.remove(image, force=True)
    client.images.pull(image)
    output = client.containers.run(image, remove=True)
    assert isinstance(output, bytes)
    return output.decode()


def processes_with(text: str) -> list[int]:
    """Return the ids of the processes whose command line contains the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def unique_seconds() -> str:
    """Return a number of seconds that no other process sleeps for."""
    return f"86{uuid.uuid4().int % 10**8:08}"


# --- Images -------------------------------------------------------------------------------------------------


class TestImages:
    async def test_a_request_becomes_an_image_in_the_registry(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
    ) -> None:
        files = {
            **dockerfile(
                "COPY greeting.txt /greeting.txt",
                "RUN echo said-by-$((40 + 2))",
                'CMD ["cat", "/greeting.txt"]',
            ),
            "greeting.txt": "Hello from inside.\n",
        }
        repo = make_repository("image", files)
        story = await build(amqp, repo.spec())
        end = story.completed
        assert end.image == story.accepted.image
        assert end.image.startswith(PREFIX)
        assert end.resolved_ref == story.accepted.resolved_ref == repo.head()
        assert end.digest == registry_digest(end.image)
        assert end.repo2docker_version
        assert end.size
        assert not end.cached
        assert run_image(client, end.image) == "Hello from inside.\n"
        assert any(line.endswith("said-by-42") for line in story.log), story.log
        assert end.lines == len(story.log)

    async def test_progress_reports_phases_build_steps_and_pushed_layers(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository("progress", dockerfile("RUN echo one > /one", "RUN sleep 1", "COPY . /here"))
        story = await build(amqp, repo.spec())
        phases = [progress.phase for progress in story.progress]
        assert [phase for phase in dict.fromkeys(phases) if phase != "waiting"] == [
            "fetching",
            "building",
            "pushing",
        ], (phases, story.log)
        steps = [p.detail for p in story.progress if p.phase == "building" and p.detail.steps]
        assert steps
        assert {detail.steps for detail in steps} == {4}
        assert steps[-1].step == 4
        layers = [p.detail for p in story.progress if p.phase == "pushing" and p.detail.layers_total]
        assert layers
        assert layers[-1].layers_done == layers[-1].layers_total
        timings = story.completed.timings
        assert timings.building is not None
        assert timings.building >= 1
        assert timings.fetching is not None
        assert timings.pushing is not None

    async def test_an_existing_image_is_not_built_again(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository("exists", dockerfile("RUN echo exists > /it"))
        first = (await build(amqp, repo.spec())).completed
        records = consumer.records()
        story = await build(amqp, repo.spec())
        assert story.accepted.cached
        assert [event.kind for event in story.events] == ["accepted", "completed"]
        assert story.completed.cached
        # With the digest: a node may have an older image of this tag.
        assert story.completed.image == f"{first.image}@{first.digest}"
        assert story.completed.digest == first.digest
        assert consumer.records() == records

    async def test_forced_builds_are_built_anew_under_one_tag(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
    ) -> None:
        step = "RUN cat /proc/sys/kernel/random/uuid | tee /id"
        repo = make_repository("force", dockerfile(step, 'CMD ["cat", "/id"]'))
        options: dict[str, Any] = {"build_args": {"TOKEN": "a 'secret' $value"}}
        plain = (await build(amqp, repo.spec(), **options)).completed
        stories = [await build(amqp, repo.spec(), **options, force=True) for _ in range(3)]
        for story in stories:
            assert not story.accepted.cached
            assert story.accepted.image == plain.image
            assert story.completed.image == f"{plain.image}@{story.completed.digest}"
        assert len({plain.digest, *(story.completed.digest for story in stories)}) == 4
        story = stories[-1]
        assert registry_digest(plain.image) == story.completed.digest
        assert registry_tags(plain.image) == {plain.image.rpartition(":")[2]}
        assert any("exists in the Docker engine alone" in line for line in story.log)
        # repo2docker prints the engine's command line after the pull, which fails as no registry has the base image.
        assert any("'--build-arg', " in line and "TOKEN=***" in line for line in story.log)
        assert not any("secret" in line for line in story.log)
        cached = (await build(amqp, repo.spec(), **options)).completed
        assert cached.image == story.completed.image
        layers = client.images.get(plain.image).attrs["RootFS"]
        with_cache = (await build(amqp, repo.spec(), **options, force="cache")).completed
        anew = client.images.get(plain.image)
        assert anew.attrs["RootFS"] == layers, "labels that differ by build must not spoil the cache"
        assert anew.labels["io.rabbit2docker.build-id"] == with_cache.build_id
        assert not with_cache.cached
        client.images.remove(plain.image, force=True)
        printed = client.containers.run(story.completed.image, remove=True).decode().strip()
        assert any(printed in line for line in story.log)

    async def test_a_line_that_is_rewritten_3000_times_is_a_few_lines_of_the_log(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        step = "RUN for i in $(seq 3000); do printf 'state %d\\r' $i; done; echo; echo the end"
        repo = make_repository("progress", dockerfile(step))
        story = await build(amqp, repo.spec())
        shown = [line for line in story.log if re.match(r"#\d+ [\d.]+ ", line)]
        assert len(shown) < 20
        assert [line.partition(" ")[2].partition(" ")[2] for line in shown[-2:]] == ["state 3000", "the end"]

    async def test_a_forced_build_pulls_its_base_image_anew(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
    ) -> None:
        base = f"{os.environ['RABBIT2DOCKER_TEST_REGISTRY']}/r2d-test-base-{uuid.uuid4().hex[:8]}"
        old, new = (labelled(client, base, version) for version in ("old", "new"))
        for image in (new, old):
            image.tag(base, "1")
            client.images.push(base, "1")
        repo = make_repository("base", {"Dockerfile": f"FROM {base}:1\n"})
        plain = (await build(amqp, repo.spec())).completed
        assert client.images.get(plain.image).labels["version"] == "old"
        new.tag(base, "1")
        client.images.push(base, "1")
        old.tag(base, "1")
        kept = (await build(amqp, repo.spec(), force="cache")).completed
        assert client.images.get(kept.image).labels["version"] == "old"
        forced = (await build(amqp, repo.spec(), force=True)).completed
        assert client.images.get(forced.image).labels["version"] == "new"

    @pytest.mark.parametrize("kind", ["dockerfile", "generated"])
    async def test_labels_and_build_arguments_mean_the_same_in_every_kind_of_repository(
        self,
        kind: str,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
        idle_base: str,
    ) -> None:
        text = "a \"b\" 'c' $HOME ${HOME} `d` \\ #e = \nnew line\\n"
        repo = make_repository("same", dockerfile() if kind == "dockerfile" else {"README.md": "text"})
        story = await build(amqp, repo.spec(), labels={"one": text}, build_args={"UNUSED": text})
        labels = client.images.get(story.completed.image).labels
        assert labels["one"] == text
        assert labels["repo2docker.version"]
        assert (labels["repo2docker.repo"], labels["repo2docker.ref"]) == (repo.url, repo.head())
        origin, image = story.completed.provenance, "org.opencontainers.image"
        assert origin is not None
        assert (labels[f"{image}.source"], labels[f"{image}.revision"]) == (repo.url, repo.head())
        assert (origin.source, origin.revision) == (repo.url, repo.head())
        assert labels[f"{image}.version"] == origin.version
        assert datetime.fromisoformat(labels[f"{image}.created"]) == origin.created
        assert labels["io.rabbit2docker.request-id"] == origin.request_id == story.accepted.request_id
        assert labels["io.rabbit2docker.build-id"] == origin.build_id == story.completed.build_id
        assert labels["io.rabbit2docker.version"] == origin.builder_version

    async def test_build_options_take_effect_in_the_image(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
    ) -> None:
        inside = dockerfile(
            "ARG COLOUR=none", "ENV COLOUR=$COLOUR", "COPY name /name", 'CMD ["cat", "/name"]'
        )
        files = {"deep/inside/Dockerfile": inside["Dockerfile"], "deep/inside/name": "deep inside"}
        repo = make_repository("options", {**files, **dockerfile("RUN false")})
        story = await build(
            amqp,
            repo.spec(),
            subdir="deep/inside",
            build_args={"COLOUR": "green and blue"},
            labels={"org.example.course": "physics = fun"},
        )
        image = client.images.get(story.completed.image)
        assert "COLOUR=green and blue" in image.attrs["Config"]["Env"]
        assert image.labels["org.example.course"] == "physics = fun"
        assert run_image(client, story.completed.image) == "deep inside"

    async def test_an_appendix_is_added_to_the_dockerfile_of_repo2docker(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
        idle_base: str,
    ) -> None:
        repo = make_repository("appendix", {"README.md": "Nothing but a text."})
        appendix = 'ENV APPENDED="by the request"\nLABEL org.example.appended="yes"'
        story = await build(amqp, repo.spec(), appendix=appendix, labels={"org.example.label": "too"})
        image = client.images.get(story.completed.image)
        assert "APPENDED=by the request" in image.attrs["Config"]["Env"]
        assert image.labels["org.example.appended"] == "yes"
        assert image.labels["org.example.label"] == "too"

    @pytest.fixture
    def idle_base(self, tmp_path: Path) -> str:
        return make_idle_base(tmp_path)


class TestVersions:
    async def test_branches_with_similar_names_and_annotated_tags_resolve_to_their_commits(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository("versions", dockerfile("COPY which /which") | {"which": "first"})
        repo.git("tag", "--annotate", "--message", "A release", "v1")
        tagged = repo.head()
        repo.git("checkout", "--quiet", "-b", "foo/main")
        other = repo.commit({"which": "foo/main"})
        repo.git("checkout", "--quiet", "main")
        main = repo.commit({"which": "main"})
        # A wrong commit would be built without an error.
        for ref, commit in {"main": main, "foo/main": other, "v1": tagged, tagged: tagged}.items():
            story = await build(amqp, repo.spec(ref))
            assert story.completed.resolved_ref == commit, ref
            assert story.completed.image.partition("@")[0].endswith(f":{commit}")

    async def test_a_ref_that_does_not_exist_is_rejected(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository("no-version", dockerfile())
        rejected = (await build(amqp, repo.spec("no-such-branch"))).rejected
        assert rejected.reason == "ref_not_found"
        assert "no-such-branch" in rejected.message

    async def test_the_build_of_a_commit_that_does_not_exist_fails(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository("vanished", dockerfile())
        commit = repo.commit({"more": "text"})
        repo.git("reset", "--quiet", "--hard", "HEAD^")
        repo.git("reflog", "expire", "--expire=now", "--all")
        repo.git("gc", "--quiet", "--prune=now")
        failed = (await build(amqp, repo.spec(commit))).failed
        assert (failed.reason, failed.category) == ("ref_not_found", "user")
        assert commit in failed.message

    async def test_a_repository_that_does_not_exist_is_rejected(
        self, consumer: Consumer, amqp: AmqpSettings
    ) -> None:
        url = f"{os.environ['RABBIT2DOCKER_TEST_GIT_URL']}/no-such-repository"
        rejected = (await build(amqp, f"{quote(url, safe='')}/main")).rejected
        assert rejected.reason == "repository_not_found"

    @pytest.mark.parametrize("ref", ["main", "0123456789abcdef0123456789abcdef01234567"])
    async def test_a_repository_that_requires_a_password_is_private(
        self, consumer: Consumer, amqp: AmqpSettings, ref: str
    ) -> None:
        """A branch is looked up, so the request is rejected; a full commit id is not, so the build fails."""

        async def refuse(request: web.Request) -> web.Response:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})

        async with serving(refuse) as address:
            url = quote(f"http://{address}/ada/secret-{uuid.uuid4().hex[:8]}", safe="")
            story = await build(amqp, f"{url}/{ref}")
        assert not isinstance(story.end, Completed | Cancelled)
        assert story.end.reason == "repository_private"
        assert isinstance(story.end, Rejected if ref == "main" else Failed)


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """Serve HTTP on loopback and yield host and port."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


# --- Fetching -----------------------------------------------------------------------------------------------


class TestFetching:
    async def test_a_commit_that_only_a_pull_request_has_is_built(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
    ) -> None:
        repo = make_repository("pull", dockerfile('CMD ["cat", "/text"]'))
        repo.git("checkout", "--quiet", "--detach")
        pull = repo.commit(dockerfile("COPY text /text", 'CMD ["cat", "/text"]') | {"text": "proposed"})
        repo.git("update-ref", "refs/pull/7/head", pull)
        repo.git("checkout", "--quiet", "main")
        story = await build(amqp, repo.spec("refs/pull/7/head"))
        assert story.completed.resolved_ref == pull
        assert run_image(client, story.completed.image) == "proposed"
        labels = client.images.get(story.completed.image).labels
        assert (labels["repo2docker.repo"], labels["repo2docker.ref"]) == (repo.url, pull)

    async def test_pointers_of_git_lfs_are_a_warning_in_the_completed_event(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 12\n"
        attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
        repo = make_repository("large", dockerfile() | {".gitattributes": attributes, "a.bin": pointer})
        story = await build(amqp, repo.spec())
        [warning] = story.completed.warnings
        assert "1 file is missing, such as a.bin" in warning
        assert f"Warning: {warning}" in story.log

    async def test_links_that_lead_out_of_the_repository_bring_nothing_of_the_machine_into_an_image(
        self,
        consumer: Consumer,
        amqp: AmqpSettings,
        make_repository: MakeRepository,
        client: docker.DockerClient,
        tmp_path: Path,
    ) -> None:
        (tmp_path / "secret").write_text("planted-secret")
        repo = make_repository("links", dockerfile("COPY data /data", 'CMD ["ls", "-R", "/data"]'))
        (repo.directory / "data").mkdir()
        (repo.directory / "data" / "there").touch()
        (repo.directory / "data" / "file").symlink_to(tmp_path / "secret")
        (repo.directory / "data" / "directory").symlink_to(tmp_path)
        story = await build(amqp, repo.spec(repo.commit({"README.md": "Links."})))
        listed = run_image(client, story.completed.image).split()
        assert listed == ["/data:", "directory", "file", "there"]
        for source in ("data/file", "data/directory/secret", "data/directory/*"):
            files = dockerfile(f"COPY {source} /taken", "RUN cat /taken*")
            failed = (await build(amqp, repo.spec(repo.commit(files)))).failed
            assert failed.category == "user"
            assert "planted-secret" not in str(failed)

    async def test_a_link_to_a_file_of_the_machine_is_refused_and_named(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("planted-secret")
        repo = make_repository("planted", {"README.md": "A link."})
        (repo.directory / "runtime.txt").symlink_to(tmp_path / "secret")
        story = await build(amqp, repo.spec(repo.commit({"README.md": "More."})))
        assert (story.failed.reason, story.failed.category) == ("unsafe_repository", "user")
        assert "The link runtime.txt leads out" in story.failed.message
        assert "planted-secret" not in str(story.events)

    async def test_the_configuration_of_a_repository_inside_the_repository_runs_nothing(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository, tmp_path: Path
    ) -> None:
        # buildx asks git about the directory of a build; git takes this one for a repository, and fetches what it lacks.
        config = (
            "[core]\nrepositoryformatversion = 1\nbare = false\nworktree = .\n[extensions]\npartialClone = origin\n"
            f'[remote "origin"]\nurl = .\npromisor = true\nuploadpack = "touch {tmp_path}/ran; false"\n'
        )
        inside = {
            "HEAD": "ref: refs/heads/main\n",
            "refs/heads/main": "1" * 40 + "\n",
            "objects/keep": "",
            "config": config,
            **dockerfile(),
        }
        repo = make_repository("bare", {f"deep/{name}": text for name, text in inside.items()})
        assert isinstance((await build(amqp, repo.spec(), subdir="deep")).end, Completed)
        assert not (tmp_path / "ran").exists()


@asynccontextmanager
async def datasets() -> AsyncIterator[tuple[DatasetHosts, str]]:
    """Serve a dataset of CKAN that can be built, and yield its server and its spec."""
    hosts = DatasetHosts()
    files = {
        **dockerfile("COPY greeting.txt /greeting.txt", 'CMD ["cat", "/greeting.txt"]'),
        "greeting.txt": "Hi.\n",
    }
    hosts.files = {name: text.encode() for name, text in files.items()}
    # The registry keeps the images of earlier runs, whose names depend on the time of the last change.
    hosts.modified = f"{datetime.fromtimestamp(uuid.uuid4().int % 10**9, UTC):%Y-%m-%dT%H:%M:%S}.000000"
    await hosts.server.start_server()
    try:
        yield hosts, quote(f"{hosts.url}/dataset/sample-dataset", safe="")
    finally:
        await hosts.server.close()


class TestDatasets:
    async def test_a_dataset_becomes_an_image_of_its_version(
        self, consumer: Consumer, amqp: AmqpSettings, client: docker.DockerClient
    ) -> None:
        async with datasets() as (hosts, spec):
            story = await build(amqp, spec, provider="ckan")
        end = story.completed
        changed = datetime.fromisoformat(f"{hosts.modified}+00:00").timestamp()
        assert end.resolved_ref == story.accepted.resolved_ref == f"sample-dataset.v{changed:.0f}"
        assert end.image.endswith(f":sample-dataset.v{changed:.0f}")
        assert end.digest == registry_digest(end.image)
        assert await asyncio.to_thread(run_image, client, end.image) == "Hi.\n"

    async def test_a_dataset_that_changed_before_its_download_is_not_built_under_the_old_tag(
        self, consumer: Consumer, amqp: AmqpSettings
    ) -> None:
        async with datasets() as (hosts, spec):

            def change() -> web.Response:
                """Answer the first request that repo2docker makes."""
                hosts.modified = "2026-01-01T00:00:00.000000"
                return web.json_response({"success": True, "result": {}})

            hosts.always = {"/api/3/action/status_show": change}
            failed = (await build(amqp, spec, provider="ckan")).failed
        assert (failed.reason, failed.category) == ("ref_not_found", "user")
        assert "The dataset has changed since the request" in failed.message
        assert failed.message.endswith("Build again to get the newest version.")

    async def test_a_file_that_is_gone_between_resolution_and_download_fails_the_build(
        self, consumer: Consumer, amqp: AmqpSettings
    ) -> None:
        async with datasets() as (hosts, spec):
            hosts.always = {"/content/greeting.txt": lambda: web.Response(status=404)}
            failed = (await build(amqp, spec, provider="ckan")).failed
        assert failed.reason == "fetch_failed"
        assert "404" in failed.message


async def test_a_build_is_tried_again_after_its_fetch_was_cut(own_amqp: AmqpSettings, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with git_http(tmp_path / "served") as git:
        git.faults.append(cut_pack())
        repo = Repository("cut", dockerfile() | {"text": "A text that fills a pack.\n" * 99}, git.server)
        other = other_consumer(tmp_path, own_amqp, RABBIT2DOCKER_BUILDER__FETCH_RETRIES="0")
        async with in_thread(other):
            story = await build(own_amqp, repo.spec())
    assert story.completed.attempt == 2
    reasons = [item.detail.failed_reason for item in story.progress if item.detail.failed_reason]
    assert reasons == ["fetch_interrupted"]


# --- Failures -----------------------------------------------------------------------------------------------


class TestFailures:
    async def test_a_failed_step_is_reported_with_the_last_lines(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        repo = make_repository(
            "broken", dockerfile("RUN echo before", "RUN echo so-it-ends-$((1 + 1)); exit 3")
        )
        story = await build(amqp, repo.spec())
        failed = story.failed
        assert (failed.reason, failed.category) == ("build_step_failed", "user")
        assert failed.failed_step == "RUN echo so-it-ends-$((1 + 1)); exit 3"
        assert "exit code 3" in failed.message
        assert failed.hint
        assert any(line.endswith("so-it-ends-2") for line in failed.tail), failed.tail
        assert failed.tail == story.log[-len(failed.tail) :]
        assert failed.attempt == 1, "a failure of the repository is not retried"

    async def test_a_cancelled_build_also_ends_in_the_engine(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        seconds = unique_seconds()
        repo = make_repository("cancelled", dockerfile(f"RUN echo it-sleeps; sleep {seconds}"))
        async with asked(amqp, repo.spec()) as pending:
            await eventually(lambda: processes_with(seconds))
            await pending.cancel()
            story = await pending.story()
        assert isinstance(story.end, Cancelled)
        assert story.end.by == "ada"
        await eventually(lambda: not processes_with(seconds))

    async def test_a_build_survives_a_kill_of_the_consumer_with_every_line_once(
        self, consumer: Consumer, amqp: AmqpSettings, make_repository: MakeRepository
    ) -> None:
        loop = "for n in $(seq 1 60); do echo line-$n-of-many; sleep 0.1; done"
        repo = make_repository("killed", dockerfile(f"RUN {loop}"))
        async with asked(amqp, repo.spec()) as pending:
            await pending.until_line("line-10-of-many")
            consumer.kill()
            await asyncio.to_thread(consumer.start_and_wait)
            story = await pending.story()
        assert story.completed.attempt == 1
        assert story.completed.digest == registry_digest(story.completed.image)
        lines = [line.rpartition(" ")[2] for line in story.log if line.endswith("-of-many")]
        assert lines == [f"line-{n}-of-many" for n in range(1, 61)]
        assert story.completed.lines == len(story.log)


class FaultyRegistry:
    """A registry that accepts blobs and answers manifests with given errors."""

    def __init__(self) -> None:
        self.refusals: list[web.Response] = []
        """Responses to the next manifests, in order; the first one is repeated if `repeats`."""
        self.repeats = False
        self.tries = 0
        self._manifests: dict[str, str] = {}
        self._uploads: dict[str, bytes] = {}
        self._blobs: dict[str, int] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.split("/")[-2] if request.path != "/v2/" else ""
        if "/blobs/uploads" in request.path:
            return await self._upload(request)
        if kind == "blobs":
            size = self._blobs.get(request.path.rpartition("/")[2])
            return (
                web.Response(status=404)
                if size is None
                else web.Response(headers={"Content-Length": str(size)})
            )
        if kind == "manifests":
            return await self._manifest(request)
        return web.json_response({})

    async def _upload(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            name = uuid.uuid4().hex
            self._uploads[name] = b""
            return self._continued(f"{request.path.rstrip('/')}/{name}", name)
        name = request.path.rpartition("/")[2]
        self._uploads[name] += await request.read()
        if request.method == "PATCH":
            return self._continued(request.path, name)
        digest = request.query["digest"]
        self._blobs[digest] = len(self._uploads.pop(name))
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": request.path})

    def _continued(self, location: str, name: str) -> web.Response:
        upto = max(0, len(self._uploads[name]) - 1)
        headers = {"Location": location, "Docker-Upload-UUID": name, "Range": f"0-{upto}"}
        return web.Response(status=202, headers=headers)

    async def _manifest(self, request: web.Request) -> web.Response:
        if request.method != "PUT":
            digest = self._manifests.get(request.path)
            if digest is None:
                return a_refusal(404, "MANIFEST_UNKNOWN")
            return web.Response(headers={"Docker-Content-Digest": digest, "Content-Length": "0"})
        body = await request.read()
        self.tries += 1
        if self.refusals:
            refusal = self.refusals[0] if self.repeats else self.refusals.pop(0)
            return web.Response(status=refusal.status, body=refusal.body, headers=refusal.headers)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self._manifests[request.path] = digest
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": request.path})


def a_refusal(status: int, code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": f"denied with {code}"}]}, status=status)


class TestRegistries:
    async def push(
        self, registry: FaultyRegistry, amqp: AmqpSettings, directory: Path, repo: Repository
    ) -> Story:
        async with serving(registry.handle) as address:
            variables = {
                "RABBIT2DOCKER_IMAGES__PREFIX": f"{address}/r2d-",
                "RABBIT2DOCKER_BUILDER__PUSH_RETRIES": "1",
                "RABBIT2DOCKER_LIMITS__ATTEMPTS": "1",
            }
            async with in_thread(other_consumer(directory, amqp, **variables)):
                return await build(amqp, repo.spec())

    async def test_a_denied_push_is_an_operator_failure_and_not_retried(
        self, own_amqp: AmqpSettings, make_repository: MakeRepository, tmp_path: Path
    ) -> None:
        registry = FaultyRegistry()
        registry.refusals, registry.repeats = [a_refusal(403, "DENIED")], True
        repo = make_repository("denied", dockerfile("RUN echo denied > /denied"))
        failed = (await self.push(registry, own_amqp, tmp_path, repo)).failed
        assert (failed.reason, failed.category) == ("push_denied", "operator")
        assert failed.hint


def registry_tags(image: str) -> set[str]:
    """Return all tags that the registry has beside the image's."""
    host, _, rest = image.partition("/")
    with urllib.request.urlopen(
        f"http://{host}/v2/{rest.rpartition(':')[0]}/tags/list", timeout=10
    ) as answer:
        return set(json.load(answer)["tags"])


def labelled(client: docker.DockerClient, name: str, version: str) -> Image:
    """Return an image with a label, made from the base image."""
    container = client.containers.create(BASE_IMAGE, ["true"])
    try:
        return container.commit(name, version, changes=f"LABEL version={version}")
    finally:
        container.remove()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[tuple[MadeEngine, Ledger]]:
    """A Docker engine of its own for a test that kills it."""
    skip_without_services()
    if not machine.is_debian_root() or not list(machine.CACHE.glob("docker-engine-*/.complete")):
        pytest.skip("a separate engine needs Debian, root, and `make up`")
    # The path of a Unix socket is limited to about a hundred characters.
    directory = Path(tempfile.mkdtemp(prefix="r2d-engine-"))
    made = MadeEngine(root=engine.engine_root(), directory=directory, name=uuid.uuid4().hex[:8])
    ledger = Ledger(directory / "started.json")
    made.start(ledger)
    yield made, ledger
    for item in ledger.processes:
        item.end()
    made.remove_bridge()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def log_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the size of a step's output that engines keep; its speed stays unlimited."""
    limits = engine.STEP_LOGS.replace("67108864", "307200")
    assert limits != engine.STEP_LOGS
    monkeypatch.setattr(engine, "STEP_LOGS", limits)


async def test_all_output_of_a_loud_step_arrives_or_the_log_says_where_lines_are_missing(
    own_amqp: AmqpSettings,
    make_repository: MakeRepository,
    log_limits: None,
    own_engine: tuple[MadeEngine, Ledger],
    tmp_path: Path,
) -> None:
    made, _ = own_engine
    await asyncio.to_thread(copy_base_image, made.host)
    # By default, an engine drops what a step prints beyond 200 KiB in a second.
    steps = [f"RUN printf '%0100d\\n' $(seq {first} {last})" for first, last in ((1, 2500), (5000, 9000))]
    repo = make_repository("loud", dockerfile(*steps))
    async with in_thread(other_consumer(tmp_path, own_amqp, RABBIT2DOCKER_DOCKER__HOST=made.host)):
        story = await build(own_amqp, repo.spec())
    printed = [
        int(match[1]) for match in map(re.compile(r"#\d+ [\d.]+ (0\d{99})$").match, story.log) if match
    ]
    assert printed[:2501] == [*range(1, 2501), 5000]
    assert printed[-1] < 9000
    batches = [event.data for event in story.events if isinstance(event.data, Log)]
    [marked] = [line for batch in batches for line in batch.lines if line.clipped]
    assert "an unknown number of lines is missing here. Its limit is 300KiB" in marked.text
    assert story.completed.digest


async def test_a_build_waits_for_its_killed_engine_and_is_tried_again(
    own_amqp: AmqpSettings,
    make_repository: MakeRepository,
    own_engine: tuple[MadeEngine, Ledger],
    tmp_path: Path,
) -> None:
    made, ledger = own_engine
    await asyncio.to_thread(copy_base_image, made.host)
    repo = make_repository("engine", dockerfile("RUN echo it-works; sleep 5; echo done > /done"))
    daemon_arguments = f"--bridge\0{made.bridge}\0"
    async with (
        in_thread(other_consumer(tmp_path, own_amqp, RABBIT2DOCKER_DOCKER__HOST=made.host)),
        asked(own_amqp, repo.spec()) as pending,
    ):
        await pending.until_line("it-works")
        [daemon] = processes_with(daemon_arguments)
        os.kill(daemon, signal.SIGKILL)
        await eventually(lambda: not processes_with(daemon_arguments))
        await pending.until(lambda event: isinstance(event.data, Progress) and _waits(event.data))
        await asyncio.to_thread(made.start, ledger)
        story = await pending.story()
    assert story.completed.attempt == 2
    reasons = [item.detail.failed_reason for item in story.progress if item.detail.failed_reason]
    assert set(reasons) == {"docker_unavailable"}
    assert story.completed.digest == registry_digest(story.completed.image)


def _waits(progress: Progress) -> bool:
    return progress.detail.gives_up_at is not None and "Docker engine" in progress.message


def addresses(device: str) -> list[str]:
    """Return the addresses of a network device."""
    shown = subprocess.run(["ip", "-j", "-4", "addr", "show", "dev", device], capture_output=True, check=True)
    return [address["local"] for found in json.loads(shown.stdout) for address in found["addr_info"]]


def test_an_engine_that_starts_again_leaves_its_network_to_the_engine_that_has_it_by_now(
    own_engine: tuple[MadeEngine, Ledger],
) -> None:
    made, ledger = own_engine
    [before] = addresses(made.bridge)
    for item in ledger.processes:
        item.end()
    other = f"r2d{uuid.uuid4().hex[:8]}"
    try:
        for words in (f"link add {other} type bridge", f"addr add {before}/24 dev {other}"):
            subprocess.run(["ip", *words.split()], check=True)
        made.remove_bridge()
        made.start(ledger)
        assert before not in addresses(made.bridge)
    finally:
        subprocess.run(["ip", "link", "del", other], check=True)


def copy_base_image(host: str) -> None:
    """Copy the base image to another engine."""
    own = {**os.environ, "PATH": tools_path()}
    saved = subprocess.run(["docker", "save", BASE_IMAGE], capture_output=True, check=True, env=own)
    other = {**own, "DOCKER_HOST": host}
    subprocess.run(["docker", "load"], input=saved.stdout, capture_output=True, check=True, env=other)
