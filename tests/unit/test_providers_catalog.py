"""Providers by prefix or pasted URL, and the specs that the operator allows."""

from dataclasses import replace
from urllib.parse import quote

import pytest

from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import ConfigurationError, RequestRejected
from rabbit2docker.repository_urls import from_url
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

GIT_SPEC = "https%3A%2F%2Fexample.org%2Frepo.git/HEAD"


def test_every_provider_is_found_by_its_prefix_and_checks_without_a_connection() -> None:
    providers = Providers(ProviderSettings())
    specs = {
        "gh": "o/r/main",
        "git": GIT_SPEC,
        "gist": "u/0a1b",
        "gl": "g%2Fp/main",
        "hydroshare": "0a" * 16,
        "ckan": "https%3A%2F%2Fdemo.ckan.org%2Fdataset%2Fx",
    }
    for prefix in PROVIDERS:
        provider = providers.get(prefix)
        provider.check(specs.get(prefix, "10.5281/zenodo.1"))
        assert provider.prefix == prefix


@pytest.mark.parametrize("prefix", ["github", "", "svn", "GH"])
def test_the_rejection_of_an_unknown_provider_lists_the_existing_ones(prefix: str) -> None:
    listed = "There are ckan, dataverse, figshare, gh, gist, git, gl, hydroshare and zenodo"
    with pytest.raises(RequestRejected, match=listed) as caught:
        Providers(ProviderSettings()).get(prefix)
    assert caught.value.reason is RejectReason.UNKNOWN_PROVIDER


@pytest.mark.parametrize(
    ("prefix", "spec", "is_allowed"),
    [
        ("gh", "org/repo/HEAD", True),
        ("gh", "ORG/other/HEAD", True),
        ("gh", "org/bad/HEAD", False),
        ("gh", "Org/BAD/HEAD", False),
        ("gh", "evil/org/HEAD", False),
        ("git", GIT_SPEC, True),
        ("git", "https%3A%2F%2Fevil.org%2Frepo/HEAD", False),
        ("git", "https%3a%2f%2f%65vil.org%2Frepo/HEAD", False),
    ],
)
def test_bans_take_precedence_over_allowances_in_any_case_and_spelling(
    prefix: str, spec: str, is_allowed: bool
) -> None:
    providers = Providers(
        ProviderSettings(
            allowed_specs={"gh": ["org/"]}, banned_specs={"gh": ["org/bad/"], "git": ["https://evil.org/"]}
        )
    )
    if is_allowed:
        providers.check_allowed(prefix, spec)
        return
    with pytest.raises(RequestRejected) as caught:
        providers.check_allowed(prefix, spec)
    assert caught.value.reason is RejectReason.NOT_ALLOWED


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/team/repo.git",
        "https://evil.example:443/team/repo",
        "https://evil.example.:443/team/repo",
        "https://evil.example./team/repo",
        "https://evil.example//team///repo",
        "https://evil.example/team/repo/",
        "https://evil.example/t%65am/repo",
        "https://www.evil.example/team/repo",
        "HTTPS://EVIL.example/Team/repo",
        "http://evil.example/team/repo",
        "git://evil.example/team/repo",
        "ssh://git@evil.example/team/repo",
        "git@evil.example:team/repo.git",
    ],
)
@pytest.mark.parametrize(
    "pattern", ["https://evil.example/team/repo/", "https://evil.example/team/repo.git/"]
)
def test_no_spelling_of_an_address_evades_a_ban(url: str, pattern: str) -> None:
    providers = Providers(ProviderSettings(banned_specs={"git": [pattern]}))
    with pytest.raises(RequestRejected) as caught:
        providers.check_allowed("git", f"{quote(url, safe='')}/HEAD")
    assert caught.value.reason is RejectReason.NOT_ALLOWED
    providers.check_allowed("git", f"{quote('https://evil.example:8443/team/repo', safe='')}/HEAD")
    providers.check_allowed("git", f"{quote('https://evil.example/team/repository', safe='')}/HEAD")


@pytest.mark.parametrize("banned", [{"gh": ["org/bad/"]}, {"git": ["https://github.com/org/bad/"]}])
@pytest.mark.parametrize(
    ("prefix", "spec"),
    [
        ("gh", "org/bad/main"),
        ("gh", "org/bad.git/main"),
        ("git", "https%3A%2F%2Fgithub.com%2Forg%2Fbad.git/main"),
        ("git", "git%40github.com%3Aorg%2Fbad/main"),
    ],
)
def test_a_ban_covers_a_repository_on_github_whichever_provider_is_named(
    banned: dict[str, list[str]], prefix: str, spec: str
) -> None:
    providers = Providers(ProviderSettings(banned_specs=banned))
    with pytest.raises(RequestRejected) as caught:
        providers.check_allowed(prefix, spec)
    assert caught.value.reason is RejectReason.NOT_ALLOWED


