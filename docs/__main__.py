"""`python -m docs OUTPUT`: build the pages into a directory, with warnings as errors, and check every link."""

import argparse
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

CHECKOUT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "schemas/README.md")
"""Pages that are read in the repository, where Sphinx does not see their links."""
_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
CONNECT_SECONDS: Final = 5.0


def links_of(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links, code left out."""
    yield from _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))


def broken_links() -> list[str]:
    """Return the relative links of the pages outside of docs/ that lead to no file."""
    broken: list[str] = []
    for name in OUTSIDE:
        page = CHECKOUT / name
        broken += [
            f"{name}: {target}"
            for target in links_of(page)
            if not urlsplit(target).scheme and not (page.parent / target.partition("#")[0]).exists()
        ]
    return broken


def reaches_the_internet() -> bool:
    """Return whether a page of repo2docker's documentation could be fetched from here."""
    try:
        with socket.create_connection(("repo2docker.readthedocs.io", 443), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def sphinx(builder: str, output: Path) -> int:
    """Run Sphinx with warnings as errors and return its exit code."""
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", builder]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, CHECKOUT / "docs", output], check=False
    ).returncode


def main() -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("output", type=Path, help="directory for the HTML pages")
    output = parser.parse_args().output
    failed = sphinx("html", output)
    for line in broken_links():
        print(f"Broken link in {line}")  # noqa: T201
        failed = 1
    if reaches_the_internet():
        failed = sphinx("linkcheck", output / ".linkcheck") or failed
    else:
        print("Links to other hosts were not checked: the internet is out of reach.")  # noqa: T201
    if not failed:
        print(f"The pages are in {output}/index.html.")  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main())
