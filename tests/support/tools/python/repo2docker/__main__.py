"""Builds nothing. Build arguments control it:

LINES and EVERY (seconds), SAY (text to print first), HOLD (a file: do not end before it exists),
FAIL (exit code of a step), STUBBORN (ignore SIGTERM).
"""

import json
import signal
import sys
import time
from pathlib import Path


def report(phase: str, message: str) -> None:
    print(json.dumps({"message": message, "phase": phase}), flush=True)


def main() -> None:
    arguments = sys.argv[1:]
    pairs = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--build-arg"]
    options = dict(pair.split("=", 1) for pair in pairs)
    if options.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report("fetching", "Cloning into 'somewhere'...\n")
    for line in options.get("SAY", "").splitlines():
        report("building", f"{line}\n")
    lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
    began = time.monotonic()
    for number in range(lines):
        report("building", f"line {number} of the build\n")
        if every:
            # Relative to the start, so that the rate is kept however long the lines take.
            time.sleep(max(0.0, began + (number + 1) * every - time.monotonic()))
    while "HOLD" in options and not Path(options["HOLD"]).exists():
        time.sleep(0.05)
    if code := options.get("FAIL"):
        report(
            "building",
            f'ERROR: process "/bin/sh -c make it so" did not complete successfully: exit code: {code}\n',
        )
        sys.exit(1)


main()
