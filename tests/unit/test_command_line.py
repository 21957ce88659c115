"""Commands that need no connection, run in this process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from rabbit2docker.cli import main
from rabbit2docker.cli.exits import Exit
from rabbit2docker.settings import load_settings
from rabbit2docker.settings.constants import (
    DEFAULT_GITHUB_HOSTNAME,
    DEFAULT_IMAGE_PREFIX,
    DEFAULT_TENANTS,
    DEFAULT_VHOST,
)
from rabbit2docker_schemas.requests import BuildRequest

REF = "50533eb470ee6c24e872043d30b2fee463d6943f"
HEAVY = {
    "aio_pika",
    "aiormq",
    "aiohttp",
    "alembic",
    "asyncio",
    "cachetools",
    "jupyterhub",
    "kubernetes_asyncio",
    "prometheus_client",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "structlog",
    "tornado",
    "yaml",
    "yarl",
}
"""Libraries that help, names and definitions must not pay for."""


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Program = Callable[..., Result]


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RABBIT2DOCKER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program, called with arguments as its own process would be."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["rabbit2docker", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, printed.out, printed.err)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["build"],
        ["build", "gh"],
        ["build", "gh", "a/b/c", "--build-arg", "nonsense"],
        ["build", "gh", "a/b/c", "--timeout", "soon"],
        ["build", "gh", "a/b/c", "--ref", "main"],
        ["build", "gh", "a/b/c", "--keep-cache"],
        ["build", "https://example.org/r", "extra"],
        ["bild"],
        ["list", "--since", "yesterday"],
        ["dead-letters", "redrive"],
        ["dead-letters", "redrive", "--all", "--rate", "fast"],
    ],
)
def test_wrong_usage_exits_with_64_and_says_what_is_wrong(program: Program, arguments: list[str]) -> None:
    result = program(*arguments)
    assert result.returncode == 64
    assert result.stderr.strip()


@pytest.mark.parametrize(
    ("options", "force"), [([], False), (["--force"], True), (["--force", "--keep-cache"], "cache")]
)
def test_a_build_is_forced_with_or_without_the_layer_cache(
    program: Program, monkeypatch: pytest.MonkeyPatch, options: list[str], force: bool | str
) -> None:
    asked: list[BuildRequest] = []

    def submit(request: BuildRequest, **_: object) -> Exit:
        asked.append(request)
        return Exit.COMPLETED

    monkeypatch.setattr("rabbit2docker.cli.build._submit", submit)
    assert program("build", "gh", "a/b/c", *options).returncode == 0
    assert [request.force for request in asked] == [force]


@pytest.mark.parametrize(
    "arguments", [["list"], ["name", "gh", "a/b/c", "--ref", REF], ["topology", "export"]]
)
def test_wrong_settings_exit_with_78_and_are_named(
    program: Program, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_AMQPS__URL", "x")
    result = program(*arguments)
    assert result.returncode == 78
    assert "RABBIT2DOCKER_AMQPS__URL" in result.stderr


def test_settings_of_the_environment_apply_to_names(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_IMAGES__PREFIX", "registry.example.org/own-")
    monkeypatch.setenv("RABBIT2DOCKER_PROVIDERS__GITHUB_HOSTNAME", "git.corp.example")
    names = json.loads(program("name", "gh", "a/b/c", "--ref", REF, "--json").stdout)
    assert names["image"].startswith("registry.example.org/own-")
    assert names["repo_url"] == "https://git.corp.example/a/b"


def test_settings_of_the_environment_apply_to_exported_definitions(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_TENANTS", '["one"]')
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__URL", "amqp://127.0.0.1/builds")
    queues = json.loads(program("topology", "export").stdout)["queues"]
    assert "builds.results.log.one" in {queue["name"] for queue in queues}
    assert {queue["vhost"] for queue in queues} == {"builds"}


def test_commands_that_skip_the_settings_know_their_defaults() -> None:
    from rabbit2docker.amqp.endpoint import vhost_of

    settings = load_settings()
    assert settings.images.prefix == DEFAULT_IMAGE_PREFIX
    assert settings.providers.github_hostname == DEFAULT_GITHUB_HOSTNAME
    assert list(settings.tenants) == list(DEFAULT_TENANTS)
    assert vhost_of(settings.amqp) == DEFAULT_VHOST


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["build", "--help"], ["name", "gh", "a/b/c", "--ref", REF], ["topology", "export"]],
    ids=" ".join,
)
def test_help_names_and_definitions_load_no_heavy_library(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from rabbit2docker.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout
    assert not HEAVY & set(result.stderr.split())


def test_names_are_identical_to_binderhubs(program: Program) -> None:
    ref = "50533eb470ee6c24e872043d30b2fee463d6943f"
    arguments = ["name", "gh", "binder-examples/requirements/HEAD", "--ref", ref]
    result = program(*arguments, "--prefix", "quay.io/org/pfx-", "--json")
    assert json.loads(result.stdout) == {
        "build_name": "build-binder-2dexamples-2drequirements-55ab5c-505-2c",
        "image": f"quay.io/org/pfx-binder-2dexamples-2drequirements-55ab5c:{ref}",
        "repo_url": "https://github.com/binder-examples/requirements",
    }


def test_every_setting_is_listed_with_its_meaning(program: Program) -> None:
    found = [json.loads(line) for line in program("settings", "--json").stdout.splitlines()]
    helps = {setting["name"]: setting["help"] for setting in found}
    assert helps["RABBIT2DOCKER_LOG__LEVEL"] == "debug, info, warning or error."
    assert not [name for name, text in helps.items() if not text]


def test_the_contract_is_printed(program: Program) -> None:
    assert "build.completed.v1" in program("schema").stdout.split()
    assert json.loads(program("schema", "build.completed.v1").stdout)["$id"].endswith("build.completed.v1")
    assert json.loads(program("schema", "--asyncapi").stdout)["asyncapi"] == "3.0.0"
    assert program("schema", "no.such").returncode == 5


COMMANDS = [
    "run",
    "build",
    "list",
    "status",
    "logs",
    "cancel",
    "topology",
    "dead-letters",
    "name",
    "schema",
    "settings",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(program: Program, command: str) -> None:
    result = program(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) > 5
    assert command in program("--help").stdout
