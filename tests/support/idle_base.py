"""A base image whose shell does nothing, as repo2docker's own Dockerfile would install packages from the internet."""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.repositories import BASE_IMAGE, tools_path

IDLE_BASE: Final = "rabbit2docker-test/idle-base:1"


def make_idle_base(directory: Path) -> str:
    """Build it in the engine and return its name."""
    (directory / "sh").write_text("#!/bin/true\n")
    (directory / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\n"
        "RUN echo jovyan:x:1000:1000::/home/jovyan:/bin/sh >> /etc/passwd && echo jovyan:x:1000: >> /etc/group\n"
        "COPY --chmod=755 sh /bin/idle\n"
        'SHELL ["/bin/idle", "-c"]\n'
    )
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "PATH": tools_path()}
    command = ["docker", "build", "--quiet", "--tag", IDLE_BASE, str(directory)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return IDLE_BASE
