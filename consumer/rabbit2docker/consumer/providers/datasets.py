"""The grammar of the specs of datasets, and the names that follow from a spec and a version. Without I/O.

Specs, build slugs, resolved specs and pages are those of `binderhub/repoproviders.py`. The address differs from
BinderHub's, which gives repo2docker the spec: it names the version, so that no newer one is built under its name.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlencode

from escapism import escape  # type: ignore[import-untyped]

from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.consumer.providers.git_urls import refused, shown, split_url
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.providers import find_doi
from rabbit2docker_schemas.reasons import RejectReason

_DOI: Final = re.compile(r"10\.\d+(?:\.\d+)*/[\x21-\x7e]+")
_FIGSHARE: Final = re.compile(r"(?P<start>.*?)(?P<article>\d+)(?:\.v(?P<version>\d+))?", re.ASCII)
_HYDROSHARE: Final = re.compile(r".*([0-9a-f]{32}).*")
_DATASET: Final = "/dataset/"
_NAME: Final = re.compile(r"[\w-]+", re.ASCII)


class ZenodoSite(NamedTuple):
    """One site that repo2docker's content provider `Zenodo` knows."""

    origin: str
    record: str
    """Path of a record, in the spelling that repo2docker recognises."""


ZENODO_SITES: Final = {
    "10.5072": ZenodoSite("https://sandbox.zenodo.org", "record"),
    "10.22002": ZenodoSite("https://data.caltech.edu", "records"),
    "": ZenodoSite("https://zenodo.org", "records"),
}
"""The sites by the beginning of their DOIs; Zenodo has records with DOIs of any publisher."""


def invalid(message: str) -> RequestRejected:
    """Return the error for a spec that cannot be read."""
    return RequestRejected(RejectReason.INVALID_SPEC, message)


def parse_doi(spec: str) -> str:
    """Return the DOI that a spec consists of. Raises RequestRejected(INVALID_SPEC)."""
    text = unquote(spec).strip().rstrip("/")
    doi = find_doi(text) or text
    if not _DOI.fullmatch(doi) or "/../" in f"{doi}/" or "/./" in f"{doi}/":
        raise invalid(
            f"{spec!r} is not a DOI. A DOI begins with `10.`, a number and a slash, such as 10.5281/zenodo.3242074."
        )
    return doi


def doi_path(doi: str) -> str:
    """Return a DOI as the path of a URL."""
    return quote(doi, safe="/:;()._-~")


@dataclass(frozen=True, slots=True)
class FigshareSpec:
    """`<DOI>[.v<version>]`, whose last number is the article's."""

    doi: str
    article: str
    version: str | None

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC)."""
        doi = parse_doi(spec)
        found = _FIGSHARE.fullmatch(doi.partition("/")[2])
        if found is None:
            raise invalid(
                f"{spec!r} is not the DOI of a Figshare article: it must end in the number of the article, and may have a "
                "version after it, such as 10.6084/m9.figshare.9782777.v1."
            )
        return cls(doi, found["article"], found["version"])


@dataclass(frozen=True, slots=True)
class CkanSpec:
    """`<url-escaped URL of a dataset>`, perhaps of one of its activities."""

    url: str
    dataset: str
    activity: str | None
    api: str
    """Base URL of the site's API."""

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Parse a spec. Raises RequestRejected(INVALID_SPEC or REFUSED_URL)."""
        url = unquote(spec).strip()
        parts = split_url(url)
        if parts.scheme not in ("https", "http"):
            raise refused(f"{shown(url)} is not the address of a dataset: it must begin with https://.")
        start, found, rest = parts.path.partition(_DATASET)
        dataset, *more = rest.split("/")
        if not found or not _NAME.fullmatch(dataset):
            raise invalid(
                f"{shown(url)} is not the address of a CKAN dataset, which has `/dataset/` and a name in its path."
            )
        activity = more[1] if len(more) > 1 and more[0] == "history" else None
        activity = activity or next(iter(parse_qs(parts.query).get("activity_id", [])), None)
        if activity is not None and not _NAME.fullmatch(activity):
            raise invalid(f"{activity!r} is not the id of an activity of a CKAN dataset.")
        return cls(url, dataset, activity, f"{parts.scheme}://{parts.netloc}{start}/api/3/action")

    @property
    def content_url(self) -> str:
        """The URL of the metadata of the version that is built."""
        if self.activity:
            return (
                f"{self.api}/activity_data_show?{urlencode({'id': self.activity, 'object_type': 'package'})}"
            )
        return f"{self.api}/package_show?{urlencode({'id': self.dataset})}"


def hydroshare_id(spec: str) -> str:
    """Return the id of a HydroShare resource, which is anywhere in the spec. Raises RequestRejected(INVALID_SPEC)."""
    if (found := _HYDROSHARE.match(unquote(spec))) is None:
        raise invalid(
            "The specified Hydroshare resource id was not recognized. It consists of 32 digits of 0-9 and a-f: "
            "paste the resource's URL."
        )
    return found[1]


def pin_zenodo(spec: str, ref: str) -> Repository:
    """Return the record `ref`, which is one version; the spec's DOI may stand for all of them."""
    doi = parse_doi(spec)
    if not _NAME.fullmatch(ref):
        raise invalid(f"{ref!r} is not the number of a record.")
    start, is_zenodos, _ = doi.partition("zenodo")
    resolved = f"{start}zenodo.{ref}" if is_zenodos else doi
    site = ZENODO_SITES.get(doi.partition("/")[0], ZENODO_SITES[""])
    return Repository(
        provider="zenodo",
        spec=spec,
        repo_url=f"{site.origin}/{site.record}/{ref}",
        resolved_ref=ref,
        build_slug=f"zenodo-{ref}",
        content_provider="Zenodo",
        display_name=resolved,
        resolved_spec=resolved,
        ref_url=f"https://doi.org/{doi_path(resolved)}",
    )