@pytest.mark.parametrize(
    ("banned", "prefix", "spec"),
    [
        ({"gl": ["group%2Fbad/"]}, "gl", "group%2fbad/main"),
        ({"gl": ["group/bad/"]}, "gl", "group%2Fbad.git/main"),
        ({"gl": ["group/bad/"]}, "git", "https%3A%2F%2Fgitlab.com%2Fgroup%2Fbad/main"),
        ({"git": ["https://gitlab.com/group/bad/"]}, "gl", "group%2Fbad/main"),
        ({"git": ["https://gist.github.com/u/0a/"]}, "gist", "u/0a"),
        ({"gist": ["u/0a/"]}, "git", "git%40gist.github.com%3Au%2F0a.git/HEAD"),
        ({"zenodo": ["10.5281/zenodo.7$"]}, "zenodo", "https%3A%2F%2Fdoi.org%2F10.5281%2FZENODO.7"),
        ({"hydroshare": ["0a" * 16]}, "hydroshare", f"10.4211%2Fhs.{'0a' * 16}"),
        (
            {"ckan": ["https://x.org/dataset/bad$"]},
            "ckan",
            "http%3A%2F%2Fwww.X.org.%2Fdataset%2Fbad%3Factivity_id=1",
        ),
        (
            {"ckan": ["https://x.org/en/dataset/bad$"]},
            "ckan",
            "https%3A%2F%2Fx.org%3A443%2Fen%2Fdataset%2Fbad%2F",
        ),
    ],
)
def test_a_ban_covers_every_spelling_of_every_provider(
    banned: dict[str, list[str]], prefix: str, spec: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        Providers(ProviderSettings(banned_specs=banned)).check_allowed(prefix, spec)
    assert caught.value.reason is RejectReason.NOT_ALLOWED


@pytest.mark.parametrize(
    ("banned", "spec", "ref", "moved_to"),
    [
        ({"zenodo": ["10.5281/zenodo.7$"]}, "10.5281/zenodo.6", "7", None),
        ({"gh": ["org/bad/"]}, "old/name/main", "a" * 40, "https://github.com/org/bad"),
        ({"git": ["https://github.com/org/bad/"]}, "old/name/main", "a" * 40, "https://github.com/org/bad"),
    ],
)
def test_a_ban_covers_what_a_spec_stands_for(
    banned: dict[str, list[str]], spec: str, ref: str, moved_to: str | None
) -> None:
    providers = Providers(ProviderSettings(banned_specs=banned))
    prefix = "gh" if moved_to else "zenodo"
    providers.check_allowed(prefix, spec)
    repository = providers.get(prefix).pin(spec, ref)
    with pytest.raises(RequestRejected) as caught:
        providers.check_resolved(replace(repository, repo_url=moved_to or repository.repo_url))
    assert caught.value.reason is RejectReason.NOT_ALLOWED
    Providers(ProviderSettings(banned_specs={"gh": ["other/"]})).check_resolved(repository)


def test_an_invalid_pattern_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"providers\.banned_specs"):
        Providers(ProviderSettings(banned_specs={"gh": ["("]}))


