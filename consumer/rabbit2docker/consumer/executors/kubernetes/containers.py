"""Containers of a build pod: which part of a build runs where, and what it can read there. No I/O.

- `builder` has the registry's credentials and the engine's socket. It reads nothing of the repository.
- `fetch` has the credentials for git. It fetches the repository into a directory that all three have.
- `cage` runs repo2docker on that directory. It has neither credentials nor the engine.

The last two run what the builder asks for, and end with it. Its log and its result are those of the pod.
"""

import json
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptSpec
from rabbit2docker.consumer.executors.builder_io import builder_spec
from rabbit2docker.consumer.executors.fetch_access import FetchAccess
from rabbit2docker.consumer.executors.kubernetes.models import Manifest
from rabbit2docker.consumer.executors.kubernetes.pod_status import BUILDER_CONTAINER
from rabbit2docker.settings import Settings

FETCH: Final = "fetch"
CAGE: Final = "cage"
HOME: Final = "/tmp"
BUILDER_DIR: Final = "/etc/rabbit2docker/builder"
ATTEMPT_DIR: Final = "/var/lib/rabbit2docker/attempt"
DOCKER_CONFIG_DIR: Final = "/etc/rabbit2docker/docker"
GIT_DIR: Final = "/etc/rabbit2docker/git"
PASSWD: Final = "passwd"
"""Key of a file for ssh, which refuses to work for a user id that has no name."""
SPEC_VARIABLE: Final = "RABBIT2DOCKER_BUILD"
_ENGINE_VARIABLES: Final = ("DOCKER_", "BUILDX_", "BUILDKIT_")


def containers(spec: AttemptSpec, settings: Settings, access: FetchAccess | None) -> list[Manifest]:
    """Return the containers of a pod; `access` is the content of the Secret for git."""
    directory = settings.kubernetes.docker_socket.rpartition("/")[0]
    builder = _container(
        BUILDER_CONTAINER,
        ["--spec-env", SPEC_VARIABLE],
        _builder_environment(spec, settings, access),
        settings,
    )
    # The directory instead of the socket: a restarted engine creates a new socket, and the builder waits for it.
    builder["volumeMounts"].append({"name": "docker-api", "mountPath": directory})
    if push_secret(spec, settings):
        _mount(builder, "docker-config", DOCKER_CONFIG_DIR)
    # If the builder cannot start, the end of its output explains it.
    builder["terminationMessagePolicy"] = "FallbackToLogsOnError"
    others = [_container(CAGE, ["--serve", _socket(CAGE)], _COMMON, settings)]
    if _has_fetch(spec):
        fetch = _container(FETCH, ["--serve", _socket(FETCH)], _fetch_environment(settings), settings)
        if access:
            _mount(fetch, "git", GIT_DIR)
            if access.instructions["ssh_command"] and settings.kubernetes.run_as_user is not None:
                _mount(fetch, "git", "/etc/passwd", PASSWD)
        others.append(fetch)
    for other in others:
        # The reservation of the pod is the builder's.
        other["resources"]["requests"] = {"cpu": "0", "memory": "0"}
    parts = [builder, *others]
    for part in parts:
        part["volumeMounts"] += _extra_mounts(part["name"], settings)
    return parts


def _extra_mounts(container: str, settings: Settings) -> list[Manifest]:
    """Return the operator's mounts. A volume may hold credentials, which the cage must not have, unless it is a ConfigMap."""
    kubernetes = settings.kubernetes
    public = {volume["name"] for volume in kubernetes.extra_volumes if "configMap" in volume}
    return [mount for mount in kubernetes.extra_volume_mounts if container != CAGE or mount["name"] in public]


_COMMON: Final = {"HOME": HOME, "USER": "builder", "LANG": "C.UTF-8"}


