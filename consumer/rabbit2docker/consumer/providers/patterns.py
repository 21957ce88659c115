"""The operator's regular expressions for specs, matched in bounded time.

They are Python's, as in BinderHub, which an unlucky pattern and a hostile spec can keep busy for years. So they run in
the module `regex`, which has the same syntax and gives up after a time.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import regex
import structlog

from rabbit2docker.errors import ConfigurationError, RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

log = structlog.get_logger()

MATCH_SECONDS: Final = 0.2
"""Time for all patterns of a setting together, on one spec."""


class SpecPatterns:
    """The patterns of one setting, by provider."""

    def __init__(self, setting: str, patterns: Mapping[str, Sequence[str]]) -> None:
        """Compile the patterns. Raises ConfigurationError that names the `setting` and the pattern."""
        self._setting = setting
        self._patterns = {
            prefix: [compile_pattern(setting, text) for text in texts] for prefix, texts in patterns.items()
        }

    def __bool__(self) -> bool:
        """Return whether any provider has patterns."""
        return any(self._patterns.values())

    def has(self, prefix: str) -> bool:
        """Return whether this provider has patterns."""
        return bool(self._patterns.get(prefix))

    def match(self, texts: Iterable[tuple[str, str]]) -> bool:
        """Return whether a pattern matches the beginning of one of these pairs of provider and spec.

        Raises RequestRejected(NOT_ALLOWED) where that is not known in time.
        """
        ends_at = time.monotonic() + MATCH_SECONDS
        for prefix, text in texts:
            for pattern in self._patterns.get(prefix, ()):
                if self._match(pattern, text, ends_at - time.monotonic()):
                    return True
        return False

    def _match(self, pattern: "regex.Pattern[str]", text: str, seconds: float) -> bool:
        try:
            return pattern.match(text, timeout=max(seconds, 0.001)) is not None
        except TimeoutError:
            log.warning("pattern takes too long", setting=self._setting, pattern=pattern.pattern)
            raise RequestRejected(
                RejectReason.NOT_ALLOWED,
                f"The pattern {pattern.pattern!r} in {self._setting} takes too long for this spec, so it is not known "
                "whether the repository is allowed. The operator must simplify the pattern, such as by removing "
                "repetitions inside of repetitions.",
            ) from None


@lru_cache(maxsize=1024)
def compile_pattern(setting: str, text: str) -> "regex.Pattern[str]":
    """Return a compiled pattern that ignores case. Raises ConfigurationError."""
    try:
        return regex.compile(text, regex.IGNORECASE | regex.VERSION0)
    except regex.error as error:
        raise ConfigurationError(
            f"{setting} holds {text!r}, which is not a regular expression: {error}."
        ) from error
