"""The demonstration: one image from request to run, with everything real."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from deploy.dev.machine import RUN, Ledger, Unable, run, say, start, wait_until
from deploy.dev.services import BASE_IMAGE, free_port

SERVICE = "service"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
DOCKERFILE = f"""FROM {BASE_IMAGE}
COPY greeting.txt /greeting.txt
RUN echo "A step that takes a moment" && sleep 1 && echo "and is done"
CMD ["cat", "/greeting.txt"]
"""


def make_example(root: Path, name: str = "example", files: Mapping[str, str] | None = None) -> Path:
    """Make a small git repository with a Dockerfile, anew each time, so that each demonstration builds something.

    `files`: what is in it beside a greeting.
    """
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file, text in (files or {"Dockerfile": DOCKERFILE}).items():
        (directory / file).write_text(text)
    moment = run(["date", "+%H:%M:%S on %-d %B %Y"]).stdout.strip()
    (directory / "greeting.txt").write_text(f"Hello from an image of the repository made at {moment}.\n")
    git = ["git", "-C", str(directory), "-c", "user.name=Example", "-c", "user.email=example@example.org"]
    run(["git", "init", "--quiet", "--initial-branch=main", str(directory)])
    run([*git, "add", "--all"])
    run([*git, "commit", "--quiet", "--message", "An example"])
    return directory


def command() -> str:
    """Return the path of the command `rabbit2docker` beside this Python."""
    return str(Path(sys.executable).with_name("rabbit2docker"))


@contextmanager
def service(environment: dict[str, str]) -> Iterator[None]:
    """Run the consumer, ready to take requests, and end it again."""
    log, ledger = RUN / "service.log", Ledger()
    log.unlink(missing_ok=True)
    bind = f"127.0.0.1:{free_port()}"
    os.environ.update(environment, RABBIT2DOCKER_HTTP__BIND=bind)
    process = start(SERVICE, [command(), "run"], log=log, ledger=ledger)
    try:
        if not wait_until(lambda: _is_ready(bind) or not process.is_alive(), 60) or not process.is_alive():
            raise Unable(f"The service did not start:\n{log.read_text()[-2000:]}")
        yield
    finally:
        process.end()
        ledger.remove(SERVICE)


def _is_ready(bind: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{bind}/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _target(repository: str | None, environment: dict[str, str]) -> list[str]:
    if repository:
        return [repository]
    make_example(RUN / "git")
    url = f"{environment['RABBIT2DOCKER_TEST_GIT_URL']}/example"
    say(f"The repository: {url}, made just now")
    return ["git", f"{quote(url, safe='')}/main"]


def registry_digest(image: str) -> str:
    """Return what the registry says the digest of an image is."""
    host, _, rest = image.partition("/")
    name, _, tag = rest.partition("@")[0].rpartition(":")
    request = urllib.request.Request(
        f"http://{host}/v2/{name}/manifests/{tag}", method="HEAD", headers={"Accept": MANIFESTS}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def demonstrate(environment: dict[str, str], repository: str | None) -> int:
    """Build, ask the registry, run the image; return the exit code."""
    docker = shutil.which("docker", path=environment["PATH"]) or "docker"
    say("Starting the service, `rabbit2docker run` …")
    with service(environment):
        target = _target(repository, environment)
        name = f"demo-{os.getpid()}-{os.urandom(4).hex()}"
        arguments = ["build", *target, "--request-id", name]
        say(f"$ rabbit2docker {' '.join(arguments)}")
        code = subprocess.run([command(), *arguments], env=os.environ, check=False).returncode
        if code:
            say(f"The build ended with exit code {code}; the service's log is {RUN / 'service.log'}.")
            return code
        status = run([command(), "status", "--json", name], env=os.environ).stdout
        built = json.loads(status)
        say(f"The registry says: {built['image']} has {registry_digest(built['image'])}")
        say("$ docker run --rm --pull always …, to see that the registry has it all:")
        greet = [] if repository is None else ["sh", "-c", "echo Hello from inside; python --version"]
        subprocess.run([docker, "image", "rm", "--force", built["image"]], capture_output=True, check=False)
        code = subprocess.run(
            [docker, "run", "--rm", "--pull", "always", "--quiet", built["image"], *greet], check=False
        ).returncode
        subprocess.run([docker, "image", "rm", "--force", built["image"]], capture_output=True, check=False)
        return code
