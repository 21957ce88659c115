"""Settings of the kubernetes executor."""

from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, model_validator

from rabbit2docker.settings.base import Group

POD_VOLUMES: Final = frozenset(
    {"attempt", "builder", "docker-api", "docker-config", "git", "tmp", "tmp-cage", "tmp-fetch"}
)
"""Names of the volumes that build pods have anyway."""


class TenantCredentials(Group):
    """Credentials for the builds of one tenant."""

    push_secret: str | None = None
    """Secret of type kubernetes.io/dockerconfigjson for this tenant's pushes and pulls, instead of the common one."""


class KubernetesSettings(Group):
    """The kubernetes executor: attempts as pods."""

    namespace: str = "default"
    """Namespace of build pods, of docker-api and of all other objects of the service."""
    kubeconfig: Path | None = None
    """kubeconfig file; unset: the service account of the pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str | None = None
    """Context of the kubeconfig; unset: its current context."""
    docker_api_labels: dict[str, str] = {"app.kubernetes.io/component": "docker-api"}
    """Labels of the docker-api pods: a build runs on a node with such a pod."""
    docker_socket: str = "/var/run/rabbit2docker/docker-api/docker.sock"
    """Socket of docker-api on its node. Its directory is mounted, so that the socket of a restarted engine is found."""
    push_secret: str | None = None
    """Existing Secret of type kubernetes.io/dockerconfigjson with the registry credentials for all builds."""
    tenants: dict[str, TenantCredentials] = {}
    """Credentials by tenant."""
    personal_namespace: str | None = None
    """Namespace in which hubs leave Secrets with persons' own credentials for single requests, and which has nothing else.
    Unset: requests that refer to such a Secret are rejected."""
    pending_seconds: int = Field(default=600, ge=10)
    """Seconds within which a new pod must start to run; long enough for a cluster autoscaler."""
    termination_seconds: int = Field(default=20, ge=1, le=300)
    """Seconds between SIGTERM and SIGKILL for a build pod; the builder takes about eight to end its children."""
    run_as_user: int | None = 1000
    """User id in the build pod; unset: that of the image."""
    docker_group: int | None = 2375
    """Group with access to the socket (`dockerd --group`)."""
    cpu_request: str = "50m"
    """CPU reserved for the pod, which only clones and waits: the work is done in docker-api."""
    memory_request: str = "256Mi"
    """Memory reserved for the pod."""
    memory_limit: str | None = "1Gi"
    """Memory at which a container of the pod is killed: builder, fetch or cage."""
    image_pull_policy: str | None = Field(default=None, pattern="^(Always|IfNotPresent|Never)$")
    """Always, IfNotPresent or Never; unset: the default of Kubernetes, which depends on the tag."""
    image_pull_secrets: list[str] = []
    """Secrets for pulling the builder image."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have, in addition to running docker-api."""
    tolerations: list[dict[str, Any]] = []
    """Tolerations of build pods, as in a pod's specification."""
    priority_class: str | None = None
    """PriorityClass of build pods."""
    service_account: str | None = None
    """ServiceAccount of build pods, such as one with an identity of the cloud. Its token for the API server is not mounted."""
    extra_volumes: list[dict[str, Any]] = []
    """Additional volumes of build pods, as in a pod's specification."""
    extra_volume_mounts: list[dict[str, Any]] = []
    """Mounts of these volumes in the builder and the fetch. The cage, which reads repositories, gets the ConfigMaps among
    them, such as certificate authorities: other volumes may hold credentials."""
    labels: dict[str, str] = {}
    """Additional labels of build pods."""
    annotations: dict[str, str] = {}
    """Additional annotations of build pods."""
    env: dict[str, str] = {}
    """Additional environment variables of the builder and of the fetch; repo2docker gets proxies and certificates of them."""
    requests_per_second: float = Field(default=50.0, gt=0)
    """Sustained rate of calls to the API server; creations take precedence."""
    burst: int = Field(default=100, ge=1)
    """Calls that may be made at once after a quiet period."""
    lease_seconds: float = Field(default=10.0, ge=3, le=60)
    """Seconds without renewing its Lease after which a replica counts as dead and others take over its builds."""

    @model_validator(mode="after")
    def _check_volumes(self) -> Self:
        names = [volume.get("name") for volume in self.extra_volumes]
        if wrong := [name for name in names if not name or name in POD_VOLUMES or names.count(name) > 1]:
            raise ValueError(
                f"extra_volumes: each needs a name of its own, other than {', '.join(sorted(POD_VOLUMES))}; not {wrong[0]!r}"
            )
        if unknown := [mount for mount in self.extra_volume_mounts if mount.get("name") not in names]:
            raise ValueError(
                f"extra_volume_mounts: no extra volume has the name of {unknown[0].get('name')!r}"
            )
        return self
