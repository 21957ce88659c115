"""The log: of a service, JSON or readable lines on a terminal; in a program that uses the library, that program's own.

Modules that the client library imports take their logger from `get_logger`. Structlog's own default prints to stdout,
which belongs to the program.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from rabbit2docker.settings import LogSettings


def configure(settings: LogSettings) -> None:
    """Configure structlog to write to stderr, and route the standard library's loggers (aio-pika, aiohttp) through it."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Its default for exceptions prints local variables, and so tokens and passwords.
    readable = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = readable if console else structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([] if console else [structlog.processors.format_exc_info]),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Alembic reports its plugins at import, and at each start that there was nothing to do.
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


LIBRARY: Final = "rabbit2docker"
"""Name of the standard library's logger in programs that do not configure structlog."""


class _Logger:
    """A logger of structlog if the program has configured that, else of the standard library; decided at each entry."""

    def __getattr__(self, name: str) -> Any:
        return getattr(structlog.get_logger() if structlog.is_configured() else _standard_logger(), name)


def get_logger() -> Any:
    """Return a logger for modules that also run inside other programs."""
    return _Logger()


def _standard_logger() -> Any:
    return structlog.wrap_logger(
        logging.getLogger(LIBRARY),
        processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, _as_text],
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _as_text(_: Any, __: str, entry: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Return the message with its details behind it: `connection lost (reason='…')`."""
    options = {name: entry.pop(name) for name in ("exc_info", "stack_info") if name in entry}
    message = str(entry.pop("event", ""))
    details = ", ".join(f"{name}={value!r}" for name, value in entry.items())
    return (f"{message} ({details})" if details else message,), options
