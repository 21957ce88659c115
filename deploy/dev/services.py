"""RabbitMQ, the registry, the git server and the images that examples and tests build on or run."""

import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from deploy.dev import engine, machine
from deploy.dev.machine import RUN, Ledger, Unable, debian_root, run, say, timed, wait_until

RABBITMQ_IMAGE = "rabbit2docker-dev/rabbitmq:4"
RABBITMQ_SUITES = {"4.0": machine.SUITE, "4.3": "testing"}
"""The Debian suites that have a version of RabbitMQ; other versions need an image registry."""
REGISTRY_IMAGE = "rabbit2docker-dev/registry:2"
BASE_IMAGE = "rabbit2docker-dev/base:1"
POSTGRESQL_IMAGE = "rabbit2docker-dev/postgresql:17"
LABEL = "rabbit2docker-dev"
PACKAGES = ("ca-certificates", "rabbitmq-server", "docker-registry", "busybox-static")
POSTGRESQL_PACKAGES = ("ca-certificates", "postgresql")
PULL_SECONDS = 300
_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
_START_POSTGRESQL = """#!/bin/sh
# Takes what the official image takes: POSTGRES_PASSWORD, and a command such as `postgres -c fsync=off`.
set -e
data=/var/lib/postgresql/data
install -d -o postgres -g postgres -m 700 "$data"
install -d -o postgres -g postgres /run/postgresql
if [ ! -e "$data/PG_VERSION" ]; then
    password=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" > "$password"
    chown postgres "$password"
    setpriv --reuid postgres --regid postgres --clear-groups \\
        initdb -D "$data" -U postgres -E UTF8 --locale C.UTF-8 -A scram-sha-256 --pwfile "$password" > /dev/null
    rm "$password"
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
fi
exec setpriv --reuid postgres --regid postgres --clear-groups "$@" -D "$data" -c "listen_addresses=*"
"""
_REGISTRY_CONFIG = """version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}
http: {addr: ":5000"}
"""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is pulled where that is possible and made from Debian packages where not."""

    name: str
    pulled: str
    settings: tuple[str, ...]
    """Dockerfile instructions for the one that is made."""
    left_out: tuple[str, ...] = ()
    """Paths that are left out of the image made from packages."""


RABBITMQ = Image(
    RABBITMQ_IMAGE,
    "rabbitmq:4-management",
    (
        "ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8 PATH=/usr/lib/rabbitmq/bin:" + machine.SYSTEM_PATH,
        "EXPOSE 5672 15672",
        'CMD ["rabbitmq-server"]',
    ),
)
IMAGES = (
    RABBITMQ,
    Image(
        REGISTRY_IMAGE,
        "registry:2",
        ("EXPOSE 5000", 'CMD ["docker-registry", "serve", "/etc/rabbit2docker/registry.yml"]'),
    ),
    Image(
        POSTGRESQL_IMAGE,
        "postgres:17",
        (
            "ENV LANG=C.UTF-8 PATH=/usr/lib/postgresql/17/bin:" + machine.SYSTEM_PATH,
            "EXPOSE 5432",
            'ENTRYPOINT ["/usr/local/bin/start-postgresql"]',
            'CMD ["postgres"]',
        ),
        left_out=("usr/lib/*/libLLVM*", "usr/lib/llvm-*", "usr/lib/postgresql/*/lib/bitcode"),
    ),
)


def _configure_rabbitmq(root: Path) -> None:
    (root / "etc/rabbitmq").mkdir(exist_ok=True)
    (root / "etc/rabbitmq/rabbitmq.conf").write_text("loopback_users = none\n")
    (root / "etc/rabbitmq/enabled_plugins").write_text("[rabbitmq_management].\n")


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Services:
    """Makes the services in one engine."""

    def __init__(self, ledger: Ledger, environment: dict[str, str]) -> None:
        """Take the environment in which the docker client works."""
        self.ledger = ledger
        self.environment = environment

    def docker(self, *arguments: str, **options: object) -> str:
        """Run the docker client."""
        return engine.docker(self.environment, *arguments, **options)

    def has_image(self, name: str) -> bool:
        """Return whether the engine has an image."""
        return bool(self.docker("image", "ls", "--quiet", name))

    def _pull(self, name: str, target: str) -> bool:
        if self.ledger.docker_host:
            return False  # our own engine was made because nothing but packages can be had
        try:
            with timed(f"Pulling {name}"):
                self.docker("pull", "--quiet", name, timeout=PULL_SECONDS)
                self.docker("tag", name, target)
        except (Unable, subprocess.TimeoutExpired):
            say(f"{name} cannot be pulled, so it is made from Debian packages")
            return False
        return True

    def provide_images(self) -> None:
        """Make or pull what is missing."""
        for image in IMAGES:
            if not self.has_image(image.name) and not self._pull(image.pulled, image.name):
                self._import_services(image)
        if not self.has_image(BASE_IMAGE) and not self._pull("busybox:stable", BASE_IMAGE):
            self._import_base()

    def provide_rabbitmq(self, version: str) -> str:
        """Make or pull the image of a version of RabbitMQ, such as 4.3, for tests, and return its name."""
        name = f"rabbit2docker-dev/rabbitmq:{version}"
        if self.has_image(name) or self._pull(f"rabbitmq:{version}-management", name):
            return name
        if (suite := RABBITMQ_SUITES.get(version)) is None:
            known = " and ".join(RABBITMQ_SUITES)
            raise Unable(f"RabbitMQ {version} needs an image registry; Debian has only {known}.")
        root = debian_root("rabbitmq", ("ca-certificates", "rabbitmq-server"), suite)
        _configure_rabbitmq(root)
        found = next((root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")).name.partition("-")[2]
        if not found.startswith(f"{version}."):
            raise Unable(f"Debian's suite {suite} has RabbitMQ {found} now, not {version}.")
        say(f"RabbitMQ {found}")
        self.import_image(name, root, RABBITMQ.settings)
        return name

    def _services_root(self) -> Path:
        root = debian_root("services", PACKAGES)
        _configure_rabbitmq(root)
        (root / "etc/rabbit2docker").mkdir(exist_ok=True)
        (root / "etc/rabbit2docker/registry.yml").write_text(_REGISTRY_CONFIG)
        return root

    def _postgresql_root(self) -> Path:
        root = debian_root("postgresql", POSTGRESQL_PACKAGES)
        start = root / "usr/local/bin/start-postgresql"
        start.write_text(_START_POSTGRESQL)
        start.chmod(0o755)
        return root

    def import_image(
        self, name: str, directory: Path, settings: tuple[str, ...], left_out: tuple[str, ...] = _LEFT_OUT
    ) -> None:
        """Make an image of a directory, with instructions as in a Dockerfile."""
        with timed(f"Making the image {name}"):
            tar = ["tar", "-C", str(directory), "-c", *(f"--exclude=./{path}" for path in left_out), "."]
            changes = [part for setting in settings for part in ("-c", setting)]
            client = shutil.which("docker", path=f"{RUN / 'bin'}:{os.environ['PATH']}") or "docker"
            with subprocess.Popen(tar, stdout=subprocess.PIPE) as archive:
                subprocess.run(
                    [client, "import", *changes, "-", name],
                    stdin=archive.stdout,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, **self.environment},
                    check=True,
                )
            if archive.returncode:
                raise Unable(f"{directory} could not be packed.")

    def _import_services(self, image: Image) -> None:
        root = self._postgresql_root() if image.name == POSTGRESQL_IMAGE else self._services_root()
        self.import_image(image.name, root, image.settings, (*_LEFT_OUT, *image.left_out))

    def _import_base(self) -> None:
        root = RUN / "base-image"
        shutil.rmtree(root, ignore_errors=True)
        for directory in ("bin", "etc", "tmp", "home", "root"):
            (root / directory).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        busybox = shutil.copy(self._services_root() / "bin/busybox", root / "bin/busybox")
        for name in run([busybox, "--list"]).stdout.split():
            if name != "busybox":
                (root / "bin" / name).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        self.import_image(BASE_IMAGE, root, ("ENV PATH=/bin", 'CMD ["sh"]'))
        shutil.rmtree(root)

    def _container(self, name: str, image: str, ports: dict[int, int], *options: str) -> None:
        """Run a container, or the one that runs already; `ports` maps its ports to ours."""
        running = self.ledger.containers.get(name)
        if running and self.docker("ps", "--quiet", "--no-trunc", "--filter", f"id={running}"):
            return
        published = [part for inside, port in ports.items() for part in ("-p", f"127.0.0.1:{port}:{inside}")]
        label = f"{LABEL}={machine.checkout_id()}"
        self.ledger.containers[name] = self.docker("run", "-d", "--label", label, *published, *options, image)
        self.ledger.save()

    def start(self) -> dict[str, str]:
        """Start what does not run; return the variables that say where everything is."""
        need = {"git": "git"}
        machine.need_packages(need, "Serving and fetching repositories")
        ports = self._ports()
        amqp, management, registry, git = (ports[name] for name in ("amqp", "management", "registry", "git"))
        with timed("Starting RabbitMQ and the registry"):
            self._container("rabbitmq", RABBITMQ_IMAGE, {5672: amqp, 15672: management})
            self._container("registry", REGISTRY_IMAGE, {5000: registry})
            self._wait_http("The registry", f"http://127.0.0.1:{registry}/v2/", "registry")
            self._wait_http("RabbitMQ", f"http://127.0.0.1:{management}/api/auth", "rabbitmq")
        git_root = RUN / "git"
        git_root.mkdir(parents=True, exist_ok=True)
        if not self.ledger.alive("git"):
            command = ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", f"--port={git}"]
            machine.start(
                "git",
                [*command, f"--base-path={git_root}", str(git_root)],
                log=RUN / "git.log",
                ledger=self.ledger,
            )
        return {
            "RABBIT2DOCKER_AMQP__URL": f"amqp://guest:guest@127.0.0.1:{amqp}/",
            "RABBIT2DOCKER_AMQP__MANAGEMENT_URL": f"http://guest:guest@127.0.0.1:{management}/",
            "RABBIT2DOCKER_IMAGES__PREFIX": f"127.0.0.1:{registry}/r2d-",
            "RABBIT2DOCKER_TEST_REGISTRY": f"127.0.0.1:{registry}",
            "RABBIT2DOCKER_TEST_RABBITMQ_IMAGE": RABBITMQ_IMAGE,
            "RABBIT2DOCKER_TEST_POSTGRES_IMAGE": POSTGRESQL_IMAGE,
            "RABBIT2DOCKER_TEST_BASE_IMAGE": BASE_IMAGE,
            "RABBIT2DOCKER_TEST_GIT_ROOT": str(git_root),
            "RABBIT2DOCKER_TEST_GIT_URL": f"git://127.0.0.1:{git}",
        }

    def _ports(self) -> dict[str, int]:
        """Return the ports of what runs already, and free ones for the rest."""
        env = read_env()
        known = {
            "amqp": env.get("RABBIT2DOCKER_AMQP__URL", ""),
            "management": env.get("RABBIT2DOCKER_AMQP__MANAGEMENT_URL", ""),
            "registry": env.get("RABBIT2DOCKER_TEST_REGISTRY", ""),
            "git": env.get("RABBIT2DOCKER_TEST_GIT_URL", ""),
        }
        return {
            name: int(text.rstrip("/").rpartition(":")[2]) if text and self.ledger.containers else free_port()
            for name, text in known.items()
        }

    def _wait_http(self, what: str, url: str, container: str) -> None:
        def is_there() -> bool:
            try:
                urllib.request.urlopen(url, timeout=2)
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        if not wait_until(is_there, 90):
            logs = self.docker("logs", "--tail", "10", self.ledger.containers[container])
            raise Unable(f"{what} did not start:\n{logs}")


def read_env(file: Path = RUN / "env") -> dict[str, str]:
    """Return the variables of `.run/env` or another such file; empty when nothing is up."""
    if not file.exists():
        return {}
    pairs = (line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    return {name: value.strip("'") for name, value in pairs}


def write_env(variables: dict[str, str], file: Path = RUN / "env") -> None:
    """Write `.run/env`, or another such file, for shells and programs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}='{value}'\n" for name, value in sorted(variables.items()))
    file.write_text(text)
