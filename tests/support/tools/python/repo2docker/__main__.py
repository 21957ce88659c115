"""A fake repo2docker that builds nothing.

Build arguments control it: LINES, EVERY (seconds), FAIL (exit code of a step), SAY (extra lines), STUBBORN (ignores
SIGTERM), HOLD (a file: the build does not end before it exists).
"""

import json
import signal
import sys
import time
from pathlib import Path


def log(phase: str, message: str) -> None:
    print(json.dumps({"message": message, "phase": phase}), flush=True)


def main() -> None:
    arguments = sys.argv[1:]
    pairs = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--build-arg"]
    options = dict(pair.split("=", 1) for pair in pairs)
    if options.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log("fetching", "Cloning into 'somewhere'...\n")
    for line in options.get("SAY", "").splitlines():
        log("building", f"{line}\n")
    lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
    started = time.monotonic()
    for number in range(lines):
        log("building", f"line {number} of the build\n")
        if every:
            # Against the clock, to keep the rate whatever time the lines take.
            time.sleep(max(0.0, started + (number + 1) * every - time.monotonic()))
    while "HOLD" in options and not Path(options["HOLD"]).exists():
        time.sleep(0.05)
    if code := options.get("FAIL"):
        log(
            "building",
            f'ERROR: process "/bin/sh -c make it so" did not complete successfully: exit code: {code}\n',
        )
        sys.exit(1)


main()