def pin_figshare(spec: str, ref: str) -> Repository:
    """Return the article at version `ref`: its number, `.v` and the number of the version."""
    doi = FigshareSpec.parse(spec).doi
    article, mark, version = ref.partition(".v")
    if not (mark and article.isdecimal() and version.isdecimal()):
        raise invalid(f"{ref!r} is not a version of a Figshare article, such as 9782777.v1.")
    start, is_figshares, _ = doi.partition("figshare")
    resolved = f"{start}figshare.{ref}" if is_figshares else f"{doi.partition(article)[0]}{ref}"
    return Repository(
        provider="figshare",
        spec=spec,
        # Figshare ignores the title in its URLs, but repo2docker expects one.
        repo_url=f"https://figshare.com/articles/dataset/_/{article}/{version}",
        resolved_ref=ref,
        build_slug=f"figshare-{ref}",
        content_provider="Figshare",
        display_name=resolved,
        resolved_spec=resolved,
        ref_url=f"https://doi.org/{doi_path(resolved)}",
    )


def pin_dataverse(spec: str, ref: str) -> Repository:
    """Return the dataset at version `ref`: its number in the installation, `.v` and the version."""
    return dataverse_repository(spec, ref, parse_doi(spec), None)


def dataverse_repository(spec: str, ref: str, doi: str, page: str | None) -> Repository:
    """Return the dataset with this DOI; `page`: its URL at the installation."""
    identifier = doi.partition("/")[2]
    page_of_doi = f"https://doi.org/{doi_path(doi)}"
    return Repository(
        provider="dataverse",
        spec=spec,
        repo_url=page or page_of_doi,
        resolved_ref=ref,
        build_slug=f"dataverse-{escape(identifier, escape_char='-').lower()}",
        content_provider="Dataverse",
        display_name=doi,
        resolved_spec=doi,
        ref_url=page_of_doi,
    )


def pin_hydroshare(spec: str, ref: str) -> Repository:
    """Return the resource at version `ref`: its id, `.v` and the time of its last change."""
    resource = hydroshare_id(spec)
    url = f"https://www.hydroshare.org/resource/{resource}"
    return Repository(
        provider="hydroshare",
        spec=spec,
        repo_url=url,
        resolved_ref=ref,
        build_slug=f"hydroshare-{ref}",
        content_provider="Hydroshare",
        display_name=resource,
        resolved_spec=url,
        ref_url=url,
    )


def pin_ckan(spec: str, ref: str) -> Repository:
    """Return the dataset at version `ref`: its name, `.v` and the time of its last change."""
    parsed = CkanSpec.parse(spec)
    return Repository(
        provider="ckan",
        spec=spec,
        repo_url=parsed.url,
        resolved_ref=ref,
        build_slug=f"ckan-{parsed.dataset}",
        content_provider="CKAN",
        display_name=parsed.url.partition("://")[2].rstrip("/"),
        resolved_spec=spec,
        ref_url=parsed.url,
    )
