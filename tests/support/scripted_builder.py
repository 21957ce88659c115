"""A builder that obeys commands: one JSON object per line from the named pipe of its attempt.

    {"write": ["text", …], "phase": "building"}   write numbered lines
    {"raw": "text"}                               write to the log verbatim
    {"stubborn": true}                            ignore SIGTERM
    {"end": {"reason": "ok", …}}                  write the result and end

The pipes are in the directory SCRIPTED_BUILDER_DIR; each start appends a process id to `<attempt>.starts` there.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from rabbit2docker.consumer.builder.builder import Log, ResultFile


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--spec", "--log", "--result"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    name, directory = Path(arguments.spec).parent.name, Path(os.environ["SCRIPTED_BUILDER_DIR"])
    log, result = Log(arguments.log), ResultFile(arguments.result)

    def end(reason: str, exit_code: int, **more: object) -> None:
        result.write({"reason": reason, "exit_code": exit_code, "lines": log.number, **more})
        sys.exit(exit_code)

    def on_term(number: int, frame: FrameType | None) -> None:
        end("cancelled", 143)

    signal.signal(signal.SIGTERM, on_term)
    with (directory / f"{name}.starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    # Opened without waiting for a writer: if the test is over already, there is none, and this process ends.
    pipe = os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)
    with open(pipe) as commands:
        for line in commands:
            command = json.loads(line)
            for text in command.get("write", ()):
                log.write(command.get("phase", "building"), text)
            if "raw" in command:
                os.write(log.fd, command["raw"].encode())
            if command.get("stubborn"):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if "end" in command:
                end(**{"exit_code": 0, **command["end"]})


if __name__ == "__main__":
    main()
