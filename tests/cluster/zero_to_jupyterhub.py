"""A JupyterHub on the cluster, made of what the chart Zero to JupyterHub makes of values: real hub, proxy and KubeSpawner.

The chart itself comes from a host that tests cannot count on. These objects have its names, ports, variables and
permissions, and refuse every value that they do not know how to apply.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.hub_images import PROXY
from tests.cluster.installation import Values, merged
from tests.cluster.site import IMAGES

Object = dict[str, Any]

RELEASE = "hub"
SELECTOR = "app=jupyterhub"
_CONFIG = Path(__file__).with_name("zero_to_jupyterhub_config.py")
_DEFAULTS: Values = {
    "hub": {
        "config": {"JupyterHub": {"admin_access": True, "authenticator_class": "dummy"}},
        "services": {},
        "loadRoles": {},
        "extraConfig": {},
    },
    "singleuser": {
        "image": {"name": "quay.io/jupyterhub/k8s-singleuser-sample", "tag": "4.0.0"},
        "uid": 1000,
        "fsGid": 100,
        "startTimeout": 300,
        "cmd": "jupyterhub-singleuser",
    },
}
"""The chart's own, as far as they matter here."""
_KNOWN = (
    *("hub.image.name", "hub.image.tag", "hub.db.type", "hub.services", "hub.loadRoles", "hub.config"),
    *("hub.extraConfig", "singleuser.image.name", "singleuser.image.tag", "singleuser.uid"),
    *("singleuser.fsGid", "singleuser.startTimeout", "singleuser.cmd", "singleuser.nodeSelector"),
    *("singleuser.extraPodConfig", "singleuser.profileList"),
)


def unknown(values: Values, start: str = "") -> Iterator[str]:
    """Yield the names of values that these objects would ignore."""
    for name, value in values.items():
        path = f"{start}{name}"
        if path not in _KNOWN:
            deeper = any(known.startswith(f"{path}.") for known in _KNOWN) and isinstance(value, Mapping)
            yield from unknown(dict(value), f"{path}.") if deeper else [path]


def services() -> list[Object]:
    """Return the Services."""
    ports = {
        "hub": ("hub", 8081, 8081),
        "proxy-api": ("proxy", 8001, 8001),
        "proxy-public": ("proxy", 80, 8000),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "selector": _labels(component),
                "ports": [{"name": "http", "port": port, "targetPort": target}],
            },
        }
        for name, (component, port, target) in ports.items()
    ]


def secret(values: Values) -> Object:
    """Return the Secret `hub` with the values, and what the chart makes up once for a release."""
    used = merged(_DEFAULTS, values)
    made_up = [f"hub.services.{name}.apiToken" for name in used["hub"]["services"]]
    made_up += ["hub.config.ConfigurableHTTPProxy.auth_token", "hub.config.JupyterHub.cookie_secret"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub"},
        "stringData": {
            "values.yaml": json.dumps(used),
            **{name: secrets.token_hex(32) for name in made_up},
        },
    }


def workloads(values: Values, host_aliases: list[Object]) -> list[Object]:
    """Return hub and proxy; `host_aliases` stand in for the names that the cluster's DNS would know."""
    image = values["hub"]["image"]
    mounts = {"config": "/usr/local/etc/jupyterhub", "secret": "/usr/local/etc/jupyterhub/secret"}
    hub = {
        "name": "hub",
        "image": f"{image['name']}:{image['tag']}",
        "args": ["jupyterhub", "--config", "/usr/local/etc/jupyterhub/jupyterhub_config.py"],
        "workingDir": "/srv/jupyterhub",
        "env": [
            {"name": "HELM_RELEASE_NAME", "value": RELEASE},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            _proxy_token(),
        ],
        "readinessProbe": {"httpGet": {"path": "/hub/health", "port": 8081}, "periodSeconds": 2},
        "volumeMounts": [
            *({"name": name, "mountPath": path} for name, path in mounts.items()),
            {"name": "work", "mountPath": "/srv/jupyterhub"},
        ],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": False},
    }
    proxy = {
        "name": "chp",
        "image": f"{IMAGES}{PROXY}",
        "args": [
            *("--ip=", "--api-ip=", "--api-port=8001", "--port=8000"),
            *("--default-target=http://hub:8081", "--error-target=http://hub:8081/hub/error"),
        ],
        "env": [_proxy_token()],
        "readinessProbe": {"httpGet": {"path": "/_chp_healthz", "port": 8000}, "periodSeconds": 2},
        "securityContext": {"runAsUser": 65534, "runAsGroup": 65534, "allowPrivilegeEscalation": False},
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hub"},
        "data": {"jupyterhub_config.py": _CONFIG.read_text()},
    }
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": "hub"}},
        {"name": "secret", "secret": {"secretName": "hub"}},
        {"name": "work", "emptyDir": {}},
    ]
    account = {"serviceAccountName": "hub", "securityContext": {"fsGroup": 1000}, "volumes": volumes}
    return [
        *_permissions(),
        config,
        _deployment("hub", hub, {**account, "hostAliases": host_aliases}),
        _deployment("proxy", proxy, {"automountServiceAccountToken": False, "hostAliases": host_aliases}),
    ]


def _labels(component: str) -> dict[str, str]:
    return {"app": "jupyterhub", "component": component, "release": RELEASE}


def _proxy_token() -> Object:
    reference = {"name": "hub", "key": "hub.config.ConfigurableHTTPProxy.auth_token"}
    return {"name": "CONFIGPROXY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}}


def _deployment(name: str, container: Object, pod: Object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": _labels(name)},
            "template": {
                "metadata": {"labels": _labels(name)},
                "spec": {
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 5,
                    "containers": [container],
                    **pod,
                },
            },
        },
    }


def _permissions() -> list[Object]:
    group = "rbac.authorization.k8s.io"
    rules = [
        {
            "apiGroups": [""],
            "resources": ["pods", "persistentvolumeclaims", "secrets", "services"],
            "verbs": ["get", "watch", "list", "create", "delete", "patch"],
        },
        {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "watch", "list"]},
    ]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "hub"}},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "hub"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "hub"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "hub"},
            "subjects": [{"kind": "ServiceAccount", "name": "hub"}],
        },
    ]
