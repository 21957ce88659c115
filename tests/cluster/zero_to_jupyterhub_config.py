"""The configuration that the chart Zero to JupyterHub gives its hub, as far as it follows from the values that are tried.

It runs in the hub's pod, where it reads values and secrets from the files of the Secret `hub`.
"""

import json
import os
from pathlib import Path
from typing import Any

c = get_config()  # type: ignore[name-defined]  # noqa: F821

SECRET = Path("/usr/local/etc/jupyterhub/secret")
VALUES: dict[str, Any] = json.loads((SECRET / "values.yaml").read_text())
HUB, USERS = VALUES["hub"], VALUES["singleuser"]
TRAITS = {
    "cmd": "cmd",
    "uid": "uid",
    "fs_gid": "fsGid",
    "start_timeout": "startTimeout",
    "node_selector": "nodeSelector",
    "extra_pod_config": "extraPodConfig",
    "profile_list": "profileList",
}
"""Settings of KubeSpawner, by the names of values below `singleuser`."""


def secret(key: str) -> str:
    """Return a text that the chart has made once for the release."""
    return (SECRET / key).read_text()


c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.JupyterHub.ip = "0.0.0.0"
c.JupyterHub.hub_bind_url = "http://:8081"
c.JupyterHub.hub_connect_url = "http://hub:8081"
c.JupyterHub.db_url = {"sqlite-memory": "sqlite://"}[HUB["db"]["type"]]
c.JupyterHub.cleanup_servers = False
c.JupyterHub.last_activity_interval = 60
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.JupyterHub.cookie_secret = bytes.fromhex(secret("hub.config.JupyterHub.cookie_secret"))
c.ConfigurableHTTPProxy.api_url = "http://proxy-api:8001"
c.ConfigurableHTTPProxy.should_start = False

c.KubeSpawner.namespace = os.environ["POD_NAMESPACE"]
c.KubeSpawner.common_labels = {"app": "jupyterhub", "release": os.environ["HELM_RELEASE_NAME"]}
c.KubeSpawner.image = "{name}:{tag}".format(**USERS["image"])
for trait, name in TRAITS.items():
    if USERS.get(name) is not None:
        setattr(c.KubeSpawner, trait, USERS[name])
c.KubeSpawner.tolerations = [
    {"key": key, "operator": "Equal", "value": "user", "effect": "NoSchedule"}
    for key in ("hub.jupyter.org/dedicated", "hub.jupyter.org_dedicated")
]

c.JupyterHub.services = [
    {"name": name, "api_token": secret(f"hub.services.{name}.apiToken"), **service}
    for name, service in HUB["services"].items()
]
c.JupyterHub.load_roles = [{"name": name, **role} for name, role in HUB["loadRoles"].items()]
for section, settings in HUB["config"].items():
    c[section].update(settings)
for _, code in sorted(HUB["extraConfig"].items()):
    exec(code)
