"""The registry check uses the same credentials as `docker push`."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.consumer.images.docker_config import Credentials, DockerConfig
from rabbit2docker.errors import RegistryUnavailable
from rabbit2docker.settings import DockerSettings

AUTH = base64.b64encode(b"robot:pass:word").decode()
ROBOT = Credentials("robot", "pass:word")


def config(directory: Path, content: Any) -> DockerConfig:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "config.json").write_text(text)
    return DockerConfig(DockerSettings(config=directory))


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\nread question\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("quay.io", "quay.io"),
        ("https://quay.io", "quay.io"),
        ("https://quay.io/v2/", "quay.io"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("http://127.0.0.1:5000/", "127.0.0.1:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "docker.io"),
    ],
)
async def test_credentials_are_found_under_every_spelling_of_the_registry(
    tmp_path: Path, key: str, registry: str
) -> None:
    assert await config(tmp_path, {"auths": {key: {"auth": AUTH}}}).credentials(registry) == ROBOT


async def test_credentials_are_not_used_for_other_registries(tmp_path: Path) -> None:
    found = config(tmp_path, {"auths": {"quay.io": {"auth": AUTH}, "empty.example.org": {}}})
    for registry in ("quay.io:8443", "evil-quay.io", "docker.io", "empty.example.org"):
        assert await found.credentials(registry) is None


async def test_a_missing_file_means_no_credentials(tmp_path: Path) -> None:
    assert await DockerConfig(DockerSettings(config=tmp_path)).credentials("quay.io") is None


async def test_docker_config_of_the_environment_is_used_when_the_settings_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(tmp_path, {"auths": {"quay.io": {"auth": AUTH}}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert await DockerConfig(DockerSettings()).credentials("quay.io") == ROBOT


async def test_plain_user_and_password_and_tokens_are_read(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        {
            "auths": {
                "a.example.org": {"username": "robot", "password": "pass:word"},
                "b.example.org": {"identitytoken": "i"},
                "c.example.org": {"registrytoken": "r"},
            }
        },
    )
    assert await found.credentials("a.example.org") == ROBOT
    assert await found.credentials("b.example.org") == Credentials(identity_token="i")
    assert await found.credentials("c.example.org") == Credentials(registry_token="r")


async def test_a_changed_file_takes_effect_at_once(tmp_path: Path) -> None:
    found = config(tmp_path, {"auths": {}})
    assert await found.credentials("quay.io") is None
    config(tmp_path, {"auths": {"quay.io": {"auth": AUTH}}})
    assert await found.credentials("quay.io") == ROBOT


@pytest.mark.parametrize("content", ["{", "[]", {"auths": {"quay.io": {"auth": "no base64!"}}}])
async def test_a_broken_file_is_an_error_and_not_no_credentials(tmp_path: Path, content: Any) -> None:
    with pytest.raises(RegistryUnavailable, match="must fix it"):
        await config(tmp_path, content).credentials("quay.io")


async def test_a_credential_helper_takes_precedence_over_stored_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "own", 'echo "{\\"Username\\": \\"$question\\", \\"Secret\\": \\"s\\"}"')
    helper(tmp_path, monkeypatch, "all", 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    found = config(
        tmp_path,
        {
            "auths": {"quay.io": {"auth": AUTH}},
            "credHelpers": {"quay.io": "own"},
            "credsStore": "all",
        },
    )
    assert await found.credentials("quay.io") == Credentials("quay.io", "s")
    assert await found.credentials("docker.io") == Credentials(identity_token="t")


async def test_a_credential_helper_without_an_entry_means_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "none", "echo credentials not found in native keychain; exit 1")
    assert await config(tmp_path, {"credsStore": "none"}).credentials("quay.io") is None


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo locked; exit 1", "locked"),
        ("echo nonsense", "invalid credentials"),
        ("echo '[]'", "invalid credentials"),
    ],
)
async def test_a_failing_credential_helper_is_an_error_and_not_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    helper(tmp_path, monkeypatch, "bad", script)
    with pytest.raises(RegistryUnavailable, match=message):
        await config(tmp_path, {"credsStore": "bad"}).credentials("quay.io")


@pytest.mark.parametrize("name", ["missing", "../../bin/sh"])
async def test_the_error_for_a_missing_credential_helper_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryUnavailable, match=name):
        await config(tmp_path, {"credsStore": name}).credentials("quay.io")


def test_secrets_are_not_in_the_repr_of_credentials() -> None:
    assert "pass" not in repr(ROBOT)
