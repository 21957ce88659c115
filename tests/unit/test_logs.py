"""The log of a program that uses the library."""

import logging
import subprocess
import sys
from textwrap import dedent

import pytest
import structlog

from rabbit2docker.logs import LIBRARY, get_logger
from tests.support.ports import free_port

OUTAGE = """
import asyncio, logging
from rabbit2docker.client import BuildEvents
from rabbit2docker.errors import BrokerUnavailable

{configuration}

async def main():
    try:
        async with BuildEvents("amqp://guest:guest@127.0.0.1:{port}/", wait_seconds=1):
            raise AssertionError("nothing listens there")
    except BrokerUnavailable:
        pass

asyncio.run(main())
"""


def run(configuration: str) -> subprocess.CompletedProcess[str]:
    """Run a hub's own program against a RabbitMQ that is away."""
    program = OUTAGE.format(configuration=dedent(configuration), port=free_port())
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("configuration", ["", "logging.basicConfig(level=logging.INFO)"])
def test_the_client_library_logs_an_outage_and_leaves_stdout_to_the_program(configuration: str) -> None:
    done = run(configuration)
    assert done.stdout == ""
    assert "RabbitMQ unavailable, reconnecting (" in done.stderr
    assert "is not reachable" in done.stderr


def test_a_program_that_configures_structlog_gets_the_librarys_entries_there() -> None:
    done = run("""
        import structlog, sys
        structlog.configure(processors=[structlog.processors.JSONRenderer()],
                            logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    """)
    assert done.stdout == ""
    assert '"event": "RabbitMQ unavailable, reconnecting"' in done.stderr


def test_a_traceback_on_a_terminal_shows_no_values_of_variables() -> None:
    program = """
        from rabbit2docker.logs import configure
        from rabbit2docker.settings import LogSettings
        import structlog
        configure(LogSettings(format="console"))
        def connect(token):
            raise OSError("no answer")
        try:
            connect("-".join(["secret", "token"]))
        except OSError:
            structlog.get_logger().exception("connecting failed")
    """
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True)
    assert "OSError: no answer" in done.stderr
    assert "secret-token" not in done.stderr


class TestGetLogger:
    @pytest.fixture(autouse=True)
    def unconfigured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(structlog, "is_configured", lambda: False)

    def test_details_follow_the_message(self, caplog: pytest.LogCaptureFixture) -> None:
        get_logger().warning("connection lost", reason="100% away", role="events")
        [record] = caplog.records
        assert (record.name, record.levelname) == (LIBRARY, "WARNING")
        assert record.getMessage() == "connection lost (reason='100% away', role='events')"

    def test_an_error_has_its_traceback(self, caplog: pytest.LogCaptureFixture) -> None:
        error = ValueError("a defect")
        get_logger().error("task failed", exc_info=error)
        [record] = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[1] is error

    def test_entries_below_the_programs_level_are_dropped(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, logger=LIBRARY)
        get_logger().info("connected")
        assert not caplog.records
