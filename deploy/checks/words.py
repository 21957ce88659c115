"""`python -m deploy.checks.words`: keep the project's language plain.

Looks at every tracked text file for words of an earlier dialect that have a field's term today, at docstrings that
open with a question word instead of naming the thing, and at files that have grown too long. Prints one line per
finding, `path:line: text`, and exits with 1 if there is any.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
SUFFIXES: Final = {
    ".py",
    ".md",
    ".js",
    ".html",
    ".css",
    ".toml",
    ".yaml",
    ".yml",
    ".tpl",
    ".txt",
    ".mako",
    ".sh",
}
GENERATED: Final = ("schemas/rabbit2docker_schemas/json/", "docs/reference/generated/")
HERE: Final = "deploy/checks/words.py"
MAX_LINES: Final = 400
LONG_FILES: Final = {
    "consumer/rabbit2docker/consumer/builder/builder.py",
    "deploy/helm/rabbit2docker/README.md",
    "deploy/helm/rabbit2docker/values.yaml",
    "deploy/helm/values.schema.yaml",
}
"""Files that may exceed MAX_LINES: the builder is one file on purpose, and Helm knows one file of values."""

PERSONS: Final = ("who", "whom", "nobody", "somebody", "anybody", "everybody")
MAX_PERSONS: Final = 0.5
"""Of 1,000 words in docstrings and comments. A sentence about a role reads better than one about a person."""

WORDS: Final = {
    "wish": "request",
    "whoever": "name the role: the client, the operator, the requester",
    "somebody": "name the role, or use the passive voice",
    "nobody": "no one, or name the role",
    "tell": "report, publish, return, show",
    "tells": "reports, publishes, returns, shows",
    "told": "reported, published, shown",
    "telling": "stream, report",
    "for ever": "forever, indefinitely",
    "meanwhile": "in the meantime",
}
"""Old word → what the field says."""

NAMES: Final = {
    "Fulfilling": "Admission",
    "Announcer": "EventPublisher",
    "Marks": "AttemptStatus",
    "Hopeless": "PendingDeadline",
    "Crew": "FollowerSupervisor",
    "RetryWanted": "Retry",
    "InRegistry": "ImageCheck",
    "Leftovers": "GarbageCollector",
    "Provisions": "BuildConfigObjects",
    "RefusedForNow": "ApiTemporarilyUnavailable",
    "HubQueue": "EventConsumer",
    "QueueSource": "RequestConsumer",
    "Feeder": "Ingester",
    "askForBuild": "createBuild",
    "followBuild": "streamBuildEvents",
    "buildAgain": "rebuild",
    "mark_broken": "request_reconnect",
    "kept_up": "connected",
    "set_credit": "set_prefetch",
    "touched_at": "last_event_at",
}
"""Old name in code → today's."""

_WORD: Final = re.compile(
    r"(?<![A-Za-z])(?:" + "|".join(re.escape(word) for word in WORDS) + r")(?:es|ed|ing)?(?![A-Za-z])",
    re.IGNORECASE,
)
_NAME: Final = re.compile(r"\b(?:" + "|".join(NAMES) + r")\b")
_OPENING: Final = re.compile(r"(?:Pure: )?(?:Who|Whoever|What|Whatever|Whether|How|Where|Which|Why|When)\b")


def tracked_files() -> list[str]:
    """Return the paths of all tracked text files, relative to the checkout."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        name
        for name in listed
        if Path(name).suffix in SUFFIXES and name != HERE and not name.startswith(GENERATED)
    ]


def words_in(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and complaint for every old word or name in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in _WORD.finditer(line):
            word = match[0].lower()
            term = WORDS.get(word) or WORDS.get(re.sub("(es|ed|ing)$", "", word), "another word")
            yield number, f"{match[0]!r}: say {term}"
        for match in _NAME.finditer(line):
            yield number, f"{match[0]} is called {NAMES[match[0]]}"


def openings_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and complaint for every docstring that opens with a question word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and _OPENING.match(text):
                yield (
                    getattr(node, "lineno", 1),
                    f"a docstring opens with {text.split()[0]!r}: name the thing",
                )


def complaints_about(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and complaint for everything that is wrong with one file."""
    yield from words_in(text)
    if name.endswith(".py"):
        yield from openings_in(text)
    length = text.count("\n")
    if (
        name.startswith(("consumer/", "schemas/", "deploy/"))
        and length > MAX_LINES
        and name not in LONG_FILES
    ):
        yield MAX_LINES, f"{length} lines: split it at {MAX_LINES}"


def persons_per_thousand(sources: Iterable[str]) -> float:
    """Return how often docstrings and comments speak of unnamed persons, per 1,000 words."""
    words = [
        word.lower()
        for source in sources
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
        or (token.type == tokenize.STRING and token.string.startswith('"""'))
        for word in re.findall("[A-Za-z']+", token.string)
    ]
    return 1000 * sum(word in PERSONS for word in words) / max(1, len(words))


def main() -> int:
    """Check all tracked files."""
    found, sources = 0, []
    for name in tracked_files():
        text = (CHECKOUT / name).read_text(encoding="utf-8")
        for number, complaint in complaints_about(name, text):
            print(f"{name}:{number}: {complaint}")  # noqa: T201
            found += 1
        if name.startswith(("consumer/", "schemas/")) and name.endswith(".py"):
            sources.append(text)
    if (share := persons_per_thousand(sources)) > MAX_PERSONS:
        print(f"consumer, schemas: {share:.2f} of 1,000 words are one of {PERSONS}, more than {MAX_PERSONS}")  # noqa: T201
        found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
