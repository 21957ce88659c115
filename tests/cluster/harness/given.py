"""A cluster that exists: nothing is started, and nothing on it is changed but by the tests."""

import os
import shutil
from pathlib import Path

from deploy.dev.machine import Unable, say

KIND = "given"
_PREFIX = "RABBIT2DOCKER_TEST_CLUSTER_"
_NEEDED = {
    "REGISTRY": "host:port of a registry without TLS that its pods and this machine reach",
    "BASE_IMAGE": "an image with a shell that docker-api can pull, which Dockerfiles of tests begin with",
    "GIT_ROOT": "a directory here whose repositories a git server serves",
    "GIT_URL": "where that git server is, for pods and this machine",
    "AMQP_URL": "a RabbitMQ that pods and this machine reach",
    "MANAGEMENT_URL": "the management API of that RabbitMQ",
    "IMAGES": "what the names of the images docker-api:1, repo2docker:1, busybox:1 begin with, as nodes can pull them",
}


def prepare() -> None:
    """Do nothing: everything is there already."""


def up() -> dict[str, str]:
    """Return the variables, all of which the person who names the cluster has to set; raises Unable."""
    missing = [
        f"    {_PREFIX}{name}: {what}" for name, what in _NEEDED.items() if _PREFIX + name not in os.environ
    ]
    if missing:
        raise Unable(
            "KUBECONFIG names a cluster. Tests on it need these variables as well:\n" + "\n".join(missing)
        )
    kubectl = shutil.which("kubectl")
    if not kubectl:
        raise Unable("Tests on a cluster of your own need kubectl and helm on the PATH.")
    say(f"Kubernetes: using the cluster of {os.environ['KUBECONFIG']}")
    return {
        "KUBECONFIG": os.environ["KUBECONFIG"],
        "RABBIT2DOCKER_TEST_CLUSTER": KIND,
        _PREFIX + "BIN": str(Path(kubectl).parent),
        **{_PREFIX + name: os.environ[_PREFIX + name] for name in _NEEDED},
    }


def down(*, wipe: bool = False) -> None:
    """Do nothing: nothing was started."""


def load(archive: Path) -> None:
    """Raise Unable: its nodes cannot be logged in to from here."""
    raise Unable(
        f"{archive} cannot be imported into nodes of a cluster that is not ours. Push its images to a registry that "
        "the nodes pull from, under the prefix RABBIT2DOCKER_TEST_CLUSTER_IMAGES."
    )
