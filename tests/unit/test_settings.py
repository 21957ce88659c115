"""Settings come from the environment and a file; an unknown one is an error, and no error shows a secret."""

from pathlib import Path

import pytest

from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import Settings, load_settings
from rabbit2docker.settings.constants import is_configured


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("RABBIT2DOCKER_"):
            monkeypatch.delenv(name)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS", "3")
    assert load_settings().limits.concurrent_builds == 3


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("limits: {concurrent_builds: 3, attempts: 1}\n")
    monkeypatch.setenv("RABBIT2DOCKER_CONFIG", str(file))
    monkeypatch.setenv("RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS", "5")
    limits = load_settings().limits
    assert (limits.concurrent_builds, limits.attempts) == (5, 1)


@pytest.mark.parametrize(
    "name", ["RABBIT2DOCKER_LIMIT__CONCURRENT_BUILDS", "RABBIT2DOCKER_LIMITS__CONCURENT_BUILDS"]
)
def test_a_misspelt_name_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


def test_a_misspelt_name_in_the_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("limitz: {}\n")
    monkeypatch.setenv("RABBIT2DOCKER_CONFIG", str(file))
    with pytest.raises(ConfigurationError, match="LIMITZ"):
        load_settings()


def test_a_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_CONFIG", "/nonexistent.yaml")
    with pytest.raises(ConfigurationError, match="not a file"):
        load_settings()


def test_an_error_does_not_show_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__URL", "amqp://ada:lovelace@example.org/")
    monkeypatch.setenv("RABBIT2DOCKER_AMQP__HEARTBEAT", "often")
    with pytest.raises(ConfigurationError, match="HEARTBEAT") as caught:
        load_settings()
    assert "lovelace" not in str(caught.value)


# As a kubelet sets them for Services named rabbit2docker and rabbit2docker-hub, in every pod of their namespace.
SERVICE_VARIABLES = {
    "RABBIT2DOCKER_SERVICE_HOST": "10.96.0.7",
    "RABBIT2DOCKER_SERVICE_PORT": "8090",
    "RABBIT2DOCKER_SERVICE_PORT_HTTP": "8090",
    "RABBIT2DOCKER_PORT": "tcp://10.96.0.7:8090",
    "RABBIT2DOCKER_PORT_8090_TCP": "tcp://10.96.0.7:8090",
    "RABBIT2DOCKER_PORT_8090_TCP_PROTO": "tcp",
    "RABBIT2DOCKER_PORT_8090_TCP_PORT": "8090",
    "RABBIT2DOCKER_PORT_8090_TCP_ADDR": "10.96.0.7",
    "RABBIT2DOCKER_HUB_SERVICE_HOST": "10.96.0.8",
    "RABBIT2DOCKER_HUB_SERVICE_PORT": "8585",
    "RABBIT2DOCKER_HUB_PORT": "tcp://10.96.0.8:8585",
    "RABBIT2DOCKER_HUB_PORT_8585_TCP_ADDR": "10.96.0.8",
}


def test_variables_that_kubernetes_makes_of_services_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert load_settings().limits == Settings().limits
    assert not is_configured(SERVICE_VARIABLES)
    assert is_configured([*SERVICE_VARIABLES, "RABBIT2DOCKER_AMQP__URL"])


@pytest.mark.parametrize(
    "name", ["RABBIT2DOCKER_HUB_PORT", "RABBIT2DOCKER_LIMIT__PORT", "RABBIT2DOCKER_HOST"]
)
def test_a_misspelt_name_is_an_error_beside_services_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("RABBIT2DOCKER_SERVICE_HOST", "10.96.0.7")
    monkeypatch.setenv(name, "3")
    with pytest.raises(ConfigurationError, match=name):
        load_settings()