def _container(name: str, arguments: list[str], environment: dict[str, str], settings: Settings) -> Manifest:
    kubernetes = settings.kubernetes
    container: Manifest = {
        "name": name,
        "image": settings.builder.image,
        # -I: a file in the working directory must not be imported as a module.
        "command": ["python3", "-I", f"{BUILDER_DIR}/builder.py", *arguments],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {
            "requests": {"cpu": kubernetes.cpu_request, "memory": kubernetes.memory_request},
            "limits": {"memory": kubernetes.memory_limit} if kubernetes.memory_limit else {},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "builder", "mountPath": BUILDER_DIR, "readOnly": True},
            {"name": "attempt", "mountPath": ATTEMPT_DIR},
            {"name": _temporary(name), "mountPath": HOME},
        ],
    }
    if kubernetes.image_pull_policy:
        container["imagePullPolicy"] = kubernetes.image_pull_policy
    return container


def _mount(container: Manifest, name: str, path: str, key: str | None = None) -> None:
    part = {"subPath": key} if key else {}
    container["volumeMounts"].append({"name": name, "mountPath": path, "readOnly": True, **part})


def passwd(settings: Settings) -> str:
    """Return the names of users in the container for the fetch."""
    user = settings.kubernetes.run_as_user
    own = f"builder:x:{user}:{user}::{HOME}:/bin/sh\n" if user else ""
    return f"root:x:0:0:root:/root:/bin/sh\n{own}"


def _temporary(container: str) -> str:
    return "tmp" if container == BUILDER_CONTAINER else f"tmp-{container}"


def _socket(container: str) -> str:
    return f"{ATTEMPT_DIR}/{container}.sock"


def _has_fetch(spec: AttemptSpec) -> bool:
    """Return whether the builder fetches the repository; repo2docker fetches other content itself."""
    return spec.content_provider == "Git"


def _builder_environment(spec: AttemptSpec, settings: Settings, access: FetchAccess | None) -> dict[str, str]:
    environment = {
        **_COMMON,
        # By default it is inside DOCKER_CONFIG, which is read-only here.
        "BUILDX_CONFIG": f"{HOME}/.buildx",
        **settings.kubernetes.env,
        **(spec.trace.environment() if spec.trace else {}),
        SPEC_VARIABLE: json.dumps(pod_builder_spec(spec, settings, access), ensure_ascii=False),
    }
    if push_secret(spec, settings):
        environment["DOCKER_CONFIG"] = DOCKER_CONFIG_DIR
    return environment


def _fetch_environment(settings: Settings) -> dict[str, str]:
    chosen = settings.kubernetes.env.items()
    return {
        **_COMMON,
        **{name: value for name, value in chosen if not name.startswith(_ENGINE_VARIABLES)},
    }


def pod_builder_spec(spec: AttemptSpec, settings: Settings, access: FetchAccess | None = None) -> Manifest:
    """Return the builder's specification for a pod. It holds no credentials."""
    places = {"directory": ATTEMPT_DIR, CAGE: _socket(CAGE)}
    if _has_fetch(spec):
        places[FETCH] = _socket(FETCH)
    return {
        **builder_spec(spec, settings),
        "docker_host": f"unix://{settings.kubernetes.docker_socket}",
        "containers": places,
        **({"git": access.instructions} if access else {}),
    }


def push_secret(spec: AttemptSpec, settings: Settings) -> str | None:
    """Return the name of the Secret with the registry credentials for the attempt."""
    tenant = settings.kubernetes.tenants.get(spec.tenant)
    return (tenant.push_secret if tenant else None) or settings.kubernetes.push_secret


def volumes(
    spec: AttemptSpec, settings: Settings, parts: list[Manifest], *, builder_map: str, credentials: str | None
) -> list[Manifest]:
    """Return the volumes that the containers mount."""
    directory = settings.kubernetes.docker_socket.rpartition("/")[0]
    found: list[Manifest] = [
        {"name": "builder", "configMap": {"name": builder_map}},
        {"name": "docker-api", "hostPath": {"path": directory, "type": "DirectoryOrCreate"}},
        {"name": "attempt", "emptyDir": {}},
        *({"name": _temporary(part["name"]), "emptyDir": {}} for part in parts),
    ]
    if secret := push_secret(spec, settings):
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        found.append({"name": "docker-config", "secret": {"secretName": secret, "items": items}})
    if credentials and _has_fetch(spec):
        # ssh accepts no key that others than its owner can read, except for one that is not the user's own.
        found.append({"name": "git", "secret": {"secretName": credentials, "defaultMode": 0o400}})
    return [*found, *settings.kubernetes.extra_volumes]
