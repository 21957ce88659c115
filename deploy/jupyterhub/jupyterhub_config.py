"""A JupyterHub on one machine whose users build images of their repositories and start them with Docker.

    pip install 'rabbit2docker[hub,local]' jupyterhub-fancy-profiles dockerspawner
    npm install --global configurable-http-proxy

    export RABBIT2DOCKER_AMQP__URL=amqp://user:password@rabbitmq.example.org/
    export RABBIT2DOCKER_IMAGES__PREFIX=registry.example.org/hub/r2d-
    rabbit2docker run &
    jupyterhub --config deploy/jupyterhub/jupyterhub_config.py

This file configures no authenticator: choose one. `make hub-demo` runs this file unchanged, with everything it needs.
For a JupyterHub on Kubernetes see values.yaml.
"""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import docker

c = get_config()  # type: ignore[name-defined]  # noqa: F821

sys.path.insert(0, str(Path(__file__).parent))
from profiles import Profiles  # type: ignore[import-not-found]  # noqa: E402

# The service. jupyterhub-fancy-profiles expects it at /services/binder/, so the name is fixed. Its pages are there as well.
c.JupyterHub.services = [
    {
        "name": "binder",
        "url": "http://127.0.0.1:8585",
        "command": [sys.executable, "-m", "rabbit2docker", "hub"],
        "oauth_no_confirm": True,
        # A service does not inherit the environment of the hub.
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(
                (
                    "RABBIT2DOCKER_AMQP__",
                    "RABBIT2DOCKER_HUB__",
                    "RABBIT2DOCKER_IMAGES__",  # its health looks at the registry
                    "RABBIT2DOCKER_LOG__",
                    "RABBIT2DOCKER_TENANT",
                )
            )
        },
    }
]

# `self` lets the form create a token for its user, `access:…` lets that token build. To let only a group build, give the
# second scope to a role of that group, and `self` alone to the role `user`.
c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "access:services!service=binder"]}]

# The choices of the spawn page, in the format of KubeSpawner.
PROFILES: list[dict[str, Any]] = [
    {
        "display_name": "Choose your environment",
        "description": "Use an existing image, or build one from a repository.",
        "slug": "environment",
        "default": True,
        "profile_options": {
            "image": {
                "display_name": "Image",
                "choices": {
                    "minimal": {
                        "display_name": "Jupyter only",
                        "description": "Python and the notebook",
                        "kubespawner_override": {"image": "quay.io/jupyter/minimal-notebook:latest"},
                    },
                },
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Name of the image",
                    "display_name_in_choices": "An image that was built before",
                    "description_in_choices": "Copy its name from its page under /services/binder/",
                    "kubespawner_override": {"image": "{value}"},
                },
                "dynamic_image_building": {"enabled": True},
            }
        },
    }
]

# Only images that were built for this hub are started: `name:tag`, with a digest after a forced build. Browsers evaluate this
# expression as well, and know fewer escapes than Python.
built = (
    os.environ["RABBIT2DOCKER_IMAGES__PREFIX"].replace(".", r"\.")
    + r"[\w.\-]+:[\w.\-]+(@sha256:[0-9a-f]{64})?"
)
PROFILES[0]["profile_options"]["image"]["unlisted_choice"] |= {
    "validation_regex": f"^{built}$",
    "validation_message": "This image was not built for this hub.",
}
Profiles(PROFILES, built=built).install(c)

# The spawner.
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
# The default command of repo2docker's images does not register with a hub.
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.remove = True


def gateway() -> str:
    """Return this machine's address on the network of its containers."""
    with closing(docker.from_env()) as engine:
        [network, *_] = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    return str(network["Gateway"])


# Only containers can reach the hub at this address.
c.JupyterHub.hub_ip = gateway()
