"""`python -m deploy.dev up|down|status|run|demo|hub-demo`: what `make` calls."""

import argparse
import os
import shutil
import signal
import subprocess
import sys

from deploy.dev import demo, engine, hub_demo
from deploy.dev.machine import RUN, Ledger, Unable, run_interruptible, say
from deploy.dev.services import Services, read_env, write_env
from rabbit2docker.consumer.executors.local import confinement
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import Settings


def up() -> dict[str, str]:
    """Start what does not run and return the variables that say where it is."""
    ledger = Ledger()
    environment = engine.provide(ledger)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("DOCKER_")})
    services = Services(ledger, environment)
    services.provide_images()
    variables = {**environment, **services.start()}
    variables |= {
        "RABBIT2DOCKER_EXECUTOR": "local",
        "RABBIT2DOCKER_LOCAL__STATE_DIR": str(RUN / "state"),
        "RABBIT2DOCKER_PROVIDERS__ALLOW_PRIVATE_ADDRESSES": "true",
    }
    variables |= _without_confinement_where_refused()
    if host := environment.get("DOCKER_HOST"):
        variables["RABBIT2DOCKER_DOCKER__HOST"] = host
    if (RUN / "bin").exists():
        variables["RABBIT2DOCKER_DEV_BIN"] = str(RUN / "bin")
    write_env(variables)
    return variables


def _without_confinement_where_refused() -> dict[str, str]:
    """Return the setting with which the service starts on a kernel that refuses namespaces, such as some laptops' are."""
    try:
        confinement.prepare(Settings())
    except ConfigurationError as error:
        say(f"{error} Here it is set to false: build only repositories that you trust.")
        return {"RABBIT2DOCKER_LOCAL__CONFINE": "false"}
    return {}


def down() -> None:
    """End what `up` started; harmless when there is nothing."""
    ledger = Ledger()
    env = read_env()
    made = [item for item in ledger.processes if item.name.startswith("engine-")]
    host = {"DOCKER_HOST": env["DOCKER_HOST"]} if "DOCKER_HOST" in env else {}
    if ledger.containers and (not made or any(item.is_alive() for item in made)):
        for name, container in ledger.containers.items():
            say(f"Ending {name}")
            subprocess.run(
                [*_client(), "rm", "--force", "--volumes", container],
                env={**os.environ, **host},
                capture_output=True,
                check=False,
            )
    for process in reversed(ledger.processes):
        if process.is_alive():
            say(f"Ending {process.name}")
        process.end()
    for item in made:
        engine.MadeEngine(RUN, RUN / "engine", item.name.removeprefix("engine-")).remove_bridge()
    for name in ("started.json", "env"):
        (RUN / name).unlink(missing_ok=True)


def _client() -> list[str]:
    made = RUN / "bin" / "docker"
    return [str(made) if made.exists() else shutil.which("docker") or "docker"]


def with_services(variables: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with the services' variables and programs in it."""
    merged = {**os.environ, **variables}
    if tools := variables.get("RABBIT2DOCKER_DEV_BIN"):
        merged["PATH"] = f"{tools}:{merged['PATH']}"
    return merged


def is_up() -> bool:
    """Return whether `up` was called and not yet `down`, and all of its processes still run."""
    ledger = Ledger()
    return bool(ledger.containers) and bool(read_env()) and all(item.is_alive() for item in ledger.processes)


def run_command(command: list[str], rabbitmq: str | None = None) -> int:
    """Run a command with the services up; what was not up before is ended after it.

    `rabbitmq` is the version of the RabbitMQ that tests start, instead of the one of the services.
    """
    keep = is_up()
    try:
        variables = up()
        if rabbitmq is not None:
            image = Services(Ledger(), with_services(variables)).provide_rabbitmq(rabbitmq)
            variables["RABBIT2DOCKER_TEST_RABBITMQ_IMAGE"] = image
        return run_interruptible(command, with_services(variables))
    finally:
        if not keep:
            down()


def run_demo(repository: str | None) -> int:
    """Demonstrate the main job; what was not up before is ended after it."""
    keep = is_up()
    try:
        return demo.demonstrate(with_services(up()), repository)
    finally:
        if not keep:
            down()


def run_hub_demo(*, check: bool) -> int:
    """Run a JupyterHub whose people build images; what was not up before is ended after it."""
    keep = is_up()
    try:
        return hub_demo.demonstrate(with_services(up()), check=check)
    finally:
        if not keep:
            down()


def status() -> None:
    """Say what runs."""
    ledger = Ledger()
    for process in ledger.processes:
        say(f"{process.name}: {'runs' if process.is_alive() else 'has ended'} (pid {process.pid})")
    for name, container in ledger.containers.items():
        say(f"{name}: container {container[:12]}")
    if not ledger.processes and not ledger.containers:
        say("nothing is up; `make up` starts the services")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.dev", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the services and write .run/env")
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("status", help="say what runs")
    runner = commands.add_parser("run", help="run a command with the services up")
    runner.add_argument("--rabbitmq", metavar="VERSION", help="version that tests start, such as 4.3")
    runner.add_argument("rest", nargs=argparse.REMAINDER, metavar="COMMAND")
    demo = commands.add_parser("demo", help="build an image end to end and run it")
    demo.add_argument(
        "repository", nargs="?", help="URL of a repository; default: a small one made on the spot"
    )
    hub = commands.add_parser("hub-demo", help="run a JupyterHub whose people build images, until Ctrl-C")
    hub.add_argument("--check", action="store_true", help="look whether all of it works, and end it again")
    arguments = parser.parse_args()
    # Ctrl-C and `kill` must come by the `finally` that ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        match arguments.command:
            case "up":
                up()
                say("Everything is up. `. .run/env` has the addresses; `make down` ends it.")
            case "down":
                down()
            case "status":
                status()
            case "run":
                command = [part for part in arguments.rest if part != "--"]
                return run_command(command, arguments.rabbitmq)
            case "demo":
                return run_demo(arguments.repository)
            case "hub-demo":
                return run_hub_demo(check=arguments.check)
            case unknown:
                raise AssertionError(unknown)
    except Unable as problem:
        say(f"Cannot go on: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
