"""Jobs of the chart that are clients of RabbitMQ: the build of `helm test`, the topology, and the replay."""

from typing import Any

import pytest
import yaml

from tests.cluster.rendering import NAME, Objects, Values, refusal, render

HUB: Values = {"hubService": {"enabled": True, "amqp": {"existingSecret": "of-the-hub"}}}
ALONE: Values = {"consumer": {"enabled": False}, "dockerApi": {"enabled": False}}
TOPOLOGY: Values = {"topologyJob": {"enabled": True, "existingSecret": "operator"}}
REPLAY: Values = {"replay": {"schedule": "@daily", "existingSecret": "operator"}}


def build_test(objects: Objects) -> Any:
    return objects["Pod", f"{NAME}-test-build"]


def url_of(pod: Any) -> str:
    [container] = pod["containers"]
    [url] = [variable for variable in container["env"] if variable["name"] == "RABBIT2DOCKER_AMQP__URL"]
    return str(url["valueFrom"]["secretKeyRef"]["name"])


def test_the_test_of_a_release_really_builds_with_a_user_that_may_request_builds() -> None:
    test = {"repository": "https://git.example.org/a", "ref": "v1", "tenant": "hub-a", "timeoutSeconds": 600}
    pod = build_test(render(HUB, {"buildTest": test}))

    [container] = pod["spec"]["containers"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert container["args"][:5] == [
        "build",
        "https://git.example.org/a",
        "--ref=v1",
        "--force",
        "--keep-cache",
    ]
    assert pod["spec"]["activeDeadlineSeconds"] == 600
    assert {"name": "RABBIT2DOCKER_TENANT", "value": "hub-a"} in container["env"]
    assert url_of(pod["spec"]) == "of-the-hub"
    assert url_of(build_test(render())["spec"]) == "rabbitmq"
    assert url_of(build_test(render(HUB, {"buildTest": {"existingSecret": "own"}}))["spec"]) == "own"


def test_a_release_without_clients_of_rabbitmq_has_no_test() -> None:
    socket = {"config": {"kubernetes": {"docker_socket": "/s", "docker_api_labels": {"a": "b"}}}}

    assert ("Pod", f"{NAME}-test-build") not in render({"consumer": {"enabled": False}})
    assert ("Pod", f"{NAME}-test-build") in render({"dockerApi": {"enabled": False}}, socket)


def test_a_hubs_release_tests_with_its_own_settings_and_image() -> None:
    pod = build_test(render(HUB, ALONE, {"hubService": {"image": {"repository": "hub", "tag": "2"}}}))["spec"]

    assert pod["volumes"][0]["configMap"] == {"name": f"{NAME}-hub"}
    assert pod["containers"][0]["image"] == "hub:2"


def test_the_topology_is_declared_before_each_install_and_upgrade_with_settings_of_its_own() -> None:
    objects = render(TOPOLOGY, {"config": {"tenants": ["hub-a"], "topology": {"requests_length": 7}}})

    job, settings = objects["Job", f"{NAME}-topology"], objects["ConfigMap", f"{NAME}-topology"]
    for each in (job, settings):
        assert each["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [each["metadata"]["annotations"]["helm.sh/hook-weight"] for each in (settings, job)]
    assert weights == ["-1", "0"]
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["topology", "declare"]
    assert url_of(pod) == "operator"
    assert pod["volumes"][0]["configMap"]["name"] == settings["metadata"]["name"]
    declared = yaml.safe_load(settings["data"]["settings.yaml"])
    assert (declared["tenants"], declared["topology"]) == (["hub-a"], {"requests_length": 7})


def test_the_topology_needs_an_operator() -> None:
    assert ("Job", f"{NAME}-topology") not in render()
    assert "topologyJob.existingSecret is not set" in refusal({"topologyJob": {"enabled": True}})


@pytest.mark.parametrize("component", ["consumer", "hubService"])
def test_jobs_have_proxies_certificates_and_nodes_of_the_services(component: str) -> None:
    values: Values = {
        component: {
            "extraEnv": {"HTTPS_PROXY": "http://proxy.example.org"},
            "extraVolumes": [{"name": "authority", "configMap": {"name": "{{ .Release.Name }}-ca"}}],
            "extraVolumeMounts": [{"name": "authority", "mountPath": "/authority"}],
            "nodeSelector": {"pool": "core"},
            "tolerations": [{"operator": "Exists"}],
        }
    }
    objects = render(HUB, TOPOLOGY, values, *([REPLAY] if component == "consumer" else [ALONE]))

    pods = [build_test(objects)["spec"], objects["Job", f"{NAME}-topology"]["spec"]["template"]["spec"]]
    if component == "consumer":
        pods.append(objects["CronJob", f"{NAME}-replay"]["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for pod in pods:
        [container] = pod["containers"]
        assert {"name": "HTTPS_PROXY", "value": "http://proxy.example.org"} in container["env"]
        assert {"name": "authority", "mountPath": "/authority"} in container["volumeMounts"]
        assert {"name": "authority", "configMap": {"name": "r2d-ca"}} in pod["volumes"]
        assert (pod["nodeSelector"], pod["tolerations"]) == ({"pool": "core"}, [{"operator": "Exists"}])
        assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    "wrong",
    [{"buildTest": {"repo": "x"}}, {"buildTest": {"tenant": "Hub A"}}, {"topologyJob": {"enabled": "yes"}}],
    ids=str,
)
def test_wrong_values_of_jobs_are_refused(wrong: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(wrong)
