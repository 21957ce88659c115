"""`python -m deploy.release`: one version for package, image and chart, taken from pyproject.toml.

Without options it writes the version into every other file that names it. `--check` only compares, `--tag v0.1.0` also
looks whether a release of this tag is ready, and `--image NAME` builds the image with its origin as labels.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).parents[1]
CHANGELOG: Final = "CHANGELOG.md"
_VERSION: Final = r"\d+\.\d+\.\d+(?:-?(?:a|b|rc)\.?\d+)?"
PLACES: Final = {
    "deploy/helm/rabbit2docker/Chart.yaml": r"(?m)^(?:version|appVersion): ({version})$",
    "deploy/helm/rabbit2docker/values.yaml": r"name: rabbit2docker, version: ({version}),",
    "docs/how-to/kubernetes.md": r"version: ({version})\n",
    "README.md": r"registry\.example\.org/rabbit2docker:({version})",
    "Dockerfile": r"(?:registry\.example\.org/rabbit2docker:|ARG VERSION=)({version})",
    "CONTRIBUTING.md": r"(?:registry\.example\.org/rabbit2docker:|helm push rabbit2docker-|TAG=v)({version})",
    "compose.yaml": r"image: rabbit2docker:({version})-local",
}
"""Files that name the version, and how."""


def project() -> dict[str, Any]:
    """Return the metadata of the package."""
    found: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return found


def with_version(name: str, version: str) -> str:
    """Return the text of a file with the version in each of its places; raises a ValueError if it has none."""
    pattern = PLACES[name].replace("{version}", _VERSION)
    text, count = re.subn(
        pattern,
        lambda match: match[0].replace(match[1], version),
        (CHECKOUT / name).read_text(),
    )
    if not count:
        raise ValueError(f"{name} names no version")
    return text


def stale(version: str) -> list[str]:
    """Return the files that name another version."""
    return [name for name in PLACES if with_version(name, version) != (CHECKOUT / name).read_text()]


def problems(tag: str) -> Iterator[str]:
    """Yield everything that keeps a tag from being a release."""
    version = project()["version"]
    if tag.removeprefix("v") != version:
        yield f"The tag {tag} is not v{version}, the version in pyproject.toml."
    for name in stale(version):
        yield f"{name} names another version: run python -m deploy.release."
    section = re.search(
        rf"(?ms)^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", (CHECKOUT / CHANGELOG).read_text()
    )
    if section is None or "- " not in section[1]:
        yield f"{CHANGELOG} has no section for {version}."


def labels() -> dict[str, str]:
    """Return the arguments of the image's build that become labels with its origin."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return {
        "VERSION": project()["version"],
        "REVISION": commit.stdout.strip(),
        "CREATED": datetime.now(UTC).isoformat(timespec="seconds"),
        "SOURCE": project()["urls"]["Homepage"],
    }


def build_image(name: str) -> int:
    """Build the image under a name and the version; return the exit code of docker."""
    arguments = [f"--build-arg={key}={value}" for key, value in labels().items()]
    tag = f"{name}:{project()['version']}"
    return subprocess.run(
        ["docker", "build", "--tag", tag, *arguments, str(CHECKOUT)], check=False
    ).returncode


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.release", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a file names another version"
    )
    parser.add_argument("--tag", help="fail unless everything is ready for this tag")
    parser.add_argument("--image", metavar="NAME", help="build the image under this name")
    options = parser.parse_args()
    version = project()["version"]
    if options.image:
        return build_image(options.image)
    found = list(problems(options.tag)) if options.tag else []
    if options.check:
        found = [f"{name} names another version than {version}" for name in stale(version)]
    for problem in found:
        print(problem, file=sys.stderr)  # noqa: T201
    if not (options.check or options.tag):
        for name in stale(version):
            (CHECKOUT / name).write_text(with_version(name, version))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
