"""One descriptor per repository provider: everything about it that is data.

Intake, the hub's API and pages, the command line and the metrics read these descriptors. A new provider is its module
in `rabbit2docker.consumer.providers` and its descriptor here.

The prefixes, names and spec patterns are BinderHub's (`binderhub/repoproviders.py`): clients put the prefix into
`/build/<prefix>/<spec>`, and dashboards select by the name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, unquote

HEAD: Final = "HEAD"
GITHUB: Final = "github.com"
GITLAB: Final = "gitlab.com"
OTHER: Final = "other"
"""Metric label of a prefix that no descriptor has."""
_DETECT_DOI: Final = r"^\s*(doi:|https?://(dx\.)?doi\.org/)?(?<repo>10\.\d+/\S+?)/?\s*$"
_DOI: Final = r"10\.\d+\/(.)+"
_PASTED_DOI: Final = re.compile(r"(?:doi:\s*|https?://(?:dx\.|www\.)?doi\.org/)?(10\.\d+/\S+)", re.IGNORECASE)


def find_doi(text: str) -> str | None:
    """Return the DOI that a text consists of, as people paste it: bare, after `doi:`, or as a URL of doi.org."""
    found = _PASTED_DOI.fullmatch(text.strip())
    return unquote(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlGrammar:
    """Grammar of the paths of a provider's URLs, which name a repository and perhaps a version."""

    path: str
    """Regular expression for the whole path without its outer slashes. Its groups fill `spec`; `rest` is what may
    follow the repository."""
    refs: tuple[tuple[str, str], ...]
    """Pairs of a regular expression for the whole of `rest` and a template for the version that it names."""
    spec: str
    """Template of the spec, from the groups of `path` and `ref`."""

    query: str = ""
    """Regular expression that is searched in the query, with further groups; empty: the query has no meaning."""
    head: str = HEAD
    """Version where neither the URL nor the user names one."""
    any_host: bool = False
    """True if such paths on any host are this provider's."""

    def parse(
        self, path: str, ref: str | None, *, query: str = "", url: str = "", encode: bool = False
    ) -> str | None:
        """Return the spec that a URL names, None if it names no repository.

        `ref` takes precedence over the version in the path. `encode`: percent-encode repository and version.
        """
        if (found := re.fullmatch(self.path, path.strip("/"))) is None:
            return None
        if (asked := re.search(self.query, query)) is None:
            return None
        parts = {name: unquote(text or "") for name, text in asked.groupdict().items()}
        parts |= {name: text or "" for name, text in found.groupdict().items()}
        version = ref or self._ref(parts.get("rest", "")) or self.head
        if encode:
            version = quote(unquote(version), safe="")
            parts = {name: quote(unquote(text), safe="") for name, text in parts.items()}
        return self.spec.format(**parts, ref=version, url=quote(url, safe=""))

    def as_javascript(self) -> dict[str, Any]:
        """Return the grammar for scripts, with named groups in JavaScript's spelling."""
        refs = [[pattern.replace("(?P<", "(?<"), template] for pattern, template in self.refs]
        return {
            "path": self.path.replace("(?P<", "(?<"),
            "query": self.query.replace("(?P<", "(?<"),
            "refs": refs,
            "spec": self.spec,
            "anyHost": self.any_host,
        }

    def _ref(self, rest: str) -> str | None:
        matches = ((re.fullmatch(pattern, rest), template) for pattern, template in self.refs)
        return next((template.format(**found.groupdict()) for found, template in matches if found), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDescriptor:
    """One kind of repository."""

    prefix: str
    """First part of `/build/<prefix>/<spec>`, and `provider` in requests and events."""
    name: str
    """Short name: the label `provider` of BinderHub's metrics, and the name on pages."""
    display_name: str
    """Name in forms that list the providers."""
    host: str | None = None
    """Host name of the provider's public site; None if its repositories are anywhere."""
    spec_pattern: str
    """Regular expression that clients check a spec with; JavaScript reads it too."""
    detect_pattern: str | None = None
    """Regular expression, in JavaScript's spelling, that finds the group `repo` in a URL of this provider."""
    spec_form: str
    """The form of a spec, for documentation."""
    version: str
    """What a spec stands for and what the tag of its image is, for documentation."""
    repo_label: str
    """Label of the form field for the repository."""
    repo_placeholder: str
    """Example in that field while it is empty."""
    url_encoded: bool = False
    """True if the repository is percent-encoded within the spec."""
    repo_parts: int = 0
    """Number of leading parts of a spec that name the repository, the rest being the version; 0: all of them."""
    has_ref: bool = True
    """True if users choose a version beside the repository."""
    url_grammar: UrlGrammar | None = None
    """The grammar of URLs on `host`, or on any; None if no URL is recognised as this provider's."""
    doi_grammar: tuple[str, str] | None = None
    """A regular expression for the whole of a DOI and a template of the spec, from its groups and `doi`; None if no DOI
    is recognised as this provider's."""

    def spec_of_doi(self, doi: str) -> str | None:
        """Return the spec of a DOI, None if it is not this provider's."""
        if self.doi_grammar is None or not (found := re.fullmatch(self.doi_grammar[0], doi, re.IGNORECASE)):
            return None
        return self.doi_grammar[1].format(**found.groupdict(), doi=doi)

    def host_among(self, hosts: Mapping[str, str]) -> str | None:
        """Return the host name, where `hosts` has the operator's by prefix."""
        return hosts.get(self.prefix, self.host)

    def as_repoprovider(self, hosts: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        """Return the entry of BinderHub's `/api/repoproviders`; `hosts` are the operator's host names by prefix."""
        detect = self.detect_pattern or ""
        if self.host and (host := self.host_among(hosts)):
            detect = detect.replace(re.escape(self.host), re.escape(host))
        repo: dict[str, Any] = {"label": self.repo_label, "placeholder": self.repo_placeholder}
        if self.url_encoded:
            repo["urlEncode"] = True
        return {
            "displayName": self.display_name,
            "id": self.prefix,
            "spec": {"validateRegex": self.spec_pattern},
            **({"detect": {"regex": detect}} if detect else {}),
            "repo": repo,
            "ref": {"enabled": True, "default": HEAD} if self.has_ref else {"enabled": False},
        }

    def as_page_data(self) -> dict[str, Any]:
        """Return what the scripts of the hub's pages need to show specs and to recognise pasted URLs."""
        return {
            "prefix": self.prefix,
            "name": self.name,
            "host": self.host,
            "isUrlEncoded": self.url_encoded,
            "repoParts": self.repo_parts,
            "hasRef": self.has_ref,
            "urlGrammar": self.url_grammar.as_javascript() if self.url_grammar else None,
            "doiPattern": self.doi_grammar[0].replace("(?P<", "(?<") if self.doi_grammar else None,
        }


_DESCRIPTORS: Final = (
    ProviderDescriptor(
        prefix="gh",
        name="GitHub",
        display_name="GitHub",
        host=GITHUB,
        spec_pattern=r"[^/]+/[^/]+/.+",
        # Forms accept only what this finds. Owners have no dots, so that `github.com/owner` is no repository.
        detect_pattern=(
            r"^\s*((https?://)?(www\.)?github\.com/|(ssh://)?git@github\.com[:/])?"
            r"(?<repo>[A-Za-z0-9_-]+/[A-Za-z0-9._-]+?)(\.git)?/?\s*$"
        ),
        spec_form="OWNER/REPOSITORY/REF",
        version="The commit of a branch, tag, pull request (`refs/pull/N/head`) or short id.",
        repo_label="GitHub repository, as owner/name or its URL",
        repo_placeholder="binder-examples/requirements",
        repo_parts=2,
        url_grammar=UrlGrammar(
            path=(
                r"(?!(?:orgs|settings|topics|marketplace|features|sponsors)/)"
                r"(?P<owner>[^/]+)/(?P<name>[^/]+?)(?:\.git)?(?:/(?P<rest>.*))?"
            ),
            refs=(
                # A branch may hold slashes, so everything after `tree` is the version.
                (r"(?:tree|commits?)/(?P<ref>.+)", "{ref}"),
                # Branch and file cannot be separated here; branches with a slash are the rarer case.
                (r"blob/(?P<ref>[^/]+)(?:/.*)?", "{ref}"),
                (r"pull/(?P<number>[^/]+)(?:/.*)?", "refs/pull/{number}/head"),
                (r"releases/tag/(?P<tag>.+)", "refs/tags/{tag}"),
            ),
            spec="{owner}/{name}/{ref}",
        ),
    ),
    ProviderDescriptor(
        prefix="git",
        name="Git",
        display_name="Git repository",
        spec_pattern=r"[^/]+/.+",
        spec_form="URL-ESCAPED-ADDRESS/REF",
        version="The commit of a branch or tag; a commit only by its full id.",
        repo_label="URL of any git repository that can be read without a password",
        repo_placeholder="https://git.example.org/ada/thesis",
        url_encoded=True,
        repo_parts=1,
    ),
    ProviderDescriptor(
        prefix="gist",
        name="Gist",
        display_name="GitHub Gist",
        host=f"gist.{GITHUB}",
        spec_pattern=r"[^/]+/[^/]+(/[^/]+)?",
        detect_pattern=(
            r"^\s*((https?://)?gist\.github\.com/)?(?<repo>[A-Za-z0-9_-]+/[0-9a-fA-F]+)(\.git)?/?\s*$"
        ),
        spec_form="USER/ID[/REF]",
        version="A version in the gist's history, without one the newest.",
        repo_label="Gist, as user/id or its URL",
        repo_placeholder="mariusvniekerk/8a658f7f63b13768d1e75fa2464f5092",
        repo_parts=2,
        url_grammar=UrlGrammar(
            path=r"(?P<owner>[^/]+)/(?P<id>[0-9a-fA-F]+)(?:\.git)?(?:/(?P<rest>.*))?",
            refs=((r"(?P<ref>[0-9a-f]{7,40})", "{ref}"),),
            spec="{owner}/{id}/{ref}",
        ),
    ),
    ProviderDescriptor(
        prefix="gl",
        name="GitLab",
        display_name="GitLab.com",
        host=GITLAB,
        spec_pattern=r"[^/]+/.+",
        detect_pattern=(
            r"^\s*((https?://)?gitlab\.com/|(ssh://)?git@gitlab\.com[:/])?"
            r"(?<repo>[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+?)+?)(\.git)?/?\s*$"
        ),
        spec_form="URL-ESCAPED-PROJECT/REF",
        version="The commit of a branch, tag, merge request (`refs/merge-requests/N/head`) or short id.",
        repo_label="GitLab repository, as group/name or its URL",
        repo_placeholder="gitlab-org/gitlab-foss",
        url_encoded=True,
        repo_parts=1,
        url_grammar=UrlGrammar(
            path=(
                r"(?!(?:explore|groups|users|help|dashboard|admin|search)(?:/|$))"
                r"(?P<path>[^/]+(?:/(?!-(?:/|$)|(?:tree|blob|commits?|merge_requests|tags)/)[^/]+?)+?)(?:\.git)?"
                # Links from before GitLab 12 lack the hyphen; projects cannot have these names.
                r"(?:/-?/?(?P<rest>(?:tree|blob|commits?|merge_requests|tags)/.*)|/-(?:/.*)?)?"
            ),
            refs=(
                (r"(?:tree|commits?|tags)/(?P<ref>.+)", "{ref}"),
                (r"blob/(?P<ref>[^/]+)(?:/.*)?", "{ref}"),
                (r"merge_requests/(?P<number>\d+)(?:/.*)?", "refs/merge-requests/{number}/head"),
            ),
            spec="{path}/{ref}",
        ),
    ),
    ProviderDescriptor(
        prefix="zenodo",
        name="Zenodo",
        display_name="Zenodo DOI",
        host="zenodo.org",
        spec_pattern=_DOI,
        detect_pattern=_DETECT_DOI,
        spec_form="DOI",
        version="The number of the record. A DOI of all versions stands for the newest record at the time of the request.",
        repo_label="DOI of a Zenodo record",
        repo_placeholder="10.5281/zenodo.3242074",
        has_ref=False,
        url_grammar=UrlGrammar(
            path=r"records?/(?P<id>\d+)(?:/.*)?|doi/(?:10\.5281/zenodo\.)?(?P<doi>\d+)",
            refs=(),
            spec="10.5281/zenodo.{id}{doi}",
        ),
        doi_grammar=(r"10\.(?:5281|5072)/zenodo\..+|10\.22002/.+", "{doi}"),
    ),
    ProviderDescriptor(
        prefix="figshare",
        name="Figshare",
        display_name="Figshare DOI",
        host="figshare.com",
        spec_pattern=_DOI,
        detect_pattern=_DETECT_DOI,
        spec_form="DOI",
        version="`ARTICLE.vVERSION`. A DOI without a version stands for the newest at the time of the request.",
        repo_label="DOI of a Figshare article",
        repo_placeholder="10.6084/m9.figshare.9782777.v1",
        has_ref=False,
        url_grammar=UrlGrammar(
            path=r"(?:account/)?articles/(?:[^/]+/){1,2}(?P<id>\d{4,})(?:/(?P<rest>\d+))?",
            refs=((r"(?P<version>\d+)", ".v{version}"),),
            spec="10.6084/m9.figshare.{id}{ref}",
            head="",
        ),
        doi_grammar=(r"10\.\d+/(?:m9\.)?figshare\..+", "{doi}"),
    ),
    ProviderDescriptor(
        prefix="hydroshare",
        name="Hydroshare",
        display_name="Hydroshare resource",
        host="www.hydroshare.org",
        spec_pattern=r"[^/]+",
        detect_pattern=r"^\s*(https?://(www\.)?hydroshare\.org/resource/|hs\.)?(?<repo>[0-9a-f]{32})/?\s*$",
        spec_form="ID, or URL-ESCAPED-ADDRESS",
        version="`ID.vTIME` of the last change. There are no older versions.",
        repo_label="Hydroshare resource, as its id or its URL",
        repo_placeholder="https://www.hydroshare.org/resource/b8f6eae9d89241cf8b5904033460af61",
        url_encoded=True,
        repo_parts=1,
        has_ref=False,
        url_grammar=UrlGrammar(
            path=r"(?:resource|hsapi/resource)/(?P<id>[0-9a-f]{32})(?:/.*)?", refs=(), spec="{id}"
        ),
        doi_grammar=(r"10\.4211/hs\.(?P<id>[0-9a-f]{32})", "{id}"),
    ),
    ProviderDescriptor(
        prefix="dataverse",
        name="Dataverse",
        display_name="Dataverse DOI",
        spec_pattern=_DOI,
        detect_pattern=_DETECT_DOI,
        spec_form="DOI",
        version="`NUMBER.vMAJOR.MINOR`: the latest published version. DOIs of files stand for their dataset.",
        repo_label="DOI of a Dataverse dataset",
        repo_placeholder="10.7910/DVN/TJCLKP",
        has_ref=False,
        url_grammar=UrlGrammar(
            path=r"(?:.*/)?(?:dataset\.xhtml|file\.xhtml|citation)",
            query=r"(?:^|&)persistentId=doi(?::|%3[Aa])(?P<doi>10\.[^&]+)",
            refs=(),
            spec="{doi}",
            any_host=True,
        ),
        # Every installation has prefixes of its own, so any DOI that is no other's may be of one.
        doi_grammar=(r"10\.\d+/.+", "{doi}"),
    ),
    ProviderDescriptor(
        prefix="ckan",
        name="CKAN",
        display_name="CKAN dataset",
        spec_pattern=r"[^/]+",
        detect_pattern=r"^\s*(?<repo>https?://[^/\s]+/(\S+/)?dataset/\S+?)\s*$",
        spec_form="URL-ESCAPED-ADDRESS",
        version="`NAME.vTIME` of the last change. `/history/ID` or `?activity_id=ID` in the address stands for an older version.",
        repo_label="URL of a CKAN dataset",
        repo_placeholder="https://demo.ckan.org/dataset/my-sample-dataset-001",
        url_encoded=True,
        repo_parts=1,
        has_ref=False,
        url_grammar=UrlGrammar(
            # A part in front can only be a language: `group/dataset/name` is a repository's path on most git servers.
            path=r"(?:[a-z]{2}(?:[-_][A-Za-z]{2,4})?/)?dataset/(?P<id>[\w-]+)(?:/history/[\w-]+)?",
            refs=(),
            spec="{url}",
            any_host=True,
        ),
    ),
)

PROVIDERS: Final[Mapping[str, ProviderDescriptor]] = MappingProxyType({d.prefix: d for d in _DESCRIPTORS})
"""Every provider that BinderHub has, by prefix."""


def in_words(prefixes: Sequence[str]) -> str:
    """Return prefixes as part of a sentence: `gh, git and gl`."""
    *head, last = prefixes
    return f"{', '.join(head)} and {last}" if head else last


def metric_label(prefix: str | None) -> str:
    """Return the label `provider` of BinderHub's metrics: one of a closed set, whatever a request says."""
    descriptor = PROVIDERS.get(prefix or "")
    return descriptor.name if descriptor else OTHER
