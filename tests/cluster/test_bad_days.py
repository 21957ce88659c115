"""Failures of a real cluster: each build ends once, for a reason that a person understands, and leaves nothing."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.cluster.harness import faults, kubectl
from tests.cluster.harness.layout import HOST
from tests.cluster.site import IMAGES, REGISTRY, Site, opened
from tests.corpus.registry import registry
from tests.support.consumer import Consumer
from tests.support.stories import Story, asked, build
from tests.support.waiting import eventually, eventually_blocking

Start = Callable[..., Consumer]
GIVES_UP = {"RABBIT2DOCKER_KUBERNETES__PENDING_SECONDS": "12"}
"""Of a consumer whose pods wait for something that will not come; long enough for it to ask what they wait for."""
ONE_ATTEMPT = {"RABBIT2DOCKER_LIMITS__ATTEMPTS": "1"}
"""Of a consumer whose builds do not survive a fault that counts as theirs."""
LOSES_NODES = {"RABBIT2DOCKER_KUBERNETES__TERMINATION_SECONDS": "2"}
"""Of a consumer whose pod's node is gone: no process is left that would use the time to end."""


@pytest.fixture(scope="module")
def site(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with opened(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Start consumers that end with the test; before that nothing of the test's builds may be left."""
    started: list[Consumer] = []

    def start_one(**variables: str) -> Consumer:
        consumer = site.consumer(
            **{
                "RABBIT2DOCKER_LIMITS__KEEP_ENDED_SECONDS": "3",
                **variables,
            }
        )
        consumer.start_and_wait()
        started.append(consumer)
        return consumer

    yield start_one
    eventually_blocking(lambda: not site.pods(), seconds=120)
    for consumer in started:
        if not consumer.has_ended():
            assert consumer.stop() == 0
    assert site.leftovers() == []
    for consumer in started:
        assert not [line for line in consumer.lines() if line["level"] == "error"]


@pytest.fixture
def ours() -> None:
    if not faults.are_possible():
        pytest.skip("the processes of this cluster are not ours")


def waits(story: Story) -> list[str]:
    """Return the published reasons for which the build did not run yet."""
    return [progress.detail.waiting_for for progress in story.progress if progress.detail.waiting_for]


class TestPodsThatNeverStart:
    async def test_a_build_whose_push_secret_is_missing_fails_and_names_it(
        self, site: Site, start: Start
    ) -> None:
        start(**GIVES_UP, RABBIT2DOCKER_KUBERNETES__PUSH_SECRET="no-such-secret")
        story = await build(site.amqp, site.quick("no-secret").spec())
        assert story.failed.reason == "pod_misconfigured"
        assert story.failed.category == "operator"
        assert "no-such-secret" in story.failed.message
        assert any("no-such-secret" in text for text in waits(story)), (
            "the reason is published while there is time to mend it"
        )

    async def test_a_build_waits_for_a_push_secret_that_comes_late(self, site: Site, start: Start) -> None:
        start(RABBIT2DOCKER_KUBERNETES__PUSH_SECRET="late")
        async with asked(site.amqp, site.quick("late-secret").spec()) as request:
            await request.until(lambda event: "late" in str(getattr(event.data, "detail", "")))
            push_secret("late", REGISTRY, site)
            story = await request.story()
        assert story.completed.digest

    async def test_a_build_whose_builder_image_cannot_be_pulled_fails_and_names_it(
        self, site: Site, start: Start
    ) -> None:
        image = f"{REGISTRY}/no-such-image:1"
        start(**GIVES_UP, RABBIT2DOCKER_BUILDER__IMAGE=image)
        story = await build(site.amqp, site.quick("no-image").spec())
        assert story.failed.reason == "builder_image_unavailable"
        assert image in story.failed.message

    async def test_a_build_whose_builder_image_has_no_python_fails_and_says_so(
        self, site: Site, start: Start
    ) -> None:
        start(**GIVES_UP, RABBIT2DOCKER_BUILDER__IMAGE=f"{IMAGES}busybox:1")
        story = await build(site.amqp, site.quick("no-builder").spec())
        assert story.failed.reason == "pod_misconfigured"
        assert "python3" in story.failed.message

    async def test_a_request_without_docker_api_waits_and_is_rejected_in_the_end(
        self, site: Site, start: Start
    ) -> None:
        site.remove_docker_api()
        try:
            consumer = start(RABBIT2DOCKER_LIMITS__OUTAGE_SECONDS="5")
            await eventually(lambda: "has a ready docker-api" in consumer.get("/health/ready")[1])
            story = await build(site.amqp, site.quick("no-engine").spec())
            assert story.rejected.reason == "unavailable"
            assert "docker-api" in story.rejected.message
            assert any("docker-api" in text for text in waits(story))
        finally:
            site.provide_docker_api()

    async def test_a_build_that_waits_for_docker_api_starts_when_it_comes(
        self, site: Site, start: Start
    ) -> None:
        site.remove_docker_api()
        try:
            start()
            async with asked(site.amqp, site.quick("engine-late").spec()) as request:
                await request.until(lambda event: "docker-api" in str(getattr(event.data, "message", "")))
                await asyncio.to_thread(site.provide_docker_api)
                story = await request.story()
        finally:
            site.provide_docker_api()
        assert story.completed.attempt == 1

    async def test_a_build_that_waits_for_a_node_can_be_cancelled(self, site: Site, start: Start) -> None:
        start(RABBIT2DOCKER_KUBERNETES__NODE_SELECTOR='{"no": "node"}')
        async with asked(site.amqp, site.quick("waits").spec()) as request:
            await request.until(lambda event: "Waiting for a node" in str(getattr(event.data, "message", "")))
            await request.cancel()
            story = await request.story()
        assert story.end.kind == "cancelled"


class TestPodsThatEndEarly:
    async def test_a_pod_deleted_by_hand_ends_its_build_in_one_clear_event(
        self, site: Site, start: Start
    ) -> None:
        start()
        async with asked(site.amqp, site.slow(60, "deleted").spec()) as request:
            await request.until_line("second-2")
            name = request.events[-1].subject
            [pod] = site.pods()
            # Not by force: kubectl returns when the pod is gone, which our finalizer may not hold up for long.
            await asyncio.to_thread(
                lambda: site.kubectl("delete", "pod", pod["metadata"]["name"], "--timeout=60s")
            )
            story = await request.story()
        assert name
        assert story.failed.reason == "pod_deleted"
        assert story.failed.message == "The build pod was deleted from the cluster."
        assert story.failed.hint

    async def test_an_evicted_build_is_tried_again(self, site: Site, start: Start) -> None:
        start()
        async with asked(site.amqp, site.slow(8, "evicted").spec()) as request:
            await request.until_line("second-2")
            [pod] = site.pods()
            await asyncio.to_thread(evict, pod["metadata"]["name"], site.namespace)
            story = await request.story()
        assert story.completed.attempt == 2
        assert any(progress.detail.failed_reason == "evicted" for progress in story.progress)

    async def test_a_builder_that_runs_out_of_memory_is_reported(self, site: Site, start: Start) -> None:
        start(RABBIT2DOCKER_KUBERNETES__MEMORY_LIMIT="30Mi", RABBIT2DOCKER_KUBERNETES__MEMORY_REQUEST="30Mi")
        story = await build(site.amqp, site.quick("memory").spec())
        assert story.failed.reason == "builder_out_of_memory"
        assert "memory" in story.failed.message

    async def test_cancelling_a_build_ends_its_step_in_the_engine(self, site: Site, start: Start) -> None:
        start()
        repo = site.slow(300, "cancelled")
        async with asked(site.amqp, repo.spec()) as request:
            await request.until_line("second-2")
            assert steps_running(site.step_of("cancelled"))
            await request.cancel()
            story = await request.story()
        assert story.end.kind == "cancelled"
        await eventually(lambda: not steps_running(site.step_of("cancelled")))

    async def test_a_build_beyond_its_time_limit_is_ended(self, site: Site, start: Start) -> None:
        start()
        story = await build(site.amqp, site.slow(300, "limit").spec(), timeout_seconds=12)
        assert story.failed.reason == "timeout"


@pytest.mark.usefixtures("ours")
class TestTheEngineBreaks:
    async def test_a_docker_engine_that_dies_has_its_build_tried_again_beside_it_if_there_is_no_other(
        self, site: Site, start: Start
    ) -> None:
        node = "node-2"
        own_nodes = {"default": {"node_selector": {"kubernetes.io/hostname": node}}}
        start(RABBIT2DOCKER_TENANTS=json.dumps(own_nodes), **ONE_ATTEMPT)
        async with asked(site.amqp, site.slow(10, "engine").spec()) as request:
            await request.until_line("second-2")
            await asyncio.to_thread(faults.kill_docker_api, node, site.namespace)
            story = await request.story()
        assert story.completed.attempt == 2
        assert any(progress.detail.failed_reason == "docker_unavailable" for progress in story.progress)
        site.provide_docker_api()

    async def test_no_build_is_lost_to_a_rolling_update_of_the_engines(
        self, site: Site, start: Start
    ) -> None:
        start(**ONE_ATTEMPT)
        repos = [site.slow(12, f"rolled-{number}") for number in range(3)]
        async with AsyncExitStack() as stack:
            requests = [await stack.enter_async_context(asked(site.amqp, repo.spec())) for repo in repos]
            await asyncio.gather(*(request.until_line("second-1") for request in requests))
            site.kubectl("rollout", "restart", "daemonset/docker-api")
            await asyncio.to_thread(site.provide_docker_api)
            stories = await asyncio.gather(*(request.story() for request in requests))
        assert all(story.completed.digest for story in stories)
        retries = [
            progress for story in stories for progress in story.progress if progress.detail.failed_reason
        ]
        assert retries
        assert {progress.detail.failed_reason for progress in retries} == {"docker_unavailable"}

    async def test_a_wrong_push_secret_fails_a_build_at_once(self, site: Site, start: Start) -> None:
        rules = [
            "* /v2/ 401 UNAUTHORIZED authentication required",
            "GET /token 401 UNAUTHORIZED bad password",
        ]
        with registry(rules, host=HOST) as strict:
            start(
                RABBIT2DOCKER_IMAGES__PREFIX=f"{strict.address}/",
                # Otherwise the request is rejected for it before there is a build.
                RABBIT2DOCKER_IMAGES__CHECK_REGISTRY="false",
                RABBIT2DOCKER_KUBERNETES__PUSH_SECRET=push_secret("wrong", strict.address, site),
            )
            story = await build(site.amqp, site.quick("wrong-secret").spec())
        assert (story.failed.reason, story.failed.category) == ("push_denied", "operator")
        assert "bad password" in story.failed.message
        assert story.failed.attempt == 1
        assert not [line for line in story.log if "Trying again" in line]


@pytest.mark.disruptive
@pytest.mark.usefixtures("ours")
class TestTheClusterBreaks:
    @pytest.mark.timeout(420)
    async def test_a_build_runs_on_while_the_api_server_is_down_for_a_minute(
        self, site: Site, start: Start
    ) -> None:
        consumer = start()
        async with asked(site.amqp, site.slow(40, "no-api").spec()) as request:
            await request.until_line("second-2")

            def minute_without() -> None:
                with faults.api_server_down():
                    eventually_blocking(lambda: not consumer.is_ready(), seconds=60)
                    subprocess.run(["sleep", "60"], check=True)

            await asyncio.to_thread(minute_without)
            story = await request.story()
        assert story.completed.attempt == 1
        seconds = [line.rpartition(" ")[2] for line in story.log if "second-" in line and "[" not in line]
        assert seconds == [f"second-{number}" for number in range(40)]
        await eventually(consumer.is_ready)

    async def test_a_request_in_an_outage_becomes_a_build_afterwards(self, site: Site, start: Start) -> None:
        consumer = start()
        repo = site.quick("outage")
        async with asked(site.amqp, repo.spec()) as request:
            story = await request.story()
        assert story.completed.digest
        repo.commit({"more": "1"})

        def outage() -> None:
            with faults.api_server_down():
                eventually_blocking(lambda: not consumer.is_ready(), seconds=60)

        down = asyncio.create_task(asyncio.to_thread(outage))
        async with asked(site.amqp, repo.spec()) as request:
            story = await request.story()
        await down
        assert story.completed.digest

    @pytest.mark.timeout(600)
    async def test_a_node_that_dies_has_its_build_tried_again_on_another(
        self, site: Site, start: Start
    ) -> None:
        start(**LOSES_NODES)
        # The first node's address is the control plane's, too: the other one has to die.
        kubectl.kubectl("cordon", "node-1")
        try:
            async with asked(site.amqp, site.slow(12, "node-dies").spec()) as request:
                await request.until_line("second-1")
                kubectl.kubectl("uncordon", "node-1")
                with faults.node_down("node-2"):
                    story = await request.story()
        finally:
            kubectl.kubectl("uncordon", "node-1")
        assert story.completed.attempt == 2
        assert any(progress.detail.failed_reason == "node_lost" for progress in story.progress)
        site.provide_docker_api()

    @pytest.mark.timeout(600)
    async def test_a_node_that_falls_silent_has_its_build_tried_again_on_another(
        self, site: Site, start: Start
    ) -> None:
        start(**LOSES_NODES)
        kubectl.kubectl("cordon", "node-1")
        try:
            async with asked(
                site.amqp, site.slow(600, "node-silent").spec(), timeout_seconds=3000
            ) as request:
                await request.until_line("second-1")
                kubectl.kubectl("uncordon", "node-1")
                with faults.kubelet_frozen("node-2"):
                    await request.until(lambda event: getattr(event.data, "attempt", 1) == 2)
                    await request.until_line("second-1")
                    await request.cancel()
                    story = await request.story()
        finally:
            kubectl.kubectl("uncordon", "node-1")
        assert story.end.kind == "cancelled"
        assert any(progress.detail.failed_reason == "node_lost" for progress in story.progress)
        site.provide_docker_api()


def push_secret(name: str, host: str, site: Site) -> str:
    """Make a Secret with a login that no registry knows; return its name."""
    config = json.dumps({"auths": {host: {"auth": "bm9ib2R5Om5vdGhpbmc="}}})
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    }
    kubectl.apply(secret, namespace=site.namespace)
    return name


def evict(name: str, namespace: str) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    kubectl.kubectl(
        "create",
        f"--raw=/api/v1/namespaces/{namespace}/pods/{name}/eviction",
        "--filename=-",
        stdin=json.dumps(body),
    )


def steps_running(text: str) -> bool:
    """Return whether a build step runs on any node: a process with the text in its command line."""
    found = subprocess.run(["pgrep", "--full", f"busybox sh -c .*{text}"], capture_output=True, check=False)
    return not found.returncode
