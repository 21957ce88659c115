"""Each import contract reports a violation that is seeded for it, and there is no contract without a seed."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("consumer/rabbit2docker", "schemas/rabbit2docker_schemas")

SEEDS: Final = [
    # Contract, package that gets a module, what this module imports.
    ("Imports go one way", "rabbit2docker.consumer", "rabbit2docker.cli"),
    ("Imports go one way", "rabbit2docker.consumer", "rabbit2docker.hub"),
    ("Imports go one way", "rabbit2docker.hub", "rabbit2docker.consumer"),
    ("Imports go one way", "rabbit2docker.hub.store", "rabbit2docker.cli"),
    ("Imports go one way", "rabbit2docker.replay", "rabbit2docker.cli"),
    ("Imports go one way", "rabbit2docker.consumer", "rabbit2docker.replay"),
    ("Imports go one way", "rabbit2docker.client", "rabbit2docker.hub"),
    ("Imports go one way", "rabbit2docker.amqp", "rabbit2docker.client"),
    ("Imports go one way", "rabbit2docker.settings", "rabbit2docker.amqp"),
    ("Imports go one way", "rabbit2docker", "rabbit2docker.errors"),
    (
        "Imports inside the consumer go one way",
        "rabbit2docker.consumer.intake",
        "rabbit2docker.consumer.service",
    ),
    (
        "Imports inside the consumer go one way",
        "rabbit2docker.consumer.intake",
        "rabbit2docker.consumer.following",
    ),
    (
        "Imports inside the consumer go one way",
        "rabbit2docker.consumer.executors",
        "rabbit2docker.consumer.intake",
    ),
    ("Imports inside the consumer go one way", "rabbit2docker.consumer", "rabbit2docker.errors"),
    ("Imports inside the hub go one way", "rabbit2docker.hub.store", "rabbit2docker.hub.web"),
    ("Imports inside the hub go one way", "rabbit2docker.hub.web", "rabbit2docker.hub.service"),
    ("Imports inside the hub go one way", "rabbit2docker.hub", "rabbit2docker.errors"),
    ("The messages' contract needs pydantic only", "rabbit2docker_schemas", "rabbit2docker.errors"),
    ("The messages' contract needs pydantic only", "rabbit2docker_schemas", "yaml"),
    (
        "The builder needs the standard library only",
        "rabbit2docker.consumer.builder",
        "rabbit2docker_schemas",
    ),
    ("The builder needs the standard library only", "rabbit2docker.consumer.builder", "structlog"),
    ("The client library needs the base install only", "rabbit2docker.client", "aiohttp"),
    ("The client library needs the base install only", "rabbit2docker.client", "rabbit2docker.consumer"),
    ("Only amqp speaks to RabbitMQ", "rabbit2docker.consumer", "aio_pika"),
    ("Only amqp speaks to RabbitMQ", "rabbit2docker.client", "aiormq.exceptions"),
    ("Only amqp speaks to RabbitMQ", "rabbit2docker.hub", "pamqp"),
    ("Only the kubernetes executor speaks to Kubernetes", "rabbit2docker.consumer", "kubernetes_asyncio"),
    (
        "Only the kubernetes executor speaks to Kubernetes",
        "rabbit2docker.consumer.executors",
        "kubernetes_asyncio",
    ),
    ("Only the local executor watches files", "rabbit2docker.consumer.executors.kubernetes", "asyncinotify"),
    ("Only the store speaks to databases", "rabbit2docker.hub", "sqlalchemy"),
    ("Only the store speaks to databases", "rabbit2docker.hub.web", "alembic"),
    ("Only the store speaks to databases", "rabbit2docker.hub.web", "psycopg"),
    ("Only the store speaks to databases", "rabbit2docker.consumer", "aiosqlite"),
    ("Only hub.web speaks HTTP to the JupyterHub's users", "rabbit2docker.hub", "tornado.web"),
    ("Only hub.web speaks HTTP to the JupyterHub's users", "rabbit2docker.hub.store", "jupyterhub"),
    ("Only hub.web and GitHub Apps sign tokens", "rabbit2docker.consumer", "jwt"),
    (
        "Only the tokens of GitHub Apps need gidgethub",
        "rabbit2docker.consumer.providers",
        "gidgethub.apps",
    ),
    ("Only the command line writes to terminals", "rabbit2docker.consumer", "typer"),
    ("Only the command line writes to terminals", "rabbit2docker.hub", "rich.table"),
    (
        "Only the settings read the environment through pydantic-settings",
        "rabbit2docker.amqp",
        "pydantic_settings",
    ),
    ("Only the metrics know the exposition format", "rabbit2docker.amqp", "prometheus_client"),
]


def module_name(number: int) -> str:
    """Return the name of a seeded module; none begins with another one."""
    return f"seeded_{number:03}"


def sections(report: str) -> dict[str, str]:
    """Return what the report says of each broken contract, by its name."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    lines = report.splitlines()
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        if next_line and set(next_line) == {"-"} and len(next_line) == len(line):
            current = found.setdefault(line, [])
        current.append(line)
    return {name: "\n".join(text) for name, text in found.items()}


@pytest.fixture(scope="module")
def violations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the report on a copy of the packages with all seeds in it: one run for all of them."""
    tree = tmp_path_factory.mktemp("seeded")
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "deploy/checks", tree / "deploy/checks")
    (tree / "deploy/__init__.py").touch()
    shutil.copy(CHECKOUT / "pyproject.toml", tree)
    for number, (_, package, imported) in enumerate(SEEDS):
        root = "schemas" if package.startswith("rabbit2docker_schemas") else "consumer"
        module = tree / root / package.replace(".", "/") / f"{module_name(number)}.py"
        module.write_text(f"import {imported}\n")
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run(
        [sys.executable, "-c", lint],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree / 'consumer'}:{tree / 'schemas'}", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return sections(result.stdout)


@pytest.mark.parametrize(
    ("number", "contract"),
    [
        pytest.param(number, contract, id=f"{package} imports {imported}")
        for number, (contract, package, imported) in enumerate(SEEDS)
    ],
)
def test_a_seeded_violation_is_reported(number: int, contract: str, violations: dict[str, str]) -> None:
    assert module_name(number) in violations.get(contract, "")


def test_every_import_contract_has_a_seed() -> None:
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == {contract for contract, _, _ in SEEDS}
