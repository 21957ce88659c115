"""The JupyterHub of `make hub-demo`: the example as it is, on free ports of loopback, with everybody let in."""

import os
from pathlib import Path

c = get_config()  # type: ignore[name-defined]  # noqa: F821

load_subconfig(str(Path(__file__).parents[1] / "jupyterhub" / "jupyterhub_config.py"))  # type: ignore[name-defined]  # noqa: F821

directory = Path(os.environ["HUB_DIRECTORY"])
c.JupyterHub.bind_url = os.environ["HUB_URL"]
c.JupyterHub.hub_port = int(os.environ["HUB_API_PORT"])
c.JupyterHub.db_url = f"sqlite:///{directory / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(directory / "cookie_secret")
c.JupyterHub.services[0]["url"] = f"http://127.0.0.1:{os.environ['HUB_SERVICE_PORT']}"
c.JupyterHub.services += [{"name": "check", "api_token": os.environ["HUB_CHECK_TOKEN"]}]
c.JupyterHub.load_roles += [
    {"name": "check", "services": ["check"], "scopes": ["admin:users", "tokens", "admin:servers"]}
]
c.ConfigurableHTTPProxy.command = [os.environ["HUB_PROXY"]]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['HUB_PROXY_API_PORT']}"
c.ConfigurableHTTPProxy.pid_file = str(directory / "proxy.pid")
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"grace"}
c.DockerSpawner.prefix = os.environ["HUB_PREFIX"]
