"""`python -m deploy.sbom IMAGE`: the contents of an image of rabbit2docker as CycloneDX JSON, read from the image itself."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

PYTHON: Final = "/opt/rabbit2docker/bin/python"
LABEL: Final = "org.opencontainers.image."
# Run in the image, so that it is the installed Python that says what it finds.
_DISTRIBUTIONS: Final = """
import importlib.metadata, json
print(json.dumps([
    {"name": found.name, "version": found.version, "license": found.metadata.get("License-Expression")}
    for found in importlib.metadata.distributions()
]))
"""


def docker(*arguments: str) -> str:
    """Return what a command of Docker's client prints. Raises subprocess.CalledProcessError."""
    return subprocess.run(["docker", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def read(image: str, program: str, *arguments: str) -> str:
    """Return what a program prints in the image, without network. Raises subprocess.CalledProcessError."""
    return docker("run", "--rm", "--network=none", f"--entrypoint={program}", image, *arguments)


def labels_of(image: str) -> dict[str, str]:
    """Return the labels of the image. Raises subprocess.CalledProcessError."""
    return json.loads(docker("image", "inspect", "--format={{json .Config.Labels}}", image)) or {}


def python_components(distributions: Iterable[Mapping[str, Any]]) -> Iterable[Component]:
    """Yield the Python packages of a list with name, version and SPDX license, if it is known."""
    for found in distributions:
        name = found["name"].lower().replace("_", "-")
        license_ = found.get("license")
        yield Component(
            name=name,
            version=found["version"],
            licenses=[LicenseFactory().make_from_string(license_)] if license_ else None,
            purl=PackageURL("pypi", name=name, version=found["version"]),
        )


def debian_components(status: str, os_release: str) -> Iterable[Component]:
    """Yield the installed packages of dpkg's database; `os_release` names the distribution."""
    release = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    system = {name: value.strip('"') for name, value in release.items()}
    for paragraph in status.strip().split("\n\n"):
        package = HeaderParser().parsestr(paragraph)
        if not str(package["Status"]).endswith(" installed"):
            continue
        qualifiers = {
            "arch": package["Architecture"],
            "distro": f"{system['ID']}-{system.get('VERSION_ID', 'unstable')}",
        }
        yield Component(
            name=package["Package"],
            version=package["Version"],
            purl=PackageURL("deb", system["ID"], package["Package"], package["Version"], qualifiers),
        )


def document(image: str) -> str:
    """Return the contents of an image with Debian's and Python's packages. Raises subprocess.CalledProcessError."""
    labels = labels_of(image)
    subject = Component(
        type=ComponentType.CONTAINER,
        name=image.rpartition("/")[2].partition(":")[0],
        version=labels.get(f"{LABEL}version"),
        properties=[Property(name=name, value=value) for name, value in labels.items()],
    )
    found = [
        *python_components(json.loads(read(image, PYTHON, "-c", _DISTRIBUTIONS))),
        *debian_components(read(image, "cat", "/var/lib/dpkg/status"), read(image, "cat", "/etc/os-release")),
    ]
    bom = Bom(components=found)
    bom.metadata.component = subject
    bom.register_dependency(subject, found)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.sbom", description=__doc__)
    parser.add_argument("image", metavar="IMAGE", help="an image that the local Docker engine has")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")
    options = parser.parse_args(arguments)
    try:
        text = document(options.image)
    except subprocess.CalledProcessError as error:
        parser.error(
            f"{options.image} cannot be read (docker exited with {error.returncode}). Build it with make image."
        )
    if options.output:
        options.output.write_text(f"{text}\n")
    else:
        print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
