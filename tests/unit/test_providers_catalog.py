"""Providers by prefix or pasted URL, and the specs that the operator allows."""

from urllib.parse import quote

import pytest

from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import ConfigurationError, RequestRejected
from rabbit2docker.repository_urls import from_url
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import AVAILABLE, PROVIDERS
from rabbit2docker_schemas.reasons import RejectReason

NOT_BUILT = sorted(set(PROVIDERS) - set(AVAILABLE))
GIT_SPEC = "https%3A%2F%2Fexample.org%2Frepo.git/HEAD"


def test_every_provider_is_found_by_its_prefix_and_pins_without_a_connection() -> None:
    providers = Providers(ProviderSettings())
    specs = {"gh": "o/r/main", "git": GIT_SPEC}
    assert specs.keys() == AVAILABLE.keys()
    for prefix, spec in specs.items():
        provider = providers.get(prefix)
        provider.check(spec)
        assert provider.prefix == prefix
        assert provider.pin(spec, "a" * 40).resolved_ref == "a" * 40


@pytest.mark.parametrize("prefix", ["github", "", *NOT_BUILT])
def test_the_rejection_of_an_unknown_provider_lists_the_existing_ones(prefix: str) -> None:
    with pytest.raises(RequestRejected, match="There are gh and git") as caught:
        Providers(ProviderSettings()).get(prefix)
    assert caught.value.reason is RejectReason.UNKNOWN_PROVIDER
    assert ("not available in this version" in caught.value.message) == (prefix in NOT_BUILT)


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
        ("http://127.0.0.1:9/r", None, ("git", "http%3A%2F%2F127.0.0.1%3A9%2Fr/HEAD")),
    ],
)
def test_a_pasted_url_becomes_provider_and_spec(url: str, ref: str | None, expected: tuple[str, str]) -> None:
    assert from_url(url, ref) == expected


def test_urls_of_a_github_enterprise_server_become_gh_specs() -> None:
    assert from_url("https://git.corp.example/o/r", github_hostname="git.corp.example") == ("gh", "o/r/HEAD")
    assert from_url("https://github.com/o/r", github_hostname="git.corp.example")[0] == "git"


def test_an_empty_url_is_rejected() -> None:
    with pytest.raises(RequestRejected, match="Paste the URL"):
        from_url("  ")
