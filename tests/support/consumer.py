"""The real consumer as a process of its own, to be killed and started again."""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.requests import BuildRequest
from tests.support import programs
from tests.support.ports import free_port
from tests.support.waiting import eventually_blocking

TOOLS = Path(__file__).with_name("tools")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def a_request(name: str, **options: object) -> BuildRequest:
    """Return a request for a build that the fake repo2docker carries out; the commit needs no look-up."""
    repository = quote(f"https://127.0.0.1/{name}", safe="")
    build_args = {key.upper(): str(value) for key, value in options.items()}
    return BuildRequest(provider="git", spec=f"{repository}/{COMMIT}", request_id=name, build_args=build_args)


class Consumer:
    """`rabbit2docker run`, with fakes in the place of repo2docker and docker unless `real`."""

    fork = False
    """Whether it is a fork of a process that has imported it, else it is the console script."""

    def __init__(self, directory: Path, amqp: AmqpSettings, *, real: bool = False, **variables: str) -> None:
        self.directory = directory
        self.log = directory / "consumer.log"
        self.bind = f"127.0.0.1:{free_port()}"
        self.fake_docker = directory / "docker"
        self.fake_docker.mkdir(exist_ok=True)
        self.process: programs.Program | None = None
        management = amqp.management_url.get_secret_value() if amqp.management_url else None
        self.variables = {
            "RABBIT2DOCKER_AMQP__URL": amqp.url.get_secret_value(),
            "RABBIT2DOCKER_AMQP__HEARTBEAT": str(amqp.heartbeat),
            "RABBIT2DOCKER_LOCAL__STATE_DIR": str(directory / "state"),
            "RABBIT2DOCKER_HTTP__BIND": self.bind,
            "RABBIT2DOCKER_LOG__FORMAT": "json",
            "RABBIT2DOCKER_PROVIDERS__ALLOW_PRIVATE_ADDRESSES": "true",
            "RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS": "20",
            **({"RABBIT2DOCKER_AMQP__MANAGEMENT_URL": management} if management else {}),
        }
        if not real:
            self.variables |= {
                "RABBIT2DOCKER_IMAGES__CHECK_REGISTRY": "false",
                # The fakes read and write files of the test.
                "RABBIT2DOCKER_LOCAL__CONFINE": "false",
                "PATH": f"{TOOLS / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(TOOLS / "python"),
                "DOCKER_FAKE_STATE": str(self.fake_docker),
            }
        self.variables |= variables

    def run_command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the program with the settings of the consumer."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBIT2DOCKER_")}
        return subprocess.run(
            [programs.COMMAND, *arguments],
            env={**inherited, **self.variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self) -> None:
        """Start it, without waiting for anything."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBIT2DOCKER_")}
        passed_on = {
            k: v
            for k, v in os.environ.items()
            if k.startswith(("RABBIT2DOCKER_DOCKER", "RABBIT2DOCKER_IMAGES", "RABBIT2DOCKER_LOCAL__CONFINE"))
        }
        with self.log.open("ab") as log:
            environment = {**inherited, **passed_on, **self.variables}
            self.process = programs.start("run", environment, log, fork=self.fork)

    def start_and_wait(self) -> None:
        """Start it and wait until it takes requests."""
        self.start()
        eventually_blocking(lambda: self.is_ready() or self.has_ended())
        assert not self.has_ended(), self.log.read_text()

    def has_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def kill(self) -> None:
        """Give it no chance to do anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.bind}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_ready(self) -> bool:
        try:
            return self.get("/health/ready")[0] == 200
        except OSError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        """Return the service's own log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def records(self) -> list[Path]:
        """Return the attempts that are on disk; one that is being written has a temporary, hidden name."""
        found = (self.directory / "state" / "attempts").glob("*/build.json")
        return sorted(path for path in found if not path.parent.name.startswith("."))

    def builder_log(self) -> str:
        """Return what all builders have written."""
        logs = (self.directory / "state" / "attempts").glob("[!.]*/log.jsonl")
        return "".join(path.read_text() for path in logs)

    def end_everything(self) -> None:
        """End the service and the builders that it left behind."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for record in (self.directory / "state" / "attempts").glob("*/process.json"):
            pid = json.loads(record.read_text())["pid"]
            try:
                is_ours = str(self.directory) in Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if is_ours:
                os.kill(pid, signal.SIGTERM)
