"""Descriptors of providers: BinderHub's prefixes and names, and texts that its clients can use."""

import re

import pytest

from rabbit2docker_schemas.providers import AVAILABLE, PROVIDERS, ProviderDescriptor, in_words, metric_label

BINDERHUB_NAMES = {
    "gh": "GitHub",
    "gist": "Gist",
    "git": "Git",
    "gl": "GitLab",
    "zenodo": "Zenodo",
    "figshare": "Figshare",
    "dataverse": "Dataverse",
    "hydroshare": "Hydroshare",
    "ckan": "CKAN",
}
# The answer of BinderHub's `/api/repoproviders`, with our own labels.
REPOPROVIDERS = [
    {
        "displayName": "GitHub",
        "id": "gh",
        "spec": {"validateRegex": r"[^/]+/[^/]+/.+"},
        "detect": {"regex": PROVIDERS["gh"].detect_pattern},
        "repo": {
            "label": "GitHub repository, as owner/name or its URL",
            "placeholder": "binder-examples/requirements",
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
    {
        "displayName": "Git repository",
        "id": "git",
        "spec": {"validateRegex": r"[^/]+/.+"},
        "repo": {
            "label": "URL of any git repository that can be read without a password",
            "placeholder": "https://git.example.org/ada/thesis",
            "urlEncode": True,
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
]


def test_prefixes_and_metric_labels_are_binderhubs() -> None:
    assert {prefix: metric_label(prefix) for prefix in PROVIDERS} == BINDERHUB_NAMES


@pytest.mark.parametrize("prefix", [None, "", "svn", "GH"])
def test_an_unknown_prefix_has_one_metric_label(prefix: str | None) -> None:
    assert metric_label(prefix) == "other"


def test_repoproviders_lists_the_available_providers_in_binderhubs_form() -> None:
    assert [provider.as_repoprovider() for provider in AVAILABLE.values()] == REPOPROVIDERS


@pytest.mark.parametrize("prefix", PROVIDERS)
def test_a_descriptors_example_matches_its_own_pattern(prefix: str) -> None:
    provider = PROVIDERS[prefix]
    example = provider.repo_placeholder
    if provider.url_encoded:
        example = example.replace("/", "%2F")
    spec = f"{example}/HEAD" if provider.has_ref else example
    assert re.fullmatch(provider.spec_pattern, spec)


@pytest.mark.parametrize("prefix", PROVIDERS)
def test_patterns_compile_and_a_ref_is_offered_only_where_specs_have_one(prefix: str) -> None:
    provider: ProviderDescriptor = PROVIDERS[prefix]
    if provider.detect_pattern:
        re.compile(provider.detect_pattern.replace("(?<", "(?P<"))
    assert provider.as_repoprovider()["ref"]["enabled"] is provider.has_ref


@pytest.mark.parametrize(
    ("typed", "repo"),
    [
        ("binder-examples/requirements", "binder-examples/requirements"),
        ("binder-examples/requirements/", "binder-examples/requirements"),
        ("  ada/thesis ", "ada/thesis"),
        ("ada/thesis.git", "ada/thesis"),
        ("ada/ada.github.io", "ada/ada.github.io"),
        ("https://github.com/ada/thesis", "ada/thesis"),
        ("http://www.github.com/ada/thesis.git", "ada/thesis"),
        ("github.com/ada/thesis/", "ada/thesis"),
        ("git@github.com:ada/thesis.git", "ada/thesis"),
        ("ssh://git@github.com/ada/thesis", "ada/thesis"),
        ("ada", None),
        ("ada/", None),
        ("github.com/ada", None),
        ("https://github.com/ada", None),
        ("https://gitlab.com/ada/thesis", None),
        ("https://github.com/ada/thesis/tree/main", None),
    ],
)
def test_binderhubs_form_finds_a_github_repository_in_what_people_type(typed: str, repo: str | None) -> None:
    pattern = PROVIDERS["gh"].detect_pattern
    assert pattern is not None
    found = re.search(pattern.replace("(?<", "(?P<"), typed)
    assert (found and found["repo"]) == repo


def test_the_form_finds_repositories_of_a_github_enterprise_server() -> None:
    pattern = (
        PROVIDERS["gh"].as_repoprovider("github.example-1.org")["detect"]["regex"].replace("(?<", "(?P<")
    )
    for typed in (
        "https://github.example-1.org/ada/thesis",
        "git@github.example-1.org:ada/thesis.git",
        "ada/thesis",
    ):
        found = re.search(pattern, typed)
        assert found
        assert found["repo"] == "ada/thesis"
    assert not re.search(pattern, "https://github.com/ada/thesis")


def test_only_an_available_provider_recognises_urls() -> None:
    assert all(provider.is_available for provider in PROVIDERS.values() if provider.url_grammar)


def test_prefixes_are_listed_in_words() -> None:
    assert [in_words(prefixes) for prefixes in (["gh"], ["gh", "git"], ["gh", "git", "gl"])] == [
        "gh",
        "gh and git",
        "gh, git and gl",
    ]
