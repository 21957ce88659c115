"""repo2docker's own content providers fetch the version that was resolved, within limits, or nothing."""

import asyncio
import socket
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from rabbit2docker.consumer.builder import builder
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.consumer.providers.specs import pin
from rabbit2docker.settings import ProviderSettings
from tests.support.dataset_hosts import ACTIVITY, DatasetHosts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from repo2docker import contentproviders  # type: ignore[import-untyped]

DATAVERSE, ZENODO = "10.7910/DVN/TJCLKP", "10.5281/zenodo.3242073"


@pytest.fixture
async def hosts() -> AsyncIterator[DatasetHosts]:
    hosts = DatasetHosts()
    await hosts.server.start_server()
    hosts.dois = {
        ZENODO: f"{hosts.url}/record/3242073",
        DATAVERSE: f"{hosts.url}/citation?persistentId=doi:{DATAVERSE}",
    }
    yield hosts
    await hosts.server.close()


async def resolved(hosts: DatasetHosts, provider: str, path: str = "") -> Repository:
    ckan = quote(f"{hosts.url}/dataset/sample-dataset{path}", safe="")
    spec = {"zenodo": ZENODO, "dataverse": DATAVERSE, "ckan": ckan}[provider]
    settings = ProviderSettings.model_validate(hosts.settings)
    async with open_session(settings) as session:
        return await Providers(settings, session).get(provider).resolve(spec)


async def fetched(repository: Repository, directory: Path, **spec: Any) -> dict[str, bytes]:
    """Fetch with repo2docker's content provider, as its configuration in a build has it."""
    given = {
        "repo_url": repository.repo_url,
        "ref": repository.resolved_ref,
        "allow_private_addresses": True,
        **spec,
    }
    base = getattr(contentproviders, repository.content_provider)

    def run() -> None:
        provider = builder.pinned_provider(base, given)()
        found = provider.detect(repository.repo_url, ref=repository.resolved_ref)
        for _ in provider.fetch(found, str(directory), yield_output=True):
            pass

    await asyncio.to_thread(run)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("provider", ["zenodo", "dataverse", "ckan"])
async def test_the_resolved_version_is_fetched(hosts: DatasetHosts, provider: str, tmp_path: Path) -> None:
    repository = await resolved(hosts, provider)
    hosts.requests.clear()
    assert await fetched(repository, tmp_path) == hosts.files
    assert not any("api/handles" in path for path in hosts.requests), "DOIs are not resolved once more"


async def test_a_newer_zenodo_record_is_not_built_under_the_tag_of_the_older(
    hosts: DatasetHosts, tmp_path: Path
) -> None:
    repository = await resolved(hosts, "zenodo")
    hosts.versions["zenodo"] = (9999999, 0)
    hosts.requests.clear()
    await fetched(repository, tmp_path)
    assert any(path.startswith("/api/records/3242074") for path in hosts.requests)
    assert not any("9999999" in path or "3242073" in path for path in hosts.requests)


@pytest.mark.parametrize("provider", ["dataverse", "ckan"])
async def test_a_dataset_that_has_changed_is_not_built_under_the_old_tag(
    hosts: DatasetHosts, provider: str, tmp_path: Path
) -> None:
    repository = await resolved(hosts, provider)
    hosts.versions["dataverse"] = (5, 0)
    hosts.modified = "2026-01-01T00:00:00.000000"
    with pytest.raises(
        builder.DatasetProblem, match=r"^ref_not_found: The dataset has changed .*Build again"
    ):
        await fetched(repository, tmp_path)


async def test_a_change_during_the_download_is_seen(hosts: DatasetHosts, tmp_path: Path) -> None:
    repository = await resolved(hosts, "ckan")

    def change() -> web.Response:
        hosts.modified = "2026-01-01T00:00:00.000000"
        return web.Response(body=b"new")

    hosts.always = {"/content": change}
    with pytest.raises(builder.DatasetProblem, match=r"^ref_not_found: The dataset has changed"):
        await fetched(repository, tmp_path)


