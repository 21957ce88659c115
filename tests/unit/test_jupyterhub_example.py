"""The example for one machine and the one for Kubernetes offer people the same."""

import re
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "deploy" / "jupyterhub"
VALUES: dict[str, Any] = yaml.safe_load((EXAMPLE / "values.yaml").read_text())
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((EXAMPLE / "service.yaml").read_text()))


def configured() -> Any:
    """Return what the example for one machine configures, without a Docker engine to ask."""
    namespace: dict[str, Any] = {}
    code = (EXAMPLE / "jupyterhub_config.py").read_text()
    profiles = code[code.index("PROFILES: ") : code.index("# Only images that were built")]
    roles = re.search(r"c\.JupyterHub\.load_roles = (.+)", code)
    assert roles
    exec(f"from typing import Any\n{profiles}\nROLES = {roles[1]}", namespace)
    return namespace


def test_both_examples_offer_the_same_profiles_and_rights() -> None:
    one_machine = configured()
    [profile] = VALUES["singleuser"]["profileList"]
    unlisted = profile["profile_options"]["image"]["unlisted_choice"]
    assert re.fullmatch(unlisted.pop("validation_regex"), "registry.example.org/hub/r2d-o-2dr-1a2b3c:0123456")
    unlisted.pop("validation_message")
    assert [profile] == one_machine["PROFILES"]
    roles = [{"name": name, **role} for name, role in VALUES["hub"]["loadRoles"].items()]
    assert roles == one_machine["ROLES"]


def test_hub_and_service_on_kubernetes_refer_to_each_other() -> None:
    [name] = VALUES["hub"]["services"]
    deployment, service = OBJECTS[0], OBJECTS[-1]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in container["env"]}
    assert VALUES["hub"]["services"][name]["url"] == f"http://{service['metadata']['name']}:8585"
    assert environment["JUPYTERHUB_SERVICE_NAME"]["value"] == name
    assert environment["JUPYTERHUB_SERVICE_PREFIX"]["value"] == f"/services/{name}/"
    assert environment["JUPYTERHUB_CLIENT_ID"]["value"] == f"service-{name}"
    key = environment["JUPYTERHUB_API_TOKEN"]["valueFrom"]["secretKeyRef"]["key"]
    assert key == f"hub.services.{name}.apiToken"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert container["readinessProbe"]["httpGet"]["path"].startswith(f"/services/{name}/")
