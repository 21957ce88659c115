"""Promises of every executor, on real pods: tests of the behaviour suite, with another stage."""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.behaviour.test_executors as suite
from rabbit2docker.consumer.builder import BUILDER_PATH
from rabbit2docker.consumer.executors.base import Executor
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor
from rabbit2docker.settings import BuilderSettings, KubernetesSettings, Settings
from tests.cluster.harness import faults, layout
from tests.cluster.site import IMAGES, Site, opened
from tests.support import scripted_pod

# What depends on kubelet, containerd and API server. The others run on the simulated API server of the behaviour tests.
CHOSEN = (
    suite.test_creating_a_record_starts_its_builder,
    suite.test_concurrent_creations_of_one_record_start_one_builder,
    suite.test_concurrent_status_updates_are_all_kept,
    suite.test_lines_arrive_while_the_builder_runs,
    suite.test_reading_resumes_after_any_line,
    suite.test_lines_that_the_builder_counted_but_that_are_lost_are_reported_missing,
    suite.test_an_ended_attempt_has_the_result_that_the_builder_wrote,
    suite.test_a_killed_builder_ends_the_attempt_without_a_result,
    suite.test_cancel_stops_the_builder,
    suite.test_the_name_of_a_deleted_record_can_be_used_again,
    suite.test_a_record_removed_from_outside_is_published_and_ends_its_reader,
    suite.test_the_next_service_finds_the_same_records_and_their_later_lines,
    suite.test_the_next_service_finds_a_builder_that_ended_between_services,
    suite.test_the_next_service_can_cancel_an_attempt_of_the_previous_one,
)
globals().update({test.__name__: test for test in CHOSEN})

NODES = ("node-1", "node-2")


class ClusterStage:
    """Implements `Stage` with pods that do what files say, in the nodes' directories as this machine sees them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        # One for each test: the pod of an earlier one may still be about to start.
        self._socket_directory = f"{site.socket_directory}/{uuid.uuid4().hex[:8]}"
        # A node's /var/run is a directory of this machine.
        inside = self._socket_directory.removeprefix("/var/run/")
        self._directories = [layout.node(name).directory / "run" / inside for name in NODES]
        for directory in self._directories:
            directory.mkdir(parents=True)
        text = BUILDER_PATH.read_text("utf-8").partition("\nif __name__ ==")[0]
        own = Path(scripted_pod.__file__).read_text("utf-8").replace(scripted_pod.IMPORTED, "")
        self._program = f"{text}\n\n{own}"

    def service(self) -> Executor:
        kubernetes = KubernetesSettings(
            namespace=self._site.namespace,
            docker_socket=f"{self._socket_directory}/docker.sock",
            kubeconfig=Path(os.environ["KUBECONFIG"]),
        )
        builder = BuilderSettings(image=f"{IMAGES}repo2docker:1")
        return KubernetesExecutor(
            Settings(kubernetes=kubernetes, builder=builder), builder_text=self._program
        )

    def prepare(self, *names: str) -> None:
        for name in names:
            for path in self._paths(name, "commands") + self._paths(name, "starts"):
                if path.exists() and '"end"' in path.read_text():
                    path.unlink()  # a former builder's of that name
                path.touch()
                path.chmod(0o666)

    def _paths(self, name: str, kind: str) -> list[Path]:
        return [directory / f"{name}.{kind}" for directory in self._directories]

    def _command(self, name: str, command: dict[str, object]) -> None:
        for path in self._paths(name, "commands"):
            with path.open("a") as file:
                file.write(json.dumps(command) + "\n")

    def write(self, name: str, *texts: str) -> None:
        self._command(name, {"write": texts})

    def end(self, name: str, reason: str = "ok", **more: object) -> None:
        self._command(name, {"end": {"reason": reason, **more}})

    def kill(self, name: str) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                is_builder = b"/etc/rabbit2docker/builder/builder.py" in path.read_bytes()
                host = (path.parent / "root/etc/hostname").read_text().strip() if is_builder else ""
            except OSError:
                continue
            if host == name:
                os.kill(int(path.parent.name), signal.SIGKILL)
                return
        raise AssertionError(f"no builder runs for {name}")

    def remove(self, name: str) -> None:
        self._site.kubectl("patch", "pod", name, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
        self._site.kubectl("delete", "pod", name, "--grace-period=0", "--force")

    def starts(self, name: str) -> int:
        return sum(len(path.read_text().splitlines()) for path in self._paths(name, "starts"))


@pytest.fixture(scope="module")
def site(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not faults.are_possible():
        pytest.skip("commands reach pods by the nodes' directories, which only our own cluster shares")
    with opened(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def stage(site: Site) -> Iterator[ClusterStage]:
    yield ClusterStage(site)
    site.end_all_builds()
