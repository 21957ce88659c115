"""Values that `rabbit2docker migrate` has made of other charts' are installed by helm as they are."""

from pathlib import Path

import pytest
import yaml

from tests.cluster.rendering import KUBERNETES, helm

RECORDED = sorted(Path(__file__).parents[1].glob("unit/migration/*.expected.yaml"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".")[0])
def test_helm_renders_translated_values(path: Path) -> None:
    values = yaml.safe_load(path.read_text())

    result = helm(values.get("rabbit2docker", values), "template", f"--kube-version={KUBERNETES}", "r2d")

    assert not result.returncode, result.stderr
    objects = [found for found in yaml.safe_load_all(result.stdout) if found]
    assert {"Deployment", "DaemonSet", "NetworkPolicy"} <= {found["kind"] for found in objects}
