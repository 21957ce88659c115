"""Builds in a row on an engine whose small disk they would fill several times over."""

import asyncio
import tempfile
import time
from pathlib import Path

from rabbit2docker.consumer.engine_disk.disk_view import measure as look_at
from tests.benchmarks.measuring import Report, percentiles
from tests.support.engine_disk import MEGABYTE, SmallBuild, cleaning, small_engine

BUILDS = 200
DISK = "450m"
IMAGE_BYTES = 30 * MEGABYTE
MAX_PERCENT = 70


async def measure() -> Report:
    """Build and push, one image after the other, while the disk is cleaned as in the chart."""
    return await asyncio.to_thread(_measure)


def _measure() -> Report:
    limits = {"builds": BUILDS, "disk": DISK, "image_bytes": IMAGE_BYTES, "max_percent": MAX_PERCENT}
    report = Report("engine_disk", limits)
    seconds, used, failed, waited = [], [], [], 0
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        small_engine(DISK, Path(directory), is_loop=True) as engine,
        cleaning(engine, max_percent=MAX_PERCENT) as program,
    ):
        for _ in range(BUILDS):
            began = time.monotonic()
            build = SmallBuild(engine, IMAGE_BYTES, push=True)
            reason = build.result()["reason"]
            seconds.append(time.monotonic() - began)
            failed += [reason] if reason != "ok" else []
            waited += any("Waiting until" in text for text in build.texts())
            disk = look_at(engine.disk)
            assert disk is not None
            used.append(100 * (disk.size - disk.free) / disk.size)
        report.results = {
            "failed": failed,
            "waited_for_a_cleaning": waited,
            "used_percent": percentiles(used),
            "seconds": percentiles(seconds),
            "images_kept": len(engine.names()),
            "images_removed": program.metrics()["rabbit2docker_engine_images_removed_total"],
            "freed_bytes": program.metrics()["rabbit2docker_engine_disk_freed_bytes_total"],
        }
    report.at_most("builds that failed", len(failed), 0)
    report.at_most("percent of the disk in use after a build", max(used), 90)
    report.at_least("images kept", report.results["images_kept"], 5)
    return report
