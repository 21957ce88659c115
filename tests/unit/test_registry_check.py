"""The registry as operators meet it: nine kinds of it, the check step by step, repositories made before a push."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from rabbit2docker.cli.app import app
from rabbit2docker.consumer.check_step import Step
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.images.creation import RepositoryCreation
from rabbit2docker.consumer.images.registry import Registry
from rabbit2docker.consumer.images.registry_check import PROBE, RegistryCheck
from rabbit2docker.errors import RegistryUnavailable
from rabbit2docker.settings import DockerSettings, ImageSettings
from tests.support.certificates import write_certificates
from tests.support.registries import DIGEST, FLAVOURS, AnyRegistry, Flavour, any_registry

STEPS = ["address", "name", "connection", "api", "credentials", "pull", "push"]
PLAIN, ECR = FLAVOURS[0], next(flavour for flavour in FLAVOURS if flavour.name == "ECR")


@pytest.fixture(params=FLAVOURS, ids=lambda flavour: flavour.name)
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyRegistry]:
    flavour: Flavour = request.param
    async with any_registry(flavour) as made:
        (tmp_path / "config.json").write_text(made.config())
        yield made


@asynccontextmanager
async def client(directory: Path) -> AsyncIterator[RegistryCheck]:
    async with aiohttp.ClientSession() as session:
        yield RegistryCheck(session, ImageSettings(registry_timeout=20), DockerSettings(config=directory))


async def checked(host: str, directory: Path) -> list[Step]:
    async with client(directory) as check:
        return [step async for step in check.steps(f"{host}/r2d-")]


async def test_every_kind_of_registry_is_asked_in_its_way(registry: AnyRegistry, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        images = Registry(session, ImageSettings(), DockerSettings(config=tmp_path))
        assert await images.find(f"{registry.host}/r2d-a:1") == ImageInfo(DIGEST, 123)
        assert await images.find(f"{registry.host}/r2d-a:2") is None
        assert await images.find(f"{registry.host}/r2d-absent:1") is None


async def test_the_check_finds_that_all_is_well(registry: AnyRegistry, tmp_path: Path) -> None:
    registry.repositories.add(f"r2d-{PROBE}")
    steps = await checked(registry.host, tmp_path)
    assert [step.name for step in steps if step.is_ok] == STEPS
    assert "those of user robot" in steps[4].message
    assert (registry.begun, registry.uploads) == (1, []), "the upload is dropped"


async def test_an_account_without_the_right_to_push_is_named(registry: AnyRegistry, tmp_path: Path) -> None:
    registry.may_push = False
    steps = await checked(registry.host, tmp_path)
    assert [step.name for step in steps] == STEPS
    assert [step.name for step in steps if not step.is_ok] == ["push"]
    assert f"The account may not push to {registry.host}/r2d-{PROBE}" in steps[-1].message


async def test_a_wrong_password_is_named_at_the_lookup(registry: AnyRegistry, tmp_path: Path) -> None:
    registry.password = "another"
    steps = await checked(registry.host, tmp_path)
    assert (steps[-1].name, steps[-1].is_ok) == ("pull", False)
    assert "refuses the configured credentials" in steps[-1].message
    assert "secret" not in "".join(step.message for step in steps)


async def test_a_registry_that_makes_no_repository_is_named_with_the_setting_for_it(tmp_path: Path) -> None:
    async with any_registry(ECR) as registry:
        (tmp_path / "config.json").write_text(registry.config())
        step = (await checked(registry.host, tmp_path))[-1]
    assert (step.name, step.is_ok) == ("push", False)
    assert "images.create_command" in step.message


async def test_missing_credentials_are_named(registry: AnyRegistry, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    steps = await checked(registry.host, tmp_path)
    assert "has none for" in steps[4].message
    assert (steps[-1].name, steps[-1].is_ok) == ("pull", False)
    assert "none are configured" in steps[-1].message


async def test_what_is_no_registry_is_named(tmp_path: Path) -> None:
    async with any_registry(PLAIN) as registry:
        registry.ping_status = 404
        step = (await checked(registry.host, tmp_path))[-1]
    assert (step.name, step.is_ok) == ("api", False)
    assert "does not answer like an image registry (status 404)" in step.message


async def test_a_name_without_address_and_a_closed_port_are_named(tmp_path: Path) -> None:
    unknown = (await checked("registry.invalid", tmp_path))[-1]
    assert (unknown.name, unknown.is_ok) == ("name", False)
    async with any_registry(PLAIN) as registry:
        host = registry.host
    closed = (await checked(host, tmp_path))[-1]
    assert (closed.name, closed.is_ok) == ("connection", False)
    assert "refuses the connection" in closed.message


@pytest.mark.parametrize(("is_tls", "words"), [(True, "is not accepted"), (False, "does not speak TLS")])
async def test_a_certificate_and_a_server_without_tls_are_named(
    tmp_path: Path, is_tls: bool, words: str
) -> None:
    context = None
    if is_tls:
        write_certificates(tmp_path / "tls")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls" / "server.pem", tmp_path / "tls" / "server-key.pem")
    listening = await asyncio.start_server(_say_http, "127.0.0.1", 0, ssl=context)
    async with listening:
        host = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        images = ImageSettings(registry_url=f"https://{host}", registry_timeout=20)
        async with aiohttp.ClientSession() as session:
            check = RegistryCheck(session, images, DockerSettings(config=tmp_path))
            steps = [step async for step in check.steps(f"{host}/r2d-")]
    assert (steps[-1].name, steps[-1].is_ok) == ("connection", False)
    assert words in steps[-1].message


async def _say_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    writer.close()


def test_the_command_prints_each_step_and_fails_with_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_DOCKER__CONFIG", str(tmp_path))
    for arguments in (["check", "registry"], ["check", "registry", "--json"]):
        result = CliRunner().invoke(app, [*arguments, "--prefix", "registry.invalid/r2d-"])
        assert result.exit_code == 1, result.output
        lines = result.output.splitlines()
        assert len(lines) == 2
        if "--json" in arguments:
            assert [json.loads(line)["is_ok"] for line in lines] == [True, False]
        else:
            assert [line.split()[:2] for line in lines] == [["ok", "address"], ["PROBLEM", "name"]]


def creation(directory: Path, script: str) -> RepositoryCreation:
    program = directory / "create"
    program.write_text(f"#!/bin/sh\ncd {directory}\n{script}\n")
    program.chmod(0o755)
    command = [str(program), "--name={repository}", "{registry}", "{image}"]
    return RepositoryCreation(ImageSettings(create_command=command))


async def test_the_command_for_a_repository_runs_once_with_its_name_and_without_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__PASSWORD", "secret")
    made = creation(tmp_path, 'echo "$@" >> calls; env >> environment')
    for tag in ("1", "2"):
        await made.ensure(f"1.dkr.ecr.eu-west-1.amazonaws.com/team/r2d-a:{tag}")
    await RepositoryCreation(ImageSettings()).ensure("registry.example.org/other:1")
    registry = "1.dkr.ecr.eu-west-1.amazonaws.com"
    assert (tmp_path / "calls").read_text() == f"--name=team/r2d-a {registry} {registry}/team/r2d-a:1\n"
    assert "secret" not in (tmp_path / "environment").read_text()


async def test_a_repository_that_exists_is_no_failure(tmp_path: Path) -> None:
    made = creation(tmp_path, "echo An error occurred: RepositoryAlreadyExistsException >&2; exit 254")
    await made.ensure("registry.example.org/r2d-a:1")


async def test_a_failing_command_lets_the_request_wait_and_is_tried_again(tmp_path: Path) -> None:
    made = creation(tmp_path, "echo x >> calls; echo an unlisted secret; exit 3")
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match="failed with exit code 3") as caught:
            await made.ensure("registry.example.org/r2d-a:1")
        assert "unlisted" not in caught.value.message
        assert caught.value.outage_of is not None
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    missing = RepositoryCreation(ImageSettings(create_command=["/nowhere/aws"]))
    with pytest.raises(RegistryUnavailable, match="/nowhere/aws cannot be started"):
        await missing.ensure("registry.example.org/r2d-a:1")
