"""The pods of the chart that clean the disks of the engines."""

from typing import Any

import pytest
import yaml

from rabbit2docker.settings import ExecutorKind, Settings
from tests.cluster.rendering import NAME, Objects, Values, docker_api, refusal, render


def cleaner(objects: Objects) -> Any:
    """Return the pod beside the engines."""
    return objects["DaemonSet", f"{NAME}-cleaner"]["spec"]["template"]["spec"]


def test_what_cleans_the_disks_sees_what_engines_and_builders_see() -> None:
    nodes: Values = {"nodeSelector": {"pool": "builds"}, "tolerations": [{"operator": "Exists"}]}
    objects = render({"dockerApi": {**nodes, "disk": {"maxBytes": 100_000_000_000}}})
    pod, engine = cleaner(objects), docker_api(objects)["spec"]
    given = yaml.safe_load(objects["ConfigMap", f"{NAME}-settings"]["data"]["settings.yaml"])
    consumers = Settings(executor=ExecutorKind.KUBERNETES, kubernetes=given["kubernetes"])
    [container] = pod["containers"]
    variables = {each["name"].removeprefix("RABBIT2DOCKER_"): each["value"] for each in container["env"]}

    assert container["args"] == ["engine", "clean", "--watch"]
    assert variables["ENGINE__DISK__MAX_BYTES"] == "100000000000"
    assert variables["ENGINE__DISK__MAX_PERCENT"] == "80"
    assert variables["KUBERNETES__DOCKER_SOCKET"] == consumers.kubernetes.docker_socket
    assert variables["ENGINE__DISK__LEASES"] == str(consumers.engine_leases)
    assert pod["securityContext"]["runAsGroup"] == consumers.kubernetes.docker_group
    assert {name: pod[name] for name in nodes} == nodes
    # Builders find the directory, and may write to it, before there is an engine.
    [first] = engine["initContainers"]
    assert first["command"][-1] == str(consumers.engine_leases)
    assert first["securityContext"]["runAsGroup"] == consumers.kubernetes.docker_group


def test_disks_without_a_limit_are_not_cleaned() -> None:
    disk = {"maxPercent": None, "maxBytes": None}
    assert not [name for _, name in render({"dockerApi": {"disk": disk}}) if name == f"{NAME}-cleaner"]
    assert "set dockerApi.disk" in refusal({"config": {"engine": {"disk": {"max_percent": 50}}}})


@pytest.mark.parametrize("storage", [{}, {"type": "hostPath"}], ids=str)
def test_the_cleaner_sees_the_disk_of_the_engine(storage: Values) -> None:
    objects = render({"dockerApi": {"storage": storage}})
    ours, engines = (
        next(volume for volume in pod["volumes"] if volume["name"] == "storage")
        for pod in (cleaner(objects), docker_api(objects)["spec"])
    )
    assert ours == engines


@pytest.mark.parametrize("disk", [{"maxPercent": 100}, {"maxBytes": "100GB"}, {"maxByte": 1}], ids=str)
def test_impossible_limits_are_refused(disk: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal({"dockerApi": {"disk": disk}})
