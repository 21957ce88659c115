"""A release: one version everywhere, metadata of package, image and chart, and the file for laptops."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator
from deploy import release, sbom
from packaging.specifiers import SpecifierSet

from rabbit2docker.settings import load_settings

CHECKOUT = release.CHECKOUT
PROJECT = release.project()
COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DPKG_STATUS = """
Package: git
Status: install ok installed
Architecture: amd64
Version: 1:2.39.5-0+deb12u2
Description: fast, scalable, distributed revision control system
 Git is popular.

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 3
"""
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()


def test_every_file_names_the_version_of_the_package() -> None:
    assert not release.stale(PROJECT["version"])
    assert release.stale("9.8.7") == list(release.PLACES)


def test_a_tag_is_released_only_with_its_version_and_a_section_of_the_changelog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(release.problems(f"v{PROJECT['version']}"))
    assert any("is not v" in problem for problem in release.problems("v9.8.7"))

    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("## Unreleased\n\n- Something.\n")
    monkeypatch.setattr(release, "CHANGELOG", str(changelog))
    assert list(release.problems(PROJECT["version"])) == [
        f"{changelog} has no section for {PROJECT['version']}."
    ]


def test_a_new_version_replaces_the_former_one_and_nothing_else() -> None:
    chart = yaml.safe_load(release.with_version("deploy/helm/rabbit2docker/Chart.yaml", "1.2.3-rc.1"))

    assert (chart["version"], chart["appVersion"], chart["apiVersion"]) == ("1.2.3-rc.1", "1.2.3-rc.1", "v2")


def test_the_package_names_each_python_that_it_allows() -> None:
    named = {found[1] for text in PROJECT["classifiers"] if (found := re.fullmatch(r".* :: (3\.\d+)", text))}

    assert named == {"3.11", "3.12", "3.13", "3.14"}
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(f"{version}.0" in allowed for version in named)
    assert "3.10.9" not in allowed
    assert all((CHECKOUT / name).is_file() for name in (PROJECT["readme"], *PROJECT["license-files"]))


def test_package_chart_and_image_name_the_same_home() -> None:
    chart = yaml.safe_load((CHECKOUT / "deploy/helm/rabbit2docker/Chart.yaml").read_text())

    assert chart["home"] == PROJECT["urls"]["Homepage"]
    assert chart["sources"] == [PROJECT["urls"]["Homepage"]]
    assert f"ARG SOURCE={PROJECT['urls']['Homepage']}\n" in DOCKERFILE
    assert chart["annotations"]["artifacthub.io/license"] == PROJECT["license"]
    assert (
        yaml.safe_load(chart["annotations"]["artifacthub.io/links"])[0]["url"]
        == PROJECT["urls"]["Documentation"]
    )


def test_the_image_has_its_origin_as_labels() -> None:
    given = release.labels()

    assert re.fullmatch("[0-9a-f]{40}", given["REVISION"])
    for name, label in (
        ("VERSION", "version"),
        ("REVISION", "revision"),
        ("CREATED", "created"),
        ("SOURCE", "source"),
    ):
        assert given[name]
        assert f'org.opencontainers.image.{label}="${name}"' in DOCKERFILE


@pytest.mark.parametrize("name", ["consumer", "hub"])
def test_the_services_for_laptops_have_valid_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))

    settings = load_settings()

    rabbitmq = SERVICES["rabbitmq"]["environment"]
    user = f"{rabbitmq['RABBITMQ_DEFAULT_USER']}:{rabbitmq['RABBITMQ_DEFAULT_PASS']}"
    assert settings.amqp.url.get_secret_value() == f"amqp://{user}@rabbitmq:5672/"
    assert settings.images.prefix == "localhost:5000/r2d-"
    port = settings.hub.bind if name == "hub" else settings.http.bind
    assert f"http://127.0.0.1:{(port or '').rpartition(':')[2]}/" in SERVICES[name]["healthcheck"]["test"][-1]


def test_laptops_open_ports_to_themselves_alone_and_keep_all_data() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)

    volumes = [volume for service in SERVICES.values() for volume in service["volumes"]]
    mounted = {re.sub(r"\$\{\w+:-([\w/.]+)\}", r"\1", volume).partition(":")[0] for volume in volumes}
    assert mounted == {*COMPOSE["volumes"], "/var/run/docker.sock"}


def test_laptops_wait_for_what_has_a_health_check() -> None:
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] == (
                "service_healthy" if "healthcheck" in SERVICES[name] else "service_started"
            )


def test_the_image_for_laptops_is_a_stage_that_other_builds_leave_out() -> None:
    build = SERVICES["consumer"]["build"]
    stages = re.findall(r"(?m)^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE)

    assert build["target"] in {name for _, name in stages}
    assert stages[-1] == ("runtime", "")
    extras = PROJECT["optional-dependencies"]
    assert set(build["args"]["EXTRAS"].split(",")) <= extras.keys()


def test_the_contents_of_an_image_are_a_valid_document_of_cyclonedx(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [
        {"name": "aio_pika", "version": "10.2.1", "license": "Apache-2.0"},
        {"name": "old", "version": "1", "license": None},
        {"name": "own-words", "version": "2", "license": "BSD, but only on Mondays"},
    ]
    inside = {
        "/var/lib/dpkg/status": DPKG_STATUS,
        "/etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian = 12"\n',
    }
    monkeypatch.setattr(
        sbom,
        "read",
        lambda image, *command: json.dumps(packages) if command[0] == sbom.PYTHON else inside[command[1]],
    )
    labels = {
        "org.opencontainers.image.version": "0.1.0",
        "org.opencontainers.image.revision": "abc",
    }
    monkeypatch.setattr(sbom, "labels_of", lambda image: labels)

    text = sbom.document("registry.example.org:5000/team/rabbit2docker:0.1.0")

    assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    assert {component["purl"] for component in found["components"]} == {
        "pkg:pypi/aio-pika@10.2.1",
        "pkg:pypi/old@1",
        "pkg:pypi/own-words@2",
        "pkg:deb/debian/git@1:2.39.5-0%2Bdeb12u2?arch=amd64&distro=debian-12",
    }
    subject = found["metadata"]["component"]
    assert (subject["type"], subject["name"], subject["version"]) == ("container", "rabbit2docker", "0.1.0")


def test_an_image_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sbom.main(["rabbit2docker:never-built"])
    assert ended.value.code == 2
    assert "rabbit2docker:never-built cannot be read" in capsys.readouterr().err
