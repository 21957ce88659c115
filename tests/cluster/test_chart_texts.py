"""Texts of the chart: the reference of its values is complete, and what an installation prints is true and holds no secret."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.helm import reference, schema

from tests.cluster.rendering import (
    EVERYTHING,
    KUBERNETES,
    NAME,
    NEEDED,
    PASSWORD,
    Values,
    helm,
    merged,
    render,
)

HUB: Values = {"hubService": {"enabled": True}}
HUB_ALONE: Values = {**HUB, "consumer": {"enabled": False}, "dockerApi": {"enabled": False}}
SECRETS: Values = {
    "consumer": {"extraEnv": {"HTTPS_PROXY": f"http://user:{PASSWORD}@proxy.example.org"}},
    "hubService": {"enabled": True, "extraEnv": {"TOKEN": PASSWORD}},
    "dockerApi": {"daemonConfig": {"proxies": {"https-proxy": f"http://user:{PASSWORD}@proxy"}}},
}
NOTES = "files/NOTES.txt"


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart whose notes are in an object: `helm template` prints none."""
    copy = tmp_path_factory.mktemp("chart") / "rabbit2docker"
    shutil.copytree(schema.CHART, copy)
    (copy / "templates/NOTES.txt").rename(copy / NOTES)
    notes = f'kind: Notes\nmetadata: {{name: notes}}\ntext: {{{{ tpl (.Files.Get "{NOTES}") . | toJson }}}}\n'
    (copy / "templates/printed.yaml").write_text(notes)
    return copy


def printed(chart: Path, *values: Values) -> str:
    """Return what `helm install` prints after an installation."""
    command = ("template", f"--kube-version={KUBERNETES}", "r2d", "--show-only=templates/printed.yaml")
    result = helm(merged(NEEDED, *values), *command, chart=chart)
    assert not result.returncode, result.stderr
    return str(yaml.safe_load(result.stdout)["text"])


def test_every_value_is_described_and_the_reference_is_up_to_date() -> None:
    found = reference.values(schema.VALUES.read_text(), schema.values_schema())

    assert [".".join(one.path) for one in found if not (one.description or one.is_group)] == []
    assert schema.README.read_text() == schema.readme(), "run python -m deploy.helm.schema"


def test_the_reference_and_the_schema_know_the_same_values() -> None:
    listed = set(re.findall(r"^\| `([\w.]+)` ", schema.README.read_text(), re.MULTILINE))
    for_parents = {"enabled", "custom", "global.imagePullSecrets"}

    def paths(node: Any, prefix: str = "") -> set[str]:
        inner = node.get("properties", {})
        if not inner or prefix == "config." or prefix.rstrip(".") in listed:
            return {prefix.rstrip(".")}
        return {path for name, child in inner.items() for path in paths(child, f"{prefix}{name}.")}

    assert paths(schema.values_schema()) - listed == for_parents


@pytest.mark.parametrize("values", [{}, HUB, HUB_ALONE], ids=["builds", "everything", "hub"])
def test_the_notes_name_objects_that_are_there(chart: Path, values: Values) -> None:
    text = printed(chart, values)
    kinds = {"deployment": "Deployment", "daemonset": "DaemonSet"}
    named = {(kinds[kind], name) for kind, name in re.findall(r"(deployment|daemonset)/([\w-]+)", text)}
    workloads = {key for key in render(values) if key[0] in kinds.values()}

    assert named == workloads
    for service in re.findall(r"http://([\w-]+)\.builds:", text):
        assert ("Service", service) in render(values)


def test_the_notes_show_no_secret(chart: Path) -> None:
    text = printed(chart, EVERYTHING, SECRETS)

    assert PASSWORD not in text
    assert "proxy" not in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "list a registry, mirror or git server with a\nprivate address in networkPolicy.builds.egress"),
        ({"networkPolicy": {"enabled": False}}, "networkPolicy.enabled is false"),
        ({"pushSecret": ""}, "images are pushed without credentials"),
        ({"hubService": {"enabled": True, "persistence": {"enabled": False}}}, "lost with its pod"),
        (HUB, f"http://hub-{NAME}.builds:8585/services/binder/"),
        ({"removeOnUninstall": False}, "leaves build pods"),
    ],
    ids=["policies", "no-policies", "no-push-secret", "no-volume", "hub", "no-removal"],
)
def test_the_notes_say_what_an_operator_must_know(chart: Path, values: Values, words: str) -> None:
    assert words in printed(chart, values)
