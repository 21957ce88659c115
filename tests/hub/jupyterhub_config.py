"""A JupyterHub with the service as its own child, as the README has it; any user may log in with any password."""

import os
import sys
from pathlib import Path

c = get_config()  # type: ignore[name-defined]  # noqa: F821

directory = Path(os.environ["HUB_DIRECTORY"])
c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['HUB_PORT']}/"
c.JupyterHub.hub_port = int(os.environ["HUB_API_PORT"])
c.JupyterHub.db_url = f"sqlite:///{directory / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(directory / "cookie_secret")
c.ConfigurableHTTPProxy.command = [os.environ["HUB_PROXY"]]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['HUB_PROXY_API_PORT']}"
c.ConfigurableHTTPProxy.pid_file = str(directory / "proxy.pid")
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [
    {
        "name": "binder",
        "url": f"http://127.0.0.1:{os.environ['HUB_SERVICE_PORT']}",
        "command": [sys.executable, "-m", "rabbit2docker", "hub"],
        "oauth_no_confirm": True,
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("RABBIT2DOCKER_AMQP") or name == "PYTHONPATH"
        },
    },
    {"name": "operator", "api_token": os.environ["HUB_OPERATOR_TOKEN"]},
]
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self"]},
    {"name": "builders", "users": ["ada"], "scopes": ["access:services!service=binder"]},
    {"name": "operators", "services": ["operator"], "scopes": ["admin:users", "tokens"]},
]
