"""A JupyterHub on one machine, whose people build images of their repositories and start them with Docker.

    pip install 'rabbit2docker[hub,local]' jupyterhub-fancy-profiles dockerspawner
    npm install --global configurable-http-proxy

    export RABBIT2DOCKER_AMQP__URL=amqp://user:password@rabbitmq.example.org/
    export RABBIT2DOCKER_IMAGES__PREFIX=registry.example.org/hub/r2d-
    rabbit2docker run &
    jupyterhub --config deploy/jupyterhub/jupyterhub_config.py

Who may log in is not said here: choose an authenticator. `make hub-demo` runs this file as it is, with everything it needs.
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

# The service. jupyterhub-fancy-profiles looks for it under /services/binder/, so this name is fixed; its pages are there, too.
c.JupyterHub.services = [
    {
        "name": "binder",
        "url": "http://127.0.0.1:8585",
        "command": [sys.executable, "-m", "rabbit2docker", "hub"],
        "oauth_no_confirm": True,
        # The hub gives a service nothing of its own environment by itself.
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(
                (
                    "RABBIT2DOCKER_AMQP__",
                    "RABBIT2DOCKER_HUB__",
                    "RABBIT2DOCKER_LOG__",
                    "RABBIT2DOCKER_TENANT",
                )
            )
        },
    }
]

# `self` lets the form make a token for its user, `access:…` lets that token build. To let only a group build, give the
# second scope to a role of that group, and `self` alone to everybody.
c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "access:services!service=binder"]}]

# What people choose from. KubeSpawner takes the same list.
PROFILES: list[dict[str, Any]] = [
    {
        "display_name": "Choose your environment",
        "description": "Take one that is there, or build one from a repository.",
        "slug": "environment",
        "default": True,
        "profile_options": {
            "image": {
                "display_name": "Image",
                "choices": {
                    "minimal": {
                        "display_name": "Jupyter, nothing else",
                        "description": "Python and the notebook",
                        "kubespawner_override": {"image": "quay.io/jupyter/minimal-notebook:latest"},
                    },
                },
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Name of the image",
                    "display_name_in_choices": "An image that was built before",
                    "description_in_choices": "Its name is on its page under /services/binder/",
                    "kubespawner_override": {"image": "{value}"},
                },
                "dynamic_image_building": {"enabled": True},
            }
        },
    }
]

# Only what was built for this hub is started: `name:tag`, after a forced build with its digest. Browsers read this, too, and
# know fewer escapes than Python.
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
# What repo2docker's images start by themselves knows nothing of a hub.
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.remove = True


def gateway() -> str:
    """Return this machine's address as its containers reach it."""
    with closing(docker.from_env()) as engine:
        [network, *_] = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    return str(network["Gateway"])


# Servers in containers talk to the hub; nobody else reaches it there.
c.JupyterHub.hub_ip = gateway()