@pytest.mark.parametrize(
    ("url", "ref", "expected"),
    [
        ("https://github.com/o/r", None, ("gh", "o/r/HEAD")),
        ("https://github.com/o/r/", "v1", ("gh", "o/r/v1")),
        ("http://www.GitHub.com/o/r.git", None, ("gh", "o/r/HEAD")),
        ("https://github.com/o/r/tree/feature/x", None, ("gh", "o/r/feature/x")),
        ("https://github.com/o/r/tree/main", "v2", ("gh", "o/r/v2")),
        ("https://github.com/o/r/blob/main/a/b.ipynb", None, ("gh", "o/r/main")),
        ("https://github.com/o/r/commit/abc123", None, ("gh", "o/r/abc123")),
        ("https://github.com/o/r/pull/12/files", None, ("gh", "o/r/refs/pull/12/head")),
        ("https://github.com/o/r/releases/tag/v1", None, ("gh", "o/r/refs/tags/v1")),
        ("https://github.com/o/r?tab=readme#usage", None, ("gh", "o/r/HEAD")),
        ("git@github.com:o/r.git", None, ("gh", "o/r/HEAD")),
        ("ssh://git@github.com/o/r.git", None, ("gh", "o/r/HEAD")),
        (" https://example.org/repo.git\n", None, ("git", GIT_SPEC)),
        ("https://example.org/repo.git", "a/b", ("git", "https%3A%2F%2Fexample.org%2Frepo.git/a%2Fb")),
        ("https://github.com/o", None, ("git", "https%3A%2F%2Fgithub.com%2Fo/HEAD")),
        ("https://me:pw@github.com/o/r", None, ("git", "https%3A%2F%2Fme%3Apw%40github.com%2Fo%2Fr/HEAD")),
        ("https://notgithub.com/o/r", None, ("git", "https%3A%2F%2Fnotgithub.com%2Fo%2Fr/HEAD")),
        ("https://gitlab.com/a/b", None, ("gl", "a%2Fb/HEAD")),
        ("https://gitlab.com/a/b/c/-/tree/feature/x?ref_type=heads", None, ("gl", "a%2Fb%2Fc/feature%2Fx")),
        ("https://gitlab.com/a/b/-/tree/main", "v/2", ("gl", "a%2Fb/v%2F2")),
        (
            "https://gitlab.com/a/b/-/merge_requests/3/diffs",
            None,
            ("gl", "a%2Fb/refs%2Fmerge-requests%2F3%2Fhead"),
        ),
        ("https://gitlab.com/a/b/blob/main/x.md", None, ("gl", "a%2Fb/main")),
        ("git@gitlab.com:a/b/c.git", None, ("gl", "a%2Fb%2Fc/HEAD")),
        (
            "https://gitlab.com/explore/projects",
            None,
            ("git", "https%3A%2F%2Fgitlab.com%2Fexplore%2Fprojects/HEAD"),
        ),
        ("https://gist.github.com/u/0a1b2c", None, ("gist", "u/0a1b2c/HEAD")),
        ("https://gist.github.com/u/0a1b2c/" + "7d" * 20, None, ("gist", "u/0a1b2c/" + "7d" * 20)),
        ("https://gist.github.com/u/0a1b2c.git", None, ("gist", "u/0a1b2c/HEAD")),
        ("10.5281/zenodo.3242074", None, ("zenodo", "10.5281/zenodo.3242074")),
        ("doi:10.5281/zenodo.3242074", None, ("zenodo", "10.5281/zenodo.3242074")),
        ("https://zenodo.org/records/3242074/files/x", None, ("zenodo", "10.5281/zenodo.3242074")),
        (
            "https://doi.org/10.6084/m9.figshare.9782777.v2",
            None,
            ("figshare", "10.6084/m9.figshare.9782777.v2"),
        ),
        (
            "https://figshare.com/articles/code/t/9782777/2",
            None,
            ("figshare", "10.6084/m9.figshare.9782777.v2"),
        ),
        ("https://figshare.com/articles/t/9782777", None, ("figshare", "10.6084/m9.figshare.9782777")),
        ("https://dx.doi.org/10.4211/hs." + "0a" * 16, None, ("hydroshare", "0a" * 16)),
        ("https://www.hydroshare.org/resource/" + "0a" * 16 + "/", None, ("hydroshare", "0a" * 16)),
        ("https://doi.org/10.7910/DVN/TJCLKP", None, ("dataverse", "10.7910/DVN/TJCLKP")),
        (
            "https://dataverse.example.org/dataset.xhtml?persistentId=doi%3A10.7910/DVN/TJCLKP&version=1.0",
            None,
            ("dataverse", "10.7910/DVN/TJCLKP"),
        ),
        ("https://demo.ckan.org/dataset/x-1", None, ("ckan", "https%3A%2F%2Fdemo.ckan.org%2Fdataset%2Fx-1")),
        (
            "https://x.org/en/dataset/y/history/0a-1",
            None,
            ("ckan", "https%3A%2F%2Fx.org%2Fen%2Fdataset%2Fy%2Fhistory%2F0a-1"),
        ),
        (
            "https://git.x.org/team/dataset/r",
            None,
            ("git", "https%3A%2F%2Fgit.x.org%2Fteam%2Fdataset%2Fr/HEAD"),
        ),
        ("https://git.x.org/dataset/r.git", None, ("git", "https%3A%2F%2Fgit.x.org%2Fdataset%2Fr.git/HEAD")),
        ("http://127.0.0.1:9/r", None, ("git", "http%3A%2F%2F127.0.0.1%3A9%2Fr/HEAD")),
    ],
)
def test_a_pasted_url_becomes_provider_and_spec(url: str, ref: str | None, expected: tuple[str, str]) -> None:
    assert from_url(url, ref) == expected


def test_urls_of_a_github_enterprise_server_become_gh_specs() -> None:
    assert from_url("https://git.corp.example/o/r", hosts={"gh": "git.corp.example"}) == ("gh", "o/r/HEAD")
    assert from_url("https://github.com/o/r", hosts={"gh": "git.corp.example"})[0] == "git"


def test_urls_of_an_own_gitlab_become_gl_specs() -> None:
    hosts = {"gl": "git.corp.example:8443"}
    assert from_url("https://git.corp.example:8443/a/b/c", hosts=hosts) == ("gl", "a%2Fb%2Fc/HEAD")
    assert from_url("https://gitlab.com/a/b", hosts=hosts)[0] == "git"


def test_a_dataset_has_no_branch() -> None:
    with pytest.raises(RequestRejected, match="has no branches"):
        from_url("10.5281/zenodo.3242074", "main")


def test_an_empty_url_is_rejected() -> None:
    with pytest.raises(RequestRejected, match="Paste the URL"):
        from_url("  ")
