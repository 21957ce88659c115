"""The directories that the local executor shows to programs reading a repository, and hides from those that fetch one."""

from pathlib import Path

import pytest

from rabbit2docker.consumer.executors.local.confinement import prepare
from rabbit2docker.settings import ExecutorKind, Settings


def settings(directory: Path, **local: object) -> Settings:
    return Settings.model_validate(
        {
            "executor": ExecutorKind.LOCAL,
            "docker": {"config": directory / "service"},
            "tenants": {"a": {"docker_config": directory / "tenant"}, "b": {}},
            "local": {"state_dir": directory / "state", **local},
        }
    )


def test_all_credentials_of_registries_are_hidden_and_nothing_but_programs_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "environment"))
    names = ("service", "tenant", "environment", "chosen", "home/.docker", "state")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    found = prepare(settings(tmp_path, readable_paths=[tmp_path / "chosen"]))
    assert found
    hidden = {str(tmp_path / name) for name in ("service", "tenant", "environment", "home/.docker")}
    assert set(found["hidden"]) == hidden
    shown = [Path(path) for path in found["readable"]]
    assert [path for path in shown if path.is_relative_to(tmp_path)] == [tmp_path / "chosen"]
    assert not [path for path in shown if path in (Path("/"), Path("/etc"), Path("/root"), Path("/home"))]


def test_an_operator_can_do_without(tmp_path: Path) -> None:
    assert prepare(settings(tmp_path, confine=False)) is None
