"""How many viewers the operating system lets this process have."""

import resource
from typing import Final

import structlog

log = structlog.get_logger()

BESIDE: Final = 200
"""Files and connections other than viewers'."""


def allow_open_files(viewers: int) -> None:
    """Raise the limit of open files as far as it may be raised, and tell the operator if it is too low for so many.

    The limit that is usual by itself, 1024, is an old one for programs that cannot have more; the other one is meant.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = viewers + BESIDE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "not so many viewers can be served as hub.viewers allows: raise the limit of open files (`ulimit -n`)",
            viewers=viewers,
            open_files=allowed,
        )
