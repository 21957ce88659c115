"""The program of a build pod in tests: the builder's log and result, with commands from a file instead of repo2docker.

Appended to the builder's program in place of its last lines. The test writes the file, `<pod>.commands` in the directory
of the socket; the commands are those of the scripted builder for processes.
"""

import json
import os
import signal
import socket
import time

from rabbit2docker.consumer.builder.builder import Log, ResultFile

IMPORTED = "from rabbit2docker.consumer.builder.builder import Log, ResultFile\n"
"""Removed in the pod, where the builder's program precedes it."""


def obey() -> None:
    """Execute commands until one ends the pod."""
    directory = os.path.dirname(json.loads(os.environ["RABBIT2DOCKER_BUILD"])["docker_host"][7:])
    name = socket.gethostname()
    log, result = Log(None), ResultFile("/dev/termination-log")

    def end(reason: str, exit_code: int = 0, **more: object) -> None:
        result.write({"reason": reason, "exit_code": exit_code, "lines": log.number, **more})
        os._exit(exit_code)

    signal.signal(signal.SIGTERM, lambda number, frame: end("cancelled", 143))
    with open(os.path.join(directory, f"{name}.starts"), "a") as starts:
        starts.write("started\n")
    with open(os.path.join(directory, f"{name}.commands")) as commands:
        rest = ""
        while True:
            rest += commands.readline()
            if not rest.endswith("\n"):
                time.sleep(0.02)
                continue
            command, rest = json.loads(rest), ""
            for text in command.get("write", ()):
                log.write("building", text)
            if "end" in command:
                end(**command["end"])


if __name__ == "__main__":
    obey()
