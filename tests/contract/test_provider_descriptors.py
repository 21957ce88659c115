"""Descriptors of providers: BinderHub's prefixes and names, and texts that its clients can use."""

import re

import pytest

from rabbit2docker_schemas.providers import PROVIDERS, ProviderDescriptor, in_words, metric_label

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
# BinderHub's `display_config` of each provider: what its forms and clients read.
BINDERHUB_FORMS = {
    "gh": (r"[^/]+/[^/]+/.+", False, True),
    "gist": (r"[^/]+/[^/]+(/[^/]+)?", False, True),
    "git": (r"[^/]+/.+", True, True),
    "gl": (r"[^/]+/.+", True, True),
    "zenodo": (r"10\.\d+\/(.)+", False, False),
    "figshare": (r"10\.\d+\/(.)+", False, False),
    "dataverse": (r"10\.\d+\/(.)+", False, False),
    "hydroshare": (r"[^/]+", True, False),
    "ckan": (r"[^/]+", True, False),
}


def test_prefixes_and_metric_labels_are_binderhubs() -> None:
    assert {prefix: metric_label(prefix) for prefix in PROVIDERS} == BINDERHUB_NAMES


@pytest.mark.parametrize("prefix", [None, "", "svn", "GH"])
def test_an_unknown_prefix_has_one_metric_label(prefix: str | None) -> None:
    assert metric_label(prefix) == "other"


@pytest.mark.parametrize("prefix", PROVIDERS)
def test_repoproviders_lists_each_provider_in_binderhubs_form(prefix: str) -> None:
    pattern, is_encoded, has_ref = BINDERHUB_FORMS[prefix]
    descriptor = PROVIDERS[prefix]
    entry = descriptor.as_repoprovider()
    repo = {"label": descriptor.repo_label, "placeholder": descriptor.repo_placeholder}
    expected = {
        "displayName": descriptor.display_name,
        "id": prefix,
        "spec": {"validateRegex": pattern},
        "repo": {**repo, "urlEncode": True} if is_encoded else repo,
        "ref": {"enabled": True, "default": "HEAD"} if has_ref else {"enabled": False},
    }
    if descriptor.detect_pattern:
        expected["detect"] = {"regex": descriptor.detect_pattern}
    assert entry == expected
    assert bool(descriptor.detect_pattern) == (prefix != "git")


@pytest.mark.parametrize(
    ("prefix", "typed", "repo"),
    [
        ("gist", "https://gist.github.com/u/0a1b", "u/0a1b"),
        ("gist", "u/0a1b", "u/0a1b"),
        ("gist", "u/requirements", None),
        ("gl", "https://gitlab.com/a/b/c.git", "a/b/c"),
        ("gl", "git@gitlab.com:a/b", "a/b"),
        ("gl", "a/b", "a/b"),
        ("gl", "https://github.com/a/b", None),
        ("zenodo", "https://doi.org/10.5281/zenodo.1", "10.5281/zenodo.1"),
        ("figshare", "doi:10.6084/m9.figshare.1.v1", "10.6084/m9.figshare.1.v1"),
        ("dataverse", " 10.7910/DVN/X ", "10.7910/DVN/X"),
        ("zenodo", "zenodo.1", None),
        ("hydroshare", "https://www.hydroshare.org/resource/" + "0a" * 16 + "/", "0a" * 16),
        ("ckan", "https://x.org/data/dataset/y?activity_id=1", "https://x.org/data/dataset/y?activity_id=1"),
        ("ckan", "https://x.org/group/y", None),
    ],
)
def test_binderhubs_form_finds_what_people_type(prefix: str, typed: str, repo: str | None) -> None:
    pattern = PROVIDERS[prefix].detect_pattern
    assert pattern is not None
    found = re.search(pattern.replace("(?<", "(?P<"), typed)
    assert (found and found["repo"]) == repo


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
        PROVIDERS["gh"]
        .as_repoprovider({"gh": "github.example-1.org"})["detect"]["regex"]
        .replace("(?<", "(?P<")
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


def test_prefixes_are_listed_in_words() -> None:
    assert [in_words(prefixes) for prefixes in (["gh"], ["gh", "git"], ["gh", "git", "gl"])] == [
        "gh",
        "gh and git",
        "gh, git and gl",
    ]
