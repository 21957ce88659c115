"""Specs of datasets resolve to one version, with the address of that version, or are rejected with the reason."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.http import open_session
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason
from tests.support.dataset_hosts import ACTIVITY, GIB, RESOURCE, DatasetHosts

ZENODO, FIGSHARE, DATAVERSE = "10.5281/zenodo.3242074", "10.6084/m9.figshare.9782777", "10.7910/DVN/TJCLKP"
MODIFIED = "1571034992"
ALL = ("zenodo", "figshare", "dataverse", "hydroshare", "ckan")


@pytest.fixture
async def hosts() -> AsyncIterator[DatasetHosts]:
    hosts = DatasetHosts()
    await hosts.server.start_server()
    page = f"{hosts.url}/citation?persistentId=doi:"
    hosts.dois = {
        ZENODO: f"{hosts.url}/record/3242074",
        "10.5281/zenodo.3242073": f"{hosts.url}/record/3242073",
        DATAVERSE: f"{page}{DATAVERSE}",
        f"{DATAVERSE}/3YRRYJ": f"{page}{DATAVERSE}/3YRRYJ",
        "10.1000/other": "https://example.org/paper",
    }
    yield hosts
    await hosts.server.close()


def spec_of(hosts: DatasetHosts, provider: str) -> str:
    ckan = quote(f"{hosts.url}/dataset/sample-dataset", safe="")
    return {
        "zenodo": ZENODO,
        "figshare": FIGSHARE,
        "dataverse": DATAVERSE,
        "hydroshare": RESOURCE,
        "ckan": ckan,
    }[provider]


async def resolved(hosts: DatasetHosts, provider: str, spec: str, **changes: Any) -> Repository:
    settings = ProviderSettings.model_validate({**hosts.settings, **changes})
    async with open_session(settings) as session:
        return await Providers(settings, session).get(provider).resolve(spec)


@pytest.mark.parametrize(
    ("provider", "spec", "ref", "path"),
    [
        ("zenodo", ZENODO, "3242074", "/records/3242074"),
        ("zenodo", "10.5281/zenodo.3242073", "3242074", "/records/3242074"),
        ("zenodo", "https%3A%2F%2Fdoi.org%2F10.5281%2Fzenodo.3242074", "3242074", "/records/3242074"),
        ("dataverse", DATAVERSE, "3035124.v4.0", f"/citation?persistentId=doi:{DATAVERSE}"),
        ("dataverse", f"{DATAVERSE}/3YRRYJ", "3035124.v4.0", f"/citation?persistentId=doi:{DATAVERSE}"),
        ("hydroshare", f"10.4211/hs.{RESOURCE}", f"{RESOURCE}.v{MODIFIED}", f"/resource/{RESOURCE}"),
        (
            "hydroshare",
            f"https%3A%2F%2Fx%2F{RESOURCE}%2F",
            f"{RESOURCE}.v{MODIFIED}",
            f"/resource/{RESOURCE}",
        ),
    ],
)
async def test_a_dataset_resolves_to_the_address_of_its_version(
    hosts: DatasetHosts, provider: str, spec: str, ref: str, path: str
) -> None:
    repository = await resolved(hosts, provider, spec)
    base = "https://www.hydroshare.org" if provider == "hydroshare" else hosts.url
    assert (repository.resolved_ref, repository.repo_url) == (ref, f"{base}{path}")


@pytest.mark.parametrize(("spec", "version"), [(FIGSHARE, 3), (f"{FIGSHARE}.v1", 1), (f"{FIGSHARE}.v3", 3)])
async def test_a_figshare_doi_without_a_version_is_the_newest(
    hosts: DatasetHosts, spec: str, version: int
) -> None:
    repository = await resolved(hosts, "figshare", spec)
    assert repository.resolved_ref == f"9782777.v{version}"
    assert repository.repo_url == f"https://figshare.com/articles/dataset/_/9782777/{version}"


@pytest.mark.parametrize(
    ("path", "ref"),
    [
        ("/dataset/sample-dataset", f"sample-dataset.v{MODIFIED}"),
        (f"/dataset/sample-dataset/?activity_id={ACTIVITY}", "sample-dataset.v1712023831"),
        (f"/dataset/sample-dataset/history/{ACTIVITY}", "sample-dataset.v1712023831"),
    ],
)
async def test_an_activity_of_a_ckan_dataset_pins_it(hosts: DatasetHosts, path: str, ref: str) -> None:
    repository = await resolved(hosts, "ckan", quote(f"{hosts.url}{path}", safe=""))
    assert (repository.resolved_ref, repository.repo_url) == (ref, f"{hosts.url}{path}")
    assert repository.build_slug == "ckan-sample-dataset"


@pytest.mark.parametrize("provider", ALL)
async def test_a_dataset_without_files_is_rejected(hosts: DatasetHosts, provider: str) -> None:
    hosts.files = {}
    with pytest.raises(RequestRejected, match="has no files that can be downloaded") as caught:
        await resolved(hosts, provider, spec_of(hosts, provider))
    assert caught.value.reason is RejectReason.REPOSITORY_EMPTY


@pytest.mark.parametrize("provider", ALL)
async def test_a_dataset_of_100_gib_is_rejected_with_the_limit(hosts: DatasetHosts, provider: str) -> None:
    hosts.size = 50 * GIB
    with pytest.raises(RequestRejected, match=r"has 100 GiB, .*up to 10 GiB.*The largest file is") as caught:
        await resolved(hosts, provider, spec_of(hosts, provider))
    assert caught.value.reason is RejectReason.REPOSITORY_TOO_LARGE
    repository = await resolved(hosts, provider, spec_of(hosts, provider), max_dataset_bytes=100 * GIB)
    assert repository.resolved_ref


@pytest.mark.parametrize(
    ("provider", "spec"),
    [
        ("zenodo", "10.5281/zenodo.1"),
        ("dataverse", "10.7910/DVN/NONE"),
        ("zenodo", "10.1000/other"),
        ("dataverse", "10.1000/other"),
        ("figshare", "10.6084/m9.figshare.111111"),
        ("figshare", f"{FIGSHARE}.v9"),
        ("hydroshare", "0" * 32),
        ("ckan", "/dataset/other"),
        ("ckan", "/dataset/sample-dataset?activity_id=none"),
    ],
)
async def test_an_unknown_dataset_is_not_found(hosts: DatasetHosts, provider: str, spec: str) -> None:
    spec = quote(f"{hosts.url}{spec}", safe="") if spec.startswith("/") else spec
    with pytest.raises(RequestRejected) as caught:
        await resolved(hosts, provider, spec)
    assert caught.value.reason is RejectReason.REPOSITORY_NOT_FOUND


@pytest.mark.parametrize(
    ("provider", "spec", "message"),
    [
        ("zenodo", "zenodo.3242074", "is not a DOI"),
        ("zenodo", "10.5281", "is not a DOI"),
        ("zenodo", "10.5281/a b", "is not a DOI"),
        ("zenodo", "10.5281/../../x", "is not a DOI"),
        ("dataverse", "", "is not a DOI"),
        ("figshare", "10.6084/m9.figshare", "must end in the number"),
        ("hydroshare", "142c59757ed54de1", "The specified Hydroshare resource id was not recognized."),
        ("ckan", "https%3A%2F%2Fdemo.ckan.org%2Fgroup%2Froger", "is not the address of a CKAN dataset"),
        ("ckan", "https%3A%2F%2Fdemo.ckan.org%2Fdataset%2F", "is not the address of a CKAN dataset"),
    ],
)
def test_a_malformed_spec_is_rejected_without_a_request(provider: str, spec: str, message: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        Providers(ProviderSettings()).get(provider).check(spec)
    assert caught.value.reason is RejectReason.INVALID_SPEC
    assert message in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/dataset/x",
        "http://169.254.169.254/dataset/x",
        "http://2130706433/dataset/x",
        "http://[::ffff:10.0.0.1]/dataset/x",
        "https://api.svc.cluster.local/dataset/x",
        "file:///dataset/x",
        "git://example.org/dataset/x",
        "https://me:pw@example.org/dataset/x",
    ],
)
def test_a_ckan_site_inside_the_network_is_refused(url: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        Providers(ProviderSettings()).get("ckan").check(quote(url, safe=""))
    assert caught.value.reason is RejectReason.REFUSED_URL


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    "response",
    [
        lambda: web.Response(status=502, text="<html>bad gateway</html>"),
        lambda: web.Response(text="<html>welcome</html>", content_type="text/html"),
        lambda: web.Response(text='{"id": 3242', content_type="application/json"),
        lambda: web.json_response([1]),
        lambda: web.Response(status=429, headers={"Retry-After": "120"}),
        lambda: web.Response(status=503, headers={"Retry-After": "120"}),
    ],
)
async def test_a_bad_day_of_the_host_is_waited_for(
    hosts: DatasetHosts, provider: str, response: Callable[[], web.Response]
) -> None:
    hosts.always = dict.fromkeys(("/api", "/v2", "/hsapi"), response)
    with pytest.raises(ProviderUnavailable) as caught:
        await resolved(hosts, provider, spec_of(hosts, provider))
    if response().headers.get("Retry-After"):
        assert caught.value.retry_after == pytest.approx(120, abs=5)


@pytest.mark.parametrize(
    ("provider", "path"),
    [("zenodo", "/record"), ("zenodo", "/api/records"), ("figshare", "/v2"), ("dataverse", "/api/datasets")],
)
async def test_a_redirect_into_the_network_is_refused(hosts: DatasetHosts, provider: str, path: str) -> None:
    where = {"Location": "http://169.254.169.254/latest/meta-data/"}
    hosts.always = {path: lambda: web.Response(status=302, headers=where)}
    strict = {"allow_private_addresses": False}
    if provider == "dataverse":
        hosts.dois[DATAVERSE] = f"http://169.254.169.254/citation?persistentId=doi:{DATAVERSE}"
    with pytest.raises(RequestRejected, match=r"169\.254\.169\.254") as caught:
        await resolved(hosts, provider, spec_of(hosts, provider), **strict)
    assert caught.value.reason is RejectReason.REFUSED_URL


async def test_a_dataset_with_a_file_inside_the_network_is_refused(hosts: DatasetHosts) -> None:
    hosts.resource_url = "http://169.254.169.254/latest/meta-data/"
    settings = ProviderSettings.model_validate(hosts.settings)
    async with open_session(settings) as session:
        provider: Any = Providers(settings, session).get("ckan")
        provider.settings = ProviderSettings()
        provider.check = lambda spec: None
        with pytest.raises(RequestRejected, match=r"169\.254\.169\.254"):
            await provider.resolve(spec_of(hosts, "ckan"))


async def test_a_denied_dataset_is_private(hosts: DatasetHosts) -> None:
    hosts.always = {"/hsapi": lambda: web.json_response({"detail": "no"}, status=401)}
    with pytest.raises(RequestRejected, match="denies access to resource") as caught:
        await resolved(hosts, "hydroshare", RESOURCE)
    assert caught.value.reason is RejectReason.REPOSITORY_PRIVATE


async def test_a_host_is_not_asked_again_before_the_time_it_named(hosts: DatasetHosts) -> None:
    hosts.always = {"/v2": lambda: web.Response(status=429, headers={"Retry-After": "120"})}
    settings = ProviderSettings.model_validate(hosts.settings)
    async with open_session(settings) as session:
        providers = Providers(settings, session)
        for _ in range(3):
            with pytest.raises(Exception, match="limits this service's requests until"):
                await providers.get("figshare").resolve(FIGSHARE)
    assert len(hosts.requests) == 1


async def test_the_sizes_of_invenio_records_count(hosts: DatasetHosts) -> None:
    files = {"count": 1, "total_bytes": 11 * GIB, "entries": {}}
    hosts.always = {"/api/records": lambda: web.json_response({"id": "3242074", "files": files})}
    with pytest.raises(RequestRejected, match="11 GiB"):
        await resolved(hosts, "zenodo", ZENODO)


async def test_nothing_can_be_resolved_without_a_session() -> None:
    with pytest.raises(ProviderUnavailable, match="no HTTP session"):
        await Providers(ProviderSettings()).get("figshare").resolve(FIGSHARE)
