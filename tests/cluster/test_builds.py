"""A request becomes an image by a pod beside docker-api: real scheduler, kubelet, containerd and repo2docker."""

import base64
import json
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.site import REGISTRY, Site, opened, shell
from tests.support.consumer import Consumer
from tests.support.stories import asked, build
from tests.support.waiting import eventually

PUSH, TOKEN = f"push-{uuid.uuid4().hex}", f"git-{uuid.uuid4().hex}"
"""Secrets of the pods: a registry's password, and a token for git."""
ENCODED = base64.b64encode(f"robot:{PUSH}".encode()).decode()


@pytest.fixture(scope="module")
def site(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with opened(tmp_path_factory.mktemp("site")) as made:
        config = json.dumps({"auths": {REGISTRY: {"auth": ENCODED}}})
        made.kubectl(
            *("create", "secret", "generic", "push", "--type=kubernetes.io/dockerconfigjson"),
            f"--from-literal=.dockerconfigjson={config}",
        )
        yield made


@pytest.fixture(scope="module")
def process(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Consumer:
    token = tmp_path_factory.mktemp("credentials") / "token"
    token.write_text(TOKEN)
    git = {"git.example": {"user": "me", "token_file": str(token)}}
    consumer = site.consumer(
        RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS="5",
        RABBIT2DOCKER_KUBERNETES__TENANTS=json.dumps({"default": {"push_secret": "push"}}),
        RABBIT2DOCKER_TENANTS=json.dumps({"default": {"git": git}}),
    )
    consumer.start_and_wait()
    return consumer


@pytest.fixture
def consumer(process: Consumer) -> Iterator[Consumer]:
    yield process
    assert not process.has_ended(), process.log.read_text()
    assert not [line for line in process.lines() if line["level"] == "error"]


def digest_in_registry(image: str) -> str:
    name, _, tag = image.removeprefix(f"{REGISTRY}/").rpartition(":")
    accept = "application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(
        f"http://{REGISTRY}/v2/{name}/manifests/{tag}", method="HEAD", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.headers["Docker-Content-Digest"])


async def test_a_request_becomes_an_image_in_the_registry(site: Site, consumer: Consumer) -> None:
    repo = site.quick()
    story = await build(site.amqp, repo.spec())
    end = story.completed
    assert end.digest == digest_in_registry(end.image)
    assert end.resolved_ref == repo.head()
    assert end.repo2docker_version
    assert any(line.endswith("said-by-a-step") for line in story.log), story.log
    assert end.lines == len(story.log)
    phases = dict.fromkeys(progress.phase for progress in story.progress)
    assert [phase for phase in phases if phase != "waiting"] == ["fetching", "building", "pushing"]
    again = await build(site.amqp, repo.spec())
    assert again.completed.digest == end.digest, "a duplicate is answered from the record"


async def test_the_pod_runs_beside_docker_api_its_lines_arrive_live_and_it_goes_after_the_keep_time(
    site: Site, consumer: Consumer
) -> None:
    repo = site.slow(6, "beside")
    async with asked(site.amqp, repo.spec()) as request:
        seen = await request.until_line("second-1")
        pod = site.running()
        assert pod is not None
        assert pod["metadata"]["finalizers"] == ["rabbit2docker.io/outcome"]
        assert not [volume for volume in pod["spec"]["volumes"] if "projected" in volume]
        assert pod["spec"]["nodeName"] in {
            item["spec"]["nodeName"] for item in site.pods("app.kubernetes.io/component=docker-api")
        }
        name = pod["metadata"]["name"]
        story = await request.story()
    assert story.accepted.build_name == name
    assert story.completed.digest
    [end] = [event for event in story.events if event.is_terminal]
    assert (end.time - seen.time).total_seconds() > 2, "the line was published while the build ran"
    assert [line.rpartition(" ")[2] for line in story.log if "second-" in line and "[" not in line] == [
        f"second-{number}" for number in range(6)
    ]
    await eventually(lambda: name not in {item["metadata"]["name"] for item in site.pods()}, seconds=90)


async def test_the_next_version_of_a_repository_is_built_where_its_layers_are(
    site: Site, consumer: Consumer
) -> None:
    repo = site.quick("versions")
    nodes = set()
    for version in range(3):
        repo.commit({"version": str(version)})
        story = await build(site.amqp, repo.spec(repo.head()))
        assert story.completed.digest
        name = story.accepted.build_name
        [pod] = [item for item in site.pods() if item["metadata"]["name"] == name]
        nodes.add(pod["spec"]["nodeName"])
    assert len(nodes) == 1


async def test_many_builds_at_once_all_complete(site: Site, consumer: Consumer) -> None:
    repos = [site.quick(f"many-{number}") for number in range(6)]
    async with asked(site.amqp, repos[0].spec()) as first:
        others = []
        for repo in repos[1:]:
            context = asked(site.amqp, repo.spec())
            others.append((context, await context.__aenter__()))
        stories = [await first.story(), *[await request.story() for _, request in others]]
        for context, _ in others:
            await context.__aexit__(None, None, None)
    assert all(story.completed.digest for story in stories)


async def test_secrets_are_only_in_the_containers_that_need_them(site: Site, consumer: Consumer) -> None:
    search = f"cat /proc/*/environ; grep -rhs -e {ENCODED} -e {TOKEN} /etc /run /tmp /var; ls /var/run/rabbit2docker"
    in_step = "/bin/busybox env; cat /proc/*/environ; /bin/busybox grep -rs -e push- -e git- /etc /run /tmp /var /proc/mounts"
    repo = site.repository(
        "planted",
        shell(f"({in_step}) 2>&1 | /bin/busybox head -c 50000"),
        shell("echo is-under-way; /bin/busybox sleep 15"),
        "COPY . /everything",
    )
    async with asked(site.amqp, repo.spec()) as request:
        await request.until_line("is-under-way")
        pod = site.running()
        assert pod is not None
        described = json.dumps(pod)
        seen = {
            name: site.kubectl(
                "exec", pod["metadata"]["name"], f"--container={name}", "--", "sh", "-c", f"{search} || true"
            )
            for name in ("builder", "fetch", "cage")
        }
        story = await request.story()
    found = {name: {word for word in (ENCODED, TOKEN) if word in text} for name, text in seen.items()}
    assert found == {"builder": {ENCODED}, "fetch": {TOKEN}, "cage": set()}
    assert [name for name, text in seen.items() if site.namespace in text] == ["builder"], (
        "the engine's socket"
    )
    assert story.completed.digest
    url = site.amqp.url.get_secret_value()
    for text in (repr(story.events), described):
        assert not [secret for secret in (PUSH, TOKEN, ENCODED, url, "guest:guest") if secret in text]
