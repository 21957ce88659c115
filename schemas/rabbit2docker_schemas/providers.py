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

HEAD: Final = "HEAD"
GITHUB: Final = "github.com"
OTHER: Final = "other"
"""Metric label of a prefix that no descriptor has."""
_DOI: Final = r"10\.\d+\/(.)+"


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

    def parse(self, path: str, ref: str | None) -> str | None:
        """Return the spec that a URL's path names, None if it names no repository.

        `ref` takes precedence over the version in the path; without either it is HEAD.
        """
        if (found := re.fullmatch(self.path, path.strip("/"))) is None:
            return None
        parts = found.groupdict()
        return self.spec.format(**parts, ref=ref or self._ref(parts.get("rest") or "") or HEAD)

    def as_javascript(self) -> dict[str, Any]:
        """Return the grammar for scripts, with named groups in JavaScript's spelling."""
        refs = [[pattern.replace("(?P<", "(?<"), template] for pattern, template in self.refs]
        return {"path": self.path.replace("(?P<", "(?<"), "refs": refs, "spec": self.spec}

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
    is_available: bool
    """True if this version builds such repositories."""
    host: str | None = None
    """Host name of the provider's public site; None if its repositories are anywhere."""
    spec_pattern: str
    """Regular expression that clients check a spec with; JavaScript reads it too."""
    detect_pattern: str | None = None
    """Regular expression, in JavaScript's spelling, that finds the group `repo` in a URL of this provider."""
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
    """The grammar of URLs on `host`; None if no URL is recognised as this provider's."""

    def as_repoprovider(self, github_hostname: str = GITHUB) -> dict[str, Any]:
        """Return the entry of BinderHub's `/api/repoproviders`, where GitHub has this host name."""
        detect = (self.detect_pattern or "").replace(re.escape(GITHUB), re.escape(github_hostname))
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
            "isAvailable": self.is_available,
            "isUrlEncoded": self.url_encoded,
            "repoParts": self.repo_parts,
            "urlGrammar": self.url_grammar.as_javascript() if self.url_grammar else None,
        }


_DESCRIPTORS: Final = (
    ProviderDescriptor(
        prefix="gh",
        name="GitHub",
        display_name="GitHub",
        is_available=True,
        host=GITHUB,
        spec_pattern=r"[^/]+/[^/]+/.+",
        # Forms accept only what this finds. Owners have no dots, so that `github.com/owner` is no repository.
        detect_pattern=(
            r"^\s*((https?://)?(www\.)?github\.com/|(ssh://)?git@github\.com[:/])?"
            r"(?<repo>[A-Za-z0-9_-]+/[A-Za-z0-9._-]+?)(\.git)?/?\s*$"
        ),
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
        is_available=True,
        spec_pattern=r"[^/]+/.+",
        repo_label="URL of any git repository that can be read without a password",
        repo_placeholder="https://git.example.org/ada/thesis",
        url_encoded=True,
        repo_parts=1,
    ),
    ProviderDescriptor(
        prefix="gist",
        name="Gist",
        display_name="GitHub Gist",
        is_available=False,
        host="gist.github.com",
        spec_pattern=r"[^/]+/[^/]+(/[^/]+)?",
        repo_label="Gist, as user/id or its URL",
        repo_placeholder="mariusvniekerk/8a658f7f63b13768d1e75fa2464f5092",
        repo_parts=2,
    ),
    ProviderDescriptor(
        prefix="gl",
        name="GitLab",
        display_name="GitLab.com",
        is_available=False,
        host="gitlab.com",
        spec_pattern=r"[^/]+/.+",
        repo_label="GitLab repository, as group/name or its URL",
        repo_placeholder="gitlab-org/gitlab-foss",
        url_encoded=True,
        repo_parts=1,
    ),
    ProviderDescriptor(
        prefix="zenodo",
        name="Zenodo",
        display_name="Zenodo DOI",
        is_available=False,
        host="zenodo.org",
        spec_pattern=_DOI,
        repo_label="DOI of a Zenodo record",
        repo_placeholder="10.5281/zenodo.3242074",
        has_ref=False,
    ),
    ProviderDescriptor(
        prefix="figshare",
        name="Figshare",
        display_name="Figshare DOI",
        is_available=False,
        host="figshare.com",
        spec_pattern=_DOI,
        repo_label="DOI of a Figshare article",
        repo_placeholder="10.6084/m9.figshare.9782777.v1",
        has_ref=False,
    ),
    ProviderDescriptor(
        prefix="dataverse",
        name="Dataverse",
        display_name="Dataverse DOI",
        is_available=False,
        spec_pattern=_DOI,
        repo_label="DOI of a Dataverse dataset",
        repo_placeholder="10.7910/DVN/TJCLKP",
        has_ref=False,
    ),
    ProviderDescriptor(
        prefix="hydroshare",
        name="Hydroshare",
        display_name="Hydroshare resource",
        is_available=False,
        host="www.hydroshare.org",
        spec_pattern=r"[^/]+",
        repo_label="Hydroshare resource, as its id or its URL",
        repo_placeholder="https://www.hydroshare.org/resource/b8f6eae9d89241cf8b5904033460af61",
        url_encoded=True,
        repo_parts=1,
        has_ref=False,
    ),
    ProviderDescriptor(
        prefix="ckan",
        name="CKAN",
        display_name="CKAN dataset",
        is_available=False,
        spec_pattern=r"[^/]+",
        repo_label="URL of a CKAN dataset",
        repo_placeholder="https://demo.ckan.org/dataset/my-sample-dataset-001",
        url_encoded=True,
        repo_parts=1,
        has_ref=False,
    ),
)

PROVIDERS: Final[Mapping[str, ProviderDescriptor]] = MappingProxyType({d.prefix: d for d in _DESCRIPTORS})
"""Every provider that BinderHub has, by prefix."""
AVAILABLE: Final[Mapping[str, ProviderDescriptor]] = MappingProxyType(
    {prefix: descriptor for prefix, descriptor in PROVIDERS.items() if descriptor.is_available}
)
"""The providers that this version builds, by prefix."""


def in_words(prefixes: Sequence[str]) -> str:
    """Return prefixes as part of a sentence: `gh, git and gl`."""
    *head, last = prefixes
    return f"{', '.join(head)} and {last}" if head else last


def metric_label(prefix: str | None) -> str:
    """Return the label `provider` of BinderHub's metrics: one of a closed set, whatever a request says."""
    descriptor = PROVIDERS.get(prefix or "")
    return descriptor.name if descriptor else OTHER
