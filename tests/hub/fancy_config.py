"""The example's hub, form and roles, with a spawner that notes what it is to start and starts a small server instead."""

import json
import os
import sys
from pathlib import Path

from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Unicode

load_subconfig(str(Path(__file__).parents[2] / "deploy" / "dev" / "hub_config.py"))  # type: ignore[name-defined]  # noqa: F821
c = get_config()  # type: ignore[name-defined]  # noqa: F821

SERVER = """
import http.server, os, urllib.parse

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>A server</title><h1>This is a server.</h1>")

where = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.ThreadingHTTPServer(("127.0.0.1", where.port), Page).serve_forever()
"""


class Noting(SimpleLocalProcessSpawner):  # type: ignore[misc]
    """Writes a line for each server that is started."""

    image = Unicode()

    async def start(self):  # type: ignore[no-untyped-def]
        noted = {"user": self.user.name, "image": self.image}
        with (Path(os.environ["HUB_DIRECTORY"]) / "started.jsonl").open("a") as file:
            file.write(json.dumps(noted) + "\n")
        return await super().start()


c.JupyterHub.spawner_class = Noting
c.Noting.cmd = [sys.executable, "-c", SERVER]
# Nothing runs in a container that would have to reach it.
c.JupyterHub.hub_ip = "127.0.0.1"
