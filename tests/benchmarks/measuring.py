"""Shared parts of the benchmarks: a broker of their own, a consumer, percentiles, and reports."""

import json
import os
import platform
import tempfile
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from yarl import URL

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.settings import AmqpSettings, Settings, load_settings
from tests.support.consumer import Consumer


@dataclass(slots=True)
class Goal:
    """A goal, and whether a result meets it."""

    what: str
    goal: float
    found: float
    is_met: bool


@dataclass(slots=True)
class Report:
    """One benchmark's JSON."""

    name: str
    parameters: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    machine: dict[str, Any] = field(
        default_factory=lambda: {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        }
    )

    def at_most(self, what: str, found: float, goal: float) -> None:
        """Note a goal that is an upper limit."""
        self.goals.append(Goal(what, goal, round(found, 3), found <= goal))

    def at_least(self, what: str, found: float, goal: float) -> None:
        """Note a goal that is a lower limit."""
        self.goals.append(Goal(what, goal, round(found, 3), found >= goal))

    def write(self, directory: Path) -> Path:
        """Write it as `<name>.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the greatest, rounded to milliseconds where the values are seconds."""
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {
        "p50": round(cuts[49], 3),
        "p95": round(cuts[94], 3),
        "p99": round(cuts[98], 3),
        "max": round(max(values), 3),
        "count": len(values),
    }


def _call(management: URL, method: str, path: str, body: Any = None) -> None:
    authorization = b64encode(f"{management.user}:{management.password}".encode()).decode()
    request = urllib.request.Request(
        f"{str(management.with_user(None)).rstrip('/')}/api/{path}",
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Authorization": f"Basic {authorization}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=20).close()


@contextmanager
def own_vhost() -> Iterator[AmqpSettings]:
    """Give a virtual host of the benchmark's own on the broker that `make up` has started."""
    amqp = load_settings().amqp
    assert amqp.management_url is not None, "run this by `make bench`"
    management, url = URL(amqp.management_url.get_secret_value()), URL(amqp.url.get_secret_value())
    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    _call(management, "PUT", f"vhosts/{name}", {})
    _call(
        management, "PUT", f"permissions/{name}/{url.user}", {"configure": ".*", "write": ".*", "read": ".*"}
    )
    try:
        yield AmqpSettings.model_validate({**amqp.model_dump(), "url": str(url.with_path(f"/{name}"))})
    finally:
        _call(management, "DELETE", f"vhosts/{name}")


@asynccontextmanager
async def running_consumer(**variables: str) -> AsyncIterator[tuple[Consumer, Settings, RequestPublisher]]:
    """Run the real consumer, with repo2docker and docker stood in for, and give what it takes to ask it."""
    limits = {"RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS": "250", "RABBIT2DOCKER_LOG__LEVEL": "warning"}
    with own_vhost() as amqp, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        settings = Settings(amqp=amqp)
        await declare.declare(settings)
        consumer = Consumer(Path(directory), amqp, real=False, **{**limits, **variables})
        consumer.start_and_wait()
        try:
            async with publishing(settings, wait_seconds=20) as publisher:
                yield consumer, settings, RequestPublisher(publisher, "default")
        finally:
            consumer.end_everything()
