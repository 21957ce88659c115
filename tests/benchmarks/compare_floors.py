"""The floors of a comparison: what bare libraries and commands take for a part of the same work, on the same machine."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import aio_pika

from rabbit2docker.amqp import declare
from rabbit2docker.amqp.broker import publishing
from rabbit2docker.amqp.request_publisher import RequestPublisher
from rabbit2docker.consumer.executors.kubernetes.client import ApiClient
from rabbit2docker.consumer.executors.kubernetes.rate_limiter import CallPriority
from rabbit2docker.settings import KubernetesSettings, Settings
from rabbit2docker_schemas.requests import BuildRequest
from tests.benchmarks.compare_builds import RATE, to_pods
from tests.benchmarks.compare_sides import Run
from tests.benchmarks.comparison import OURS
from tests.benchmarks.listening import listening
from tests.benchmarks.measuring import own_vhost, percentiles
from tests.support.consumer import Consumer
from tests.support.repositories import dockerfile, repository, tools_path

AIO_PIKA, KUBERNETES, DOCKER, PYTHON = "aio-pika", "API server", "docker build", "python"
LINE_BYTES = 300
"""A line with its envelope."""


async def amqp_lines(run: Run, builds: int) -> None:
    """Publish and receive as many lines a second as so many builds write, each as a message of its own."""
    assert run.ours.services is not None
    url = run.ours.services.place.amqp.url.get_secret_value()
    ages: list[float] = []
    seconds = 3 if run.quick else 6
    async with await aio_pika.connect(url) as connection, await aio_pika.connect(url) as receiving:
        channel, other = await connection.channel(publisher_confirms=True), await receiving.channel()
        await other.set_qos(prefetch_count=500)
        queue = await other.declare_queue(exclusive=True)

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            ages.append(time.time() - float(message.body.split()[0]))
            await message.ack()

        await queue.consume(take)

        async def write() -> None:
            began = time.monotonic()
            for number in range(seconds * RATE):
                body = f"{time.time():.6f} ".encode().ljust(LINE_BYTES)
                await channel.default_exchange.publish(aio_pika.Message(body, delivery_mode=2), queue.name)
                await asyncio.sleep(max(0.0, began + (number + 1) / RATE - time.monotonic()))

        await asyncio.gather(*(write() for _ in range(builds)))
    if ages:
        row = f"line → subscriber, {builds} build{'s' if builds > 1 else ''} × {RATE} lines/s, p50"
        run.note(row, "ms", AIO_PIKA, 1000 * percentiles(ages)["p50"])


async def api_calls(run: Run) -> None:
    """Create pods with one call each, on the simulated API server."""
    services = run.ours.services
    assert services is not None
    assert services.place.simulated is not None
    kubernetes = KubernetesSettings(kubeconfig=services.place.simulated.kubeconfig, namespace="builds")
    api, asked = ApiClient(kubernetes), {}
    await api.open()
    try:
        for number in range(8 if run.quick else 20):
            name = run.name("bare", run.ours, number).lower()
            asked[name] = time.time()
            await api.call(
                "POST", "/api/v1/namespaces/builds/pods", priority=CallPriority.CREATE, body=_pod(name)
            )
            await asyncio.sleep(0.1)
    finally:
        await api.close()
    seconds = percentiles(await to_pods(run.ours, asked))["p50"]
    for way in ("HTTP", "AMQP"):
        run.note(f"request over {way} → pod created, p50", "ms", KUBERNETES, 1000 * seconds)


def _pod(name: str) -> dict[str, Any]:
    build = {"repo_url": f"https://127.0.0.1/{name}", "build_args": {}}
    variable = {"name": "RABBIT2DOCKER_BUILD", "value": json.dumps(build)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"component": "bare"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "builder", "image": "bare", "env": [variable]}],
        },
    }


async def real_build(run: Run) -> None:
    """Build and push a Dockerfile of one step: with this service on this machine, and with docker alone."""
    row = "a real build of one step, from the request to its end"
    with own_vhost() as amqp, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        settings = Settings(amqp=amqp)
        await declare.declare(settings)
        consumer = Consumer(Path(directory), amqp, real=True, PATH=tools_path())
        await asyncio.to_thread(consumer.start_and_wait)
        try:
            async with publishing(settings, wait_seconds=20) as publisher, listening(amqp) as heard:
                requester = RequestPublisher(publisher, "default")
                with repository("compare", dockerfile("LABEL step=one")) as made:
                    began = time.monotonic()
                    await requester.request(BuildRequest(provider="git", spec=made.spec()))
                    await heard.until(lambda: bool(heard.ends))
                    run.note(row, "s", OURS, time.monotonic() - began, digits=2)
        finally:
            await asyncio.to_thread(consumer.end_everything)
    run.note(row, "s", DOCKER, await asyncio.to_thread(_docker_build), digits=2)


def _docker_build() -> float:
    """Return the seconds of docker's own build and push."""
    tag = f"{os.environ['RABBIT2DOCKER_IMAGES__PREFIX']}bare-{uuid.uuid4().hex[:8]}:1"
    environment = {**os.environ, "PATH": tools_path()}
    with tempfile.TemporaryDirectory() as directory:
        for name, text in dockerfile("LABEL step=one").items():
            (Path(directory) / name).write_text(text)
        began = time.monotonic()
        for command in (
            ["docker", "build", "--quiet", "--tag", tag, directory],
            ["docker", "push", "--quiet", tag],
        ):
            subprocess.run(command, env=environment, check=True, capture_output=True)
        return time.monotonic() - began


def python_start() -> float:
    """Return the seconds that an interpreter takes to start and end."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.monotonic() - began
