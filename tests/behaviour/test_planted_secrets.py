"""Secrets planted wherever a builder of this machine can see, and repositories that search for them."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import docker
import pytest

from rabbit2docker.amqp import declare
from rabbit2docker.hub.ingest import Ingester
from rabbit2docker.hub.store.models import Build
from rabbit2docker.hub.store.store import Store
from rabbit2docker.settings import AmqpSettings, Settings
from tests.support.consumer import Consumer
from tests.support.repositories import dockerfile, repository, tools_path
from tests.support.stories import build
from tests.support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.broker, pytest.mark.xdist_group("real-builds")]

SECRET: Final = f"planted-{uuid.uuid4().hex}"
ENGINE: Final = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
# Part of the process of repo2docker, as if a file of the repository had taken it over. It prints what it finds backwards,
# as the builder redacts what it knows.
TAKEN_OVER: Final = f"""
import glob, os, subprocess, sys
if "ENGINE_DOOR" in os.environ and "repo2docker" in sys.orig_argv:
    wanted, found, searched = b"{SECRET[:-1]}" + b"{SECRET[-1:]}", [], 0
    paths = [path for name in ("environ", "cmdline", "mountinfo") for path in glob.glob("/proc/[0-9]*/" + name)]
    for top in os.environ.get("SEARCHED", "/etc /home /root /run /tmp /var").split():
        for directory, _, names in os.walk(top):
            paths += [os.path.join(directory, name) for name in names]
    for path in paths:
        try:
            with open(path, "rb") as file:
                searched += 1
                if wanted in file.read(1 << 22):
                    found.append(path[::-1])
        except OSError:
            pass
    variables = {{name: value for name, value in os.environ.items() if not name.startswith("GIT_")}}
    for command in ("git credential fill", "git config --list", "docker-credential-planted get", "docker version"):
        try:
            question = b"protocol=https\\nhost=git.example\\n\\n"
            answer = subprocess.run(command.split(), input=question, capture_output=True, env=variables)
            if wanted in answer.stdout + answer.stderr:
                found.append(command[::-1])
        except OSError:
            pass
    print("searched", searched > 10, "found", found, "engine", os.path.exists("{ENGINE}"), flush=True)
"""


def plant(directory: Path) -> dict[str, str]:
    """Write the secret into every place where credentials are kept; return a consumer's environment with more of them."""
    home, config = directory / "home", directory / "docker-config"
    own = Path(os.environ.get("DOCKER_CONFIG", "/nonexistent"), "config.json")
    plugins = json.loads(own.read_text()) if own.exists() else {}
    auths = {"registry.example": {"identitytoken": SECRET}}
    entry = json.dumps({**plugins, "auths": auths, "credHelpers": {"other.example": "planted"}})
    helper = f'#!/bin/sh\necho \'{{"Username": "me", "Secret": "{SECRET}"}}\'\n'
    for path, text in {
        home / ".git-credentials": f"https://me:{SECRET}@git.example\n",
        home / ".gitconfig": f'[url "https://me:{SECRET}@git.example/"]\n\tinsteadOf = https://git.example/\n'
        "[credential]\n\thelper = store\n",
        home / ".netrc": f"machine git.example login me password {SECRET}\n",
        home / ".docker" / "config.json": entry,
        home / ".ssh" / "id_ed25519": SECRET,
        config / "config.json": entry,
        directory / "mounted" / "token": SECRET,
        directory / "helpers" / "docker-credential-planted": helper,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (directory / "helpers" / "docker-credential-planted").chmod(0o755)
    return {
        "PATH": f"{directory / 'helpers'}:{tools_path()}",
        "HOME": str(home),
        "DOCKER_CONFIG": str(config),
        "RABBIT2DOCKER_DOCKER__CONFIG": str(config),
        "RABBIT2DOCKER_PROVIDERS__GITHUB_TOKEN": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.https://git.example.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Bearer {SECRET}",
    }


def has_secret(client: docker.DockerClient, image: str) -> bool:
    """Return whether a layer, the configuration or the history of an image has the secret."""
    rest = json.dumps(client.images.get(image).history()).encode()
    words = (SECRET.encode(), SECRET[::-1].encode())
    for chunk in client.images.get(image).save(named=True):
        rest += chunk
        if any(word in rest for word in words):
            return True
        rest = rest[-100:]
    return False


@asynccontextmanager
async def fed(directory: Path, amqp: AmqpSettings) -> AsyncIterator[Store]:
    """Have a hub's store in a directory receive what is published."""
    settings = Settings(amqp=amqp)
    await declare.declare(settings)
    directory.mkdir()
    async with Store(f"sqlite:///{directory / 'store.sqlite'}", settings.tenant) as store:
        running = asyncio.create_task(Ingester(store, settings).run())
        try:
            yield store
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def everything_in(store: Store, build_id: str) -> str:
    """Return a build with its events and its whole log, once the store has its end."""

    async def ended() -> Build | None:
        build = await store.build(build_id)
        return build if build and build.ended_at else None

    build = await eventually(ended)
    events = [event async for event in store.events(build_id)]
    return repr((build, events))


def files_with_secret(directory: Path) -> list[Path]:
    """Return the files in a directory that have the secret."""
    words = (SECRET.encode(), SECRET[::-1].encode())
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(word in path.read_bytes() for word in words)]


