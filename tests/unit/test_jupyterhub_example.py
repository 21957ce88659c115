"""The example for one machine and the one for Kubernetes offer people the same."""

import re
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "deploy" / "jupyterhub"
VALUES: dict[str, Any] = yaml.safe_load((EXAMPLE / "values.yaml").read_text())


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
