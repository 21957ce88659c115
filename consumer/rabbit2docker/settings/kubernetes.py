"""Settings of the kubernetes executor."""

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from rabbit2docker.settings.base import Group


class TenantCredentials(Group):
    """What builds of one tenant may use beyond what all may."""

    push_secret: str | None = None
    """Secret of type kubernetes.io/dockerconfigjson that this tenant's builds push and pull with, instead of the common one."""
    git_credentials: SecretStr | None = None
    """Lines `https://user:token@host` for private repositories; put into a Secret of each build, gone with it."""


class KubernetesSettings(Group):
    """Attempts as pods; read by the kubernetes executor."""

    namespace: str = "default"
    """Namespace of the build pods, of docker-api and of everything the service makes."""
    kubeconfig: Path | None = None
    """kubeconfig file; unset: the service account of the pod, else $KUBECONFIG, else ~/.kube/config."""
    context: str | None = None
    """Context of the kubeconfig; unset: its current one."""
    docker_api_labels: dict[str, str] = {"app.kubernetes.io/component": "docker-api"}
    """Labels of the docker-api pods: a build runs on a node that has one of them."""
    docker_socket: str = "/var/run/rabbit2docker/docker-api/docker.sock"
    """Socket of docker-api on its node. Its directory is mounted, so that a new engine's socket is seen."""
    push_secret: str | None = None
    """Existing Secret of type kubernetes.io/dockerconfigjson with the registry credentials of all builds."""
    tenants: dict[str, TenantCredentials] = {}
    """Credentials of single tenants."""
    pending_seconds: int = Field(default=600, ge=10)
    """Seconds from its creation within which a pod has to run; a cluster autoscaler must be able to keep it."""
    termination_seconds: int = Field(default=20, ge=1, le=300)
    """Seconds between SIGTERM and SIGKILL for a build pod; the builder needs about eight to end its children."""
    run_as_user: int | None = 1000
    """User id in the build pod; unset: the image's own."""
    docker_group: int | None = 2375
    """Group that may use the socket (`dockerd --group`)."""
    cpu_request: str = "50m"
    """The work is done in docker-api: the pod itself clones and waits."""
    memory_request: str = "256Mi"
    """Memory set aside for the pod."""
    memory_limit: str | None = "1Gi"
    """Memory at which the pod is killed."""
    image_pull_policy: str | None = Field(default=None, pattern="^(Always|IfNotPresent|Never)$")
    """Always, IfNotPresent or Never; unset: as Kubernetes does by the tag."""
    image_pull_secrets: list[str] = []
    """Secrets to pull the builder image with."""
    node_selector: dict[str, str] = {}
    """Labels a node must have beside running docker-api."""
    tolerations: list[dict[str, Any]] = []
    """Taints that build pods tolerate, as in a pod's specification."""
    priority_class: str | None = None
    """PriorityClass of build pods."""
    labels: dict[str, str] = {}
    """Further labels of build pods."""
    annotations: dict[str, str] = {}
    """Further annotations of build pods."""
    env: dict[str, str] = {}
    """Further environment of the builder."""
    requests_per_second: float = Field(default=50.0, gt=0)
    """Calls to the API server in the long run; creations go first."""
    burst: int = Field(default=100, ge=1)
    """Calls that may be made at once after a quiet time."""
    lease_seconds: float = Field(default=10.0, ge=3, le=60)
    """A replica that has not renewed its Lease for this long is taken for dead, and its builds go to the others."""