async def test_an_activity_is_fetched_whatever_came_after_it(hosts: DatasetHosts, tmp_path: Path) -> None:
    repository = await resolved(hosts, "ckan", f"/history/{ACTIVITY}")
    hosts.modified = "2026-01-01T00:00:00.000000"
    assert await fetched(repository, tmp_path) == hosts.files


async def test_a_download_beyond_the_limit_ends_whatever_the_host_said(
    hosts: DatasetHosts, tmp_path: Path
) -> None:
    hosts.files = {"data.bin": b"x" * 50_000}
    hosts.size = 1
    repository = await resolved(hosts, "ckan")
    with pytest.raises(builder.DatasetProblem, match=r"^repository_too_large: .*larger than 19\.53 KiB"):
        await fetched(repository, tmp_path, max_dataset_bytes=20_000)


async def test_an_archive_is_not_unpacked_beyond_the_limit(hosts: DatasetHosts, tmp_path: Path) -> None:
    hosts.files = {"inside.bin": b"0" * 500_000}
    hosts.files = {"data.zip": hosts.zipped()}
    repository = await resolved(hosts, "zenodo")
    with pytest.raises(builder.DatasetProblem, match=r"^repository_too_large"):
        await fetched(repository, tmp_path, max_dataset_bytes=100_000)


@pytest.mark.parametrize("how", ["file", "redirect"])
async def test_a_file_inside_the_network_is_not_fetched(
    hosts: DatasetHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The dataset's own host counts as public, as if it were one on the web."""
    repository = await resolved(hosts, "ckan")
    inside = "http://metadata.example.org:1/latest"
    if how == "file":
        hosts.resource_url = inside
    else:
        hosts.always = {"/content": lambda: web.Response(status=302, headers={"Location": inside})}
    addresses = {"metadata.example.org": "169.254.169.254"}
    real, is_public = socket.getaddrinfo, builder.is_public

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return real(addresses.get(host, host), port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(builder, "is_public", lambda address: address.is_loopback or is_public(address))
    with pytest.raises(builder.DatasetProblem, match=r"^unsafe_repository: .*at 169\.254\.169\.254"):
        await fetched(repository, tmp_path, allow_private_addresses=False)
    assert socket.getaddrinfo is look_up, "nothing stays replaced"


async def test_a_site_that_repo2docker_does_not_know_is_said(tmp_path: Path) -> None:
    repository = pin("hydroshare", "0a" * 16, f"{'0a' * 16}.v1", hosts={})
    given = {"repo_url": "https://example.org/x", "ref": repository.resolved_ref}
    provider = builder.pinned_provider(contentproviders.Hydroshare, given)()
    with pytest.raises(builder.DatasetProblem, match="is not a site that repo2docker knows"):
        provider.detect("https://example.org/x")


@pytest.mark.parametrize(
    ("provider", "spec", "ref"),
    [
        ("zenodo", "10.5281/zenodo.3242073", "3242074"),
        ("zenodo", "10.5072/zenodo.7", "7"),
        ("zenodo", "10.22002/D1.1235", "1235"),
        ("figshare", "10.6084/m9.figshare.9782777", "9782777.v3"),
        ("figshare", "10.25384/SAGE.7.v2", "7.v2"),
    ],
)
def test_repo2docker_reads_the_version_from_the_address_without_a_request(
    provider: str, spec: str, ref: str
) -> None:
    repository = pin(provider, spec, ref, hosts={})
    base = getattr(contentproviders, repository.content_provider)
    given = {"repo_url": repository.repo_url, "ref": ref}
    reader = builder.pinned_provider(base, given)()
    assert reader.detect(repository.repo_url)
    assert reader.content_id == ref
    with pytest.raises(builder.DatasetProblem, match=r"^ref_not_found"):
        builder.pinned_provider(base, {**given, "ref": "1"})().detect(repository.repo_url)
