"""Builds nothing. Build arguments say what it does: LINES, EVERY (seconds), FAIL (a step's exit code), SAY, STUBBORN."""

import json
import signal
import sys
import time


def tell(phase: str, message: str) -> None:
    print(json.dumps({"message": message, "phase": phase}), flush=True)


def main() -> None:
    arguments = sys.argv[1:]
    pairs = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--build-arg"]
    options = dict(pair.split("=", 1) for pair in pairs)
    if options.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("fetching", "Cloning into 'somewhere'...\n")
    for line in options.get("SAY", "").splitlines():
        tell("building", f"{line}\n")
    lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
    began = time.monotonic()
    for number in range(lines):
        tell("building", f"line {number} of the build\n")
        if every:
            # Against the clock, so that a rate is kept however long the lines take.
            time.sleep(max(0.0, began + (number + 1) * every - time.monotonic()))
    if code := options.get("FAIL"):
        tell(
            "building",
            f'ERROR: process "/bin/sh -c make it so" did not complete successfully: exit code: {code}\n',
        )
        sys.exit(1)


main()
