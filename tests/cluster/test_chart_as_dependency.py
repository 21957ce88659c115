"""The chart as a dependency of another chart, as hubs' own charts have it: switched on and off by a value."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.helm import schema

from tests.cluster.rendering import KUBERNETES, NEEDED, Values, merged

DEPENDENCY = {
    "name": "rabbit2docker",
    "version": ">=0.0.0-0",
    "repository": f"file://{schema.CHART}",
    "condition": "rabbit2docker.enabled",
}
# What charts of hubs have beside the sections of their dependencies.
PARENT_VALUES: Values = {
    "global": {"imagePullSecrets": [{"name": "mirror"}], "storageClass": "ssd"},
    "custom": {"homepage": "https://hub.example.org"},
    "jupyterhub": {"hub": {"db": {"type": "sqlite-pvc"}}},
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart that has this one twice, once under another name."""
    chart = tmp_path_factory.mktemp("parent") / "basehub"
    (chart / "templates").mkdir(parents=True)
    second = {**DEPENDENCY, "alias": "bulkbuilds", "condition": "bulkbuilds.enabled"}
    metadata = {
        "apiVersion": "v2",
        "name": "basehub",
        "version": "1.0.0",
        "dependencies": [DEPENDENCY, second],
    }
    (chart / "Chart.yaml").write_text(yaml.safe_dump(metadata))
    (chart / "values.yaml").write_text(yaml.safe_dump(PARENT_VALUES))
    (chart / "templates" / "note.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: of-the-parent\n"
    )
    subprocess.run(
        ["helm", "dependency", "update", "--skip-refresh", str(chart)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return chart


def template(chart: Path, values: Values) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", "template", f"--kube-version={KUBERNETES}", "staging", str(chart), "--values=-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(chart: Path, **sections: Any) -> dict[str, Any]:
    """Return the objects by kind and name."""
    off = {"rabbit2docker": {"enabled": False}, "bulkbuilds": {"enabled": False}}
    result = template(chart, merged(off, sections))
    assert not result.returncode, result.stderr
    objects = [found for found in yaml.safe_load_all(result.stdout) if found]
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in objects}


def test_a_parent_switches_the_chart_on_and_off(parent: Path) -> None:
    assert set(render(parent)) == {"ConfigMap/of-the-parent"}

    objects = render(parent, rabbit2docker={"enabled": True, **NEEDED})

    assert set(objects) >= {"Deployment/staging-rabbit2docker", "DaemonSet/staging-rabbit2docker-docker-api"}
    pod = objects["Deployment/staging-rabbit2docker"]["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "mirror"}], "the parent's global value"


def test_a_parent_may_have_the_chart_twice(parent: Path) -> None:
    on = {"enabled": True, **NEEDED}

    objects = render(parent, rabbit2docker=on, bulkbuilds=on)

    assert set(objects) >= {"Deployment/staging-rabbit2docker", "Deployment/staging-bulkbuilds"}
    settings = [
        yaml.safe_load(objects[f"ConfigMap/staging-{name}-settings"]["data"]["settings.yaml"])
        for name in ("rabbit2docker", "bulkbuilds")
    ]
    assert [each["instance"] for each in settings] == ["staging", "staging-bulkbuilds"]


@pytest.mark.parametrize(
    "section",
    [{"custom": {"a": "b"}}, {"global": {"anything": {"goes": 1}}}],
    ids=lambda one: next(iter(one)),
)
def test_sections_for_the_templates_of_a_parent_are_accepted(parent: Path, section: Values) -> None:
    assert render(parent, rabbit2docker={"enabled": True, **NEEDED, **section})


@pytest.mark.parametrize(
    "wrong",
    [{"enabled": "yes"}, {"replicas": 3}, {"customs": {}}, {"config": {"limits": {"concurent_builds": 3}}}],
    ids=str,
)
def test_a_parents_mistakes_are_refused(parent: Path, wrong: Values) -> None:
    result = template(parent, {"rabbit2docker": merged({"enabled": True, **NEEDED}, wrong)})

    assert result.returncode
    assert "don't meet the specifications of the schema" in result.stderr
    assert "rabbit2docker" in result.stderr
