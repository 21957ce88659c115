"""The process's limit of open files, which bounds the number of viewers."""

import resource
from typing import Final

import structlog

log = structlog.get_logger()

RESERVED: Final = 200
"""Files and connections that are not viewers."""


def allow_open_files(viewers: int) -> None:
    """Raise the soft limit of open files so that `viewers` fit; warn if the hard limit is too low for them.

    The default soft limit of 1024 exists for programs that use select(); this one can use the hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = viewers + RESERVED
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "open file limit too low for hub.viewers; raise it (`ulimit -n`)",
            viewers=viewers,
            open_files=allowed,
        )
