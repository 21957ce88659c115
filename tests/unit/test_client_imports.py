"""Programs load what they need: a hub's own code nothing of the service, a service nothing of the others."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

SERVICE: Final = (
    "rabbit2docker.cli",
    "rabbit2docker.consumer",
    "rabbit2docker.hub",
    "rabbit2docker.settings.consumer",
    "rabbit2docker.settings.loading",
)
LIBRARIES: Final = (
    "aiohttp",
    "alembic",
    "asyncinotify",
    "escapism",
    "jinja2",
    "jupyterhub",
    "jwt",
    "kubernetes_asyncio",
    "pydantic_settings",
    "repo2docker",
    "sqlalchemy",
    "tornado",
    "typer",
    "yaml",
)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Return the modules that a program has loaded after importing the client library."""
    program = (
        "import json, sys; from rabbit2docker.client import BuildEvents; print(json.dumps([*sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("module", SERVICE + LIBRARIES)
def test_the_client_library_does_not_load(module: str, loaded: set[str]) -> None:
    assert "rabbit2docker.client" in loaded
    assert module not in loaded


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        (
            "from rabbit2docker.consumer.service import make_executor; from rabbit2docker.settings import Settings; "
            "make_executor(Settings())",
            {"alembic", "jinja2", "jupyterhub", "kubernetes_asyncio", "repo2docker", "sqlalchemy", "tornado"},
        ),
        (
            "import rabbit2docker.hub.service",
            {
                "asyncinotify",
                "escapism",
                "jupyterhub",
                "kubernetes_asyncio",
                "repo2docker",
                "rabbit2docker.consumer",
            },
        ),
    ],
    ids=["run", "hub"],
)
def test_a_service_loads_nothing_that_its_settings_do_not_ask_for(start: str, absent: set[str]) -> None:
    program = f"import json, sys; {start}; print(json.dumps([*sys.modules]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RABBIT2DOCKER_")}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert not absent & set(json.loads(result.stdout))


def test_no_module_of_the_client_library_uses_structlogs_default_which_prints_to_stdout(
    loaded: set[str],
) -> None:
    own = {name for name in loaded if name.startswith("rabbit2docker") and name != "rabbit2docker.logs"}
    paths = [find_spec(name).origin for name in own]  # type: ignore[union-attr]
    assert paths
    assert not [path for path in paths if path and "structlog.get_logger" in Path(path).read_text()]


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("typer", "--help", "cli"),
        ("rich", "settings", "cli"),
        ("pydantic_settings", "settings", "cli"),
        ("escapism", "name gh a/b/HEAD --ref c", "local"),
    ],
)
def test_the_command_explains_which_extra_is_missing(missing: str, command: str, extra: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from rabbit2docker.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *command.split()], capture_output=True, text=True, check=False
    )
    assert result.returncode == 78
    assert f"pip install 'rabbit2docker[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
