"""Operators set the same fields for the pods of every component, and templates are evaluated in them."""

from typing import Any

import pytest

from tests.cluster.rendering import NAME, Objects, Values, refusal, render

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
COMPONENTS = {
    "consumer": ("Deployment", NAME),
    "hubService": ("Deployment", f"{NAME}-hub"),
    "dockerApi": ("DaemonSet", f"{NAME}-docker-api"),
}
TERM = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["builds"]}]}
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [TERM]}}}
SPREAD = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
SIDECAR = {"name": "sidecar", "image": "example.org/sidecar:1"}
FIELDS: Values = {
    "podLabels": {"team": "hubs"},
    "podAnnotations": {"release": "{{ .Release.Name }}"},
    "nodeSelector": {"pool": "builds"},
    "tolerations": [{"key": "builds", "operator": "Exists"}],
    "affinity": AFFINITY,
    "topologySpreadConstraints": [SPREAD],
    "priorityClassName": "high",
    "podSecurityContext": {"fsGroupChangePolicy": "OnRootMismatch"},
    "containerSecurityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    "extraEnv": {
        "PLAIN": "{{ .Release.Name }}",
        "NUMBER": 3,
        "OWN_NODE": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    },
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "extraVolumes": [{"name": "authority", "configMap": {"name": "{{ .Release.Name }}-authority"}}],
    "extraVolumeMounts": [{"name": "authority", "mountPath": "/authority"}],
    "initContainers": [{"name": "first", "image": "example.org/first:1"}],
    "extraContainers": [SIDECAR],
    "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
    "extraPodSpec": {"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["registry.example.org"]}]},
}


@pytest.fixture(scope="module")
def objects() -> Objects:
    image = {"image": {"digest": DIGEST, "tag": "stale"}}
    values = {name: {**FIELDS, **({} if name == "consumer" else image)} for name in COMPONENTS}
    on = {"enabled": True, "service": {"annotations": {"of": "{{ .Release.Name }}"}}}
    return render(
        image,
        values,
        {"hubService": on, "service": {"type": "NodePort", "nodePort": 30090, "annotations": {"a": "b"}}},
        {"imagePullSecrets": [{"name": "mirror"}], "commonLabels": {"billing": "research"}},
        {
            "extraObjects": [
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "{{ .Release.Name }}-authority"},
                },
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: of-{{ .Release.Namespace }}}",
            ]
        },
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_field_arrives_in_the_pod(objects: Objects, component: str) -> None:
    template = objects[COMPONENTS[component]]["spec"]["template"]
    spec: Any = template["spec"]
    main, *others = spec["containers"]

    assert template["metadata"]["labels"]["team"] == "hubs"
    assert template["metadata"]["annotations"]["release"] == "r2d"
    for name in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert spec[name] == FIELDS[name]
    assert spec["hostAliases"] == FIELDS["extraPodSpec"]["hostAliases"]
    assert spec["imagePullSecrets"] == [{"name": "mirror"}]
    assert spec["securityContext"].items() >= FIELDS["podSecurityContext"].items()
    assert main["securityContext"].items() >= FIELDS["containerSecurityContext"].items()
    environment = {variable["name"]: variable for variable in main["env"]}
    assert environment["PLAIN"]["value"] == "r2d"
    assert environment["NUMBER"]["value"] == "3"
    assert environment["OWN_NODE"]["valueFrom"] == FIELDS["extraEnv"]["OWN_NODE"]["valueFrom"]
    assert main["envFrom"] == FIELDS["extraEnvFrom"]
    assert main["volumeMounts"][-1] == FIELDS["extraVolumeMounts"][0]
    assert spec["volumes"][-1]["configMap"]["name"] == "r2d-authority"
    assert spec["initContainers"][-1]["name"] == "first"
    assert others == [SIDECAR]
    assert main["lifecycle"] == FIELDS["lifecycle"]
    assert main["image"].endswith(f"@{DIGEST}"), "a digest wins over a tag"


def test_defaults_of_the_security_contexts_stay_unless_they_are_changed(objects: Objects) -> None:
    spec = objects[COMPONENTS["consumer"]]["spec"]["template"]["spec"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    without_user = render({"consumer": {"podSecurityContext": {"runAsUser": None}}})
    assert (
        "runAsUser" not in without_user[COMPONENTS["consumer"]]["spec"]["template"]["spec"]["securityContext"]
    )


def test_the_jobs_of_an_uninstall_have_what_the_consumer_has(objects: Objects) -> None:
    spec = objects["Job", f"{NAME}-end-builds"]["spec"]["template"]["spec"]
    [container] = spec["containers"]

    assert {"name": "PLAIN", "value": "r2d"} in container["env"]
    assert container["volumeMounts"][-1] == FIELDS["extraVolumeMounts"][0]
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_services_have_their_type_and_annotations(objects: Objects) -> None:
    consumers, hub = objects["Service", NAME], objects["Service", f"hub-{NAME}"]

    assert consumers["spec"]["type"] == "NodePort"
    assert consumers["spec"]["ports"][0]["nodePort"] == 30090
    assert consumers["metadata"]["annotations"] == {"a": "b"}
    assert hub["metadata"]["annotations"] == {"of": "r2d"}


def test_further_objects_and_labels_belong_to_the_release(objects: Objects) -> None:
    assert {("ConfigMap", "r2d-authority"), ("ConfigMap", "of-builds")} <= set(objects)
    ours = [found for (_, name), found in objects.items() if name not in ("r2d-authority", "of-builds")]
    assert all(found["metadata"]["labels"]["billing"] == "research" for found in ours)


@pytest.mark.parametrize(
    "values",
    [
        *({name: {"extraVolume": []}} for name in COMPONENTS),
        {"consumer": {"extraEnv": ["NAME=value"]}},
        {"image": {"digest": "latest"}},
        {"extraObjects": {"kind": "ConfigMap"}},
        {"commonLabels": {"billing": 3}},
        {"service": {"nodePort": "http"}},
        {"hubService": {"podSecurityContext": "restricted"}},
    ],
    ids=str,
)
def test_unknown_and_impossible_values_are_refused(values: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(values)
