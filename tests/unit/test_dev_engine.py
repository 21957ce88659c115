"""The Docker client of `make up`: what is written to `.run/env`."""

from pathlib import Path

import pytest
from deploy.dev import engine, machine

CLIENT = """#!/bin/sh
# Has buildx only through the configuration that names the plugin, as the client that `up` makes.
[ "$1 $2" != "buildx version" ] || [ -e "${DOCKER_CONFIG:-/nowhere}/config.json" ]
"""


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the directory of `up` with a client and its configuration, both as `.run/env` names them."""
    directory = tmp_path / ".run"
    for name in ("bin", "docker", "root/usr/lib/x86_64-linux-gnu", "root/lib64"):
        (directory / name).mkdir(parents=True)
    (directory / "root/lib64/ld-linux-x86-64.so.2").touch()
    (directory / "docker/config.json").write_text("{}")
    (directory / "bin/docker").write_text(CLIENT)
    (directory / "bin/docker").chmod(0o755)
    monkeypatch.setattr(engine, "RUN", directory)
    monkeypatch.setattr(engine, "engine_root", lambda: directory / "root")
    monkeypatch.setattr(engine, "answers", lambda host: True)
    monkeypatch.setattr(machine, "is_debian_root", lambda: True)
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/docker.sock")
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:/usr/bin:/bin")
    return directory


class TestProvide:
    def test_up_in_a_shell_that_sourced_its_variables_writes_the_same_ones_again(
        self, run_directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        ledger = machine.Ledger(run_directory / "started.json")
        first = engine.provide(ledger)
        assert first["DOCKER_CONFIG"] == str(run_directory / "docker")
        (run_directory / "bin/docker").write_text(CLIENT)
        for name, value in first.items():
            monkeypatch.setenv(name, value)
        assert engine.provide(ledger) == first

    def test_a_configuration_of_the_users_own_is_left_alone(
        self, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, bin_directory = tmp_path / "own", tmp_path / "bin"
        for directory in (own, bin_directory):
            directory.mkdir()
        (own / "config.json").write_text("{}")
        (bin_directory / "docker").write_text(CLIENT)
        (bin_directory / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_directory}:/usr/bin:/bin")
        monkeypatch.setenv("DOCKER_CONFIG", str(own))
        assert engine.provide(machine.Ledger(run_directory / "started.json")) == {
            "DOCKER_HOST": "unix:///run/docker.sock"
        }
