"""The program of a benchmark's build pod: the builder's own log and result around lines that cost nothing to make.

Run behind the builder's program, in the place of its last lines. Build arguments say what it does: LINES, EVERY
(seconds), AT (Unix time of the first line; unset: at once).
"""

import json
import os
import time

from rabbit2docker.consumer.builder.builder import Log, ResultFile

IMPORTED = "from rabbit2docker.consumer.builder.builder import Log, ResultFile\n"
"""Not needed in the pod, where the builder's program comes before."""


def build() -> None:
    """Write the lines and end well."""
    options = json.loads(os.environ["RABBIT2DOCKER_BUILD"])["build_args"]
    lines, every = int(options.get("LINES", "5")), float(options.get("EVERY", "0"))
    time.sleep(max(0.0, float(options.get("AT", "0")) - time.time()))
    log, began = Log(None), time.monotonic()
    for number in range(lines):
        log.write("building", f"line {number} of the build")
        # Against the clock, so that a rate is kept however long the lines take.
        time.sleep(max(0.0, began + (number + 1) * every - time.monotonic()))
    result = {"reason": "ok", "exit_code": 0, "lines": log.number, "digest": "sha256:" + "5e" * 32}
    ResultFile("/dev/termination-log").write(result)


if __name__ == "__main__":
    build()
