"""A wall clock for one process that can be set while it runs, by libfaketime; its other clocks stay right."""

from contextlib import suppress
from pathlib import Path

from deploy.dev.machine import Unable, need_packages

_PLACES = ("lib/*/faketime/libfaketime.so.1", "lib/faketime/libfaketime.so.1", "local/lib/faketime/*.so.1")


def find_library() -> Path | None:
    """Return libfaketime's path, after installing its Debian package where that is possible."""
    with suppress(Unable):
        need_packages({"faketime": "faketime"}, "Setting the clock of one process")
    return _installed()


def _installed() -> Path | None:
    return next((path for place in _PLACES for path in Path("/usr").glob(place)), None)


def clock_variables(library: Path, clock: Path) -> dict[str, str]:
    """Return the environment of a process whose wall clock is off by what `clock` says, such as `-3600`."""
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