async def test_planted_secrets_are_in_no_event_no_log_and_no_image(
    own_amqp: AmqpSettings, tmp_path: Path
) -> None:
    variables = plant(tmp_path)
    (tmp_path / "taken-over").mkdir()
    (tmp_path / "taken-over" / "sitecustomize.py").write_text(TAKEN_OVER)
    consumer = Consumer(
        tmp_path,
        own_amqp,
        real=True,
        PYTHONPATH=str(tmp_path / "taken-over"),
        PYTHONDONTWRITEBYTECODE="1",  # what was taken over is readable, and names the secret it looks for
        RABBIT2DOCKER_LOCAL__READABLE_PATHS=json.dumps([str(tmp_path / "taken-over")]),
        **variables,
    )
    hostile = dockerfile(
        "COPY . /everything",
        f"RUN env; cat /proc/*/environ /proc/mounts; grep -rs {SECRET[:12]} /run /etc /root /home /tmp /everything; true",
        "RUN cp -rL /everything /followed; true",
    )
    with repository("planted", {**hostile, "sub/apt.txt": "curl\n", ".git-config": "[core]\n"}) as repo:
        for number, path in enumerate(sorted(tmp_path.rglob("*"))[:50]):
            (repo.directory / "sub" / f"link-{number}").symlink_to(path)
        repo.commit({"README.md": "Links."})
        consumer.start_and_wait()
        try:
            async with fed(tmp_path / "hub", own_amqp) as store:
                story = await build(own_amqp, repo.spec())
                kept = await everything_in(store, story.accepted.build_id)
        finally:
            consumer.end_everything()
    attack = [line for line in story.log if line.startswith("searched")]
    assert attack == ["searched True found [] engine False"], story.log
    published = repr(story.events)
    assert "searched True found []" in kept
    for text in (published, kept, consumer.log.read_text()):
        assert SECRET not in text
        assert SECRET[::-1] not in text
    assert not files_with_secret(tmp_path / "hub")
    assert not files_with_secret(tmp_path / "state")
    client = docker.DockerClient(base_url=os.environ.get("RABBIT2DOCKER_DOCKER__HOST"))
    try:
        assert not has_secret(client, story.completed.image)
    finally:
        client.close()


def test_the_search_finds_the_secrets_where_nothing_is_confined(tmp_path: Path) -> None:
    variables = plant(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(TAKEN_OVER)
    environment = {
        "PYTHONPATH": str(tmp_path),
        "ENGINE_DOOR": "x",
        "SEARCHED": str(tmp_path),
    }
    command = [sys.executable, "-c", "pass", "repo2docker"]
    ended = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("searched True"), ended.stderr
    commands = ("git credential fill", "git config --list", "docker-credential-planted get")
    for name in ("config.json", ".gitconfig", "id_ed25519", "token", "environ", *commands):
        assert name[::-1] in ended.stdout
