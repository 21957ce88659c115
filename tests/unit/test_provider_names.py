"""Names of all providers equal BinderHub's: build slug, image, resolved spec, page of the version.

Sources: `binderhub/repoproviders.py` and `binderhub/tests/test_repoproviders.py` for slugs, resolved specs and pages; the
images were computed with `_safe_build_slug` and the image name of `binderhub/builder.py`, at commit b9fad995.
"""

import string
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.images.names import build_name, image_name
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.providers.specs import pin
from rabbit2docker.errors import RequestRejected
from rabbit2docker.repository_urls import from_url
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.providers import PROVIDERS

HOSTS = ProviderSettings().hosts
PREFIX = "quay.io/org/pfx-"
COMMIT = "38e50c71130fcf56655685f0992f4f125bef3879"
GIST, GIST_REF = "8a658f7f63b13768d1e75fa2464f5092", "7daa381aae8409bfe28193e2ed8f767c26371237"
Z2JH = "https://github.com/jupyterhub/zero-to-jupyterhub-k8s"
RESOURCE = "142c59757ed54de1816777828c9716e7"
CKAN = "https://demo.ckan.org/dataset/my-sample-dataset-001"


class Golden(NamedTuple):
    provider: str
    spec: str
    ref: str
    slug: str
    image: str
    resolved_spec: str
    ref_url: str


GOLDEN = [
    Golden(
        "gh", "jupyterhub/zero-to-jupyterhub-k8s/0.9.1", COMMIT, "jupyterhub-zero-to-jupyterhub-k8s",
        "jupyterhub-2dzero-2dto-2djupyterhub-2dk8s-b3e028", f"jupyterhub/zero-to-jupyterhub-k8s/{COMMIT}",
        f"{Z2JH}/tree/{COMMIT}",
    ),
    Golden(
        "gist", f"mariusvniekerk/{GIST}", GIST_REF, GIST, f"{GIST}-ae58b0", f"mariusvniekerk/{GIST}/{GIST_REF}",
        f"https://gist.github.com/mariusvniekerk/{GIST}/{GIST_REF}",
    ),
    Golden(
        "git", f"{quote(Z2JH, safe='')}/0.8.0", COMMIT, Z2JH,
        "https-3a-2f-2fgithub-2ecom-2fjupyterhub-2fzero-2dto-2djupyterhub-2dk8s-e903f9",
        f"{quote(Z2JH, safe='')}/{COMMIT}", Z2JH,
    ),
    Golden(
        "gl", "gitlab-org%2Fgitlab-foss/v10.0.6", COMMIT, "gitlab_-org-gitlab_-foss",
        "gitlab-5f-2dorg-2dgitlab-5f-2dfoss-a53a80", f"gitlab-org%2Fgitlab-foss/{COMMIT}",
        f"https://gitlab.com/gitlab-org/gitlab-foss/tree/{COMMIT}",
    ),
    Golden(
        "zenodo", "10.5281/zenodo.3242073", "3242074", "zenodo-3242074", "zenodo-2d3242074-b993d2",
        "10.5281/zenodo.3242074", "https://doi.org/10.5281/zenodo.3242074",
    ),
    Golden(
        "figshare", "10.6084/m9.figshare.9782777", "9782777.v3", "figshare-9782777.v3",
        "figshare-2d9782777-2ev3-cf7eea", "10.6084/m9.figshare.9782777.v3",
        "https://doi.org/10.6084/m9.figshare.9782777.v3",
    ),
    Golden(
        "dataverse", "10.7910/DVN/TJCLKP", "3035124.v3.0", "dataverse-dvn-2ftjclkp",
        "dataverse-2ddvn-2d2ftjclkp-a1371f", "10.7910/DVN/TJCLKP", "https://doi.org/10.7910/DVN/TJCLKP",
    ),
    Golden(
        "hydroshare", f"https%3A%2F%2Fwww.hydroshare.org%2Fresource%2F{RESOURCE}", f"{RESOURCE}.v1565445792",
        f"hydroshare-{RESOURCE}.v1565445792", f"hydroshare-2d{RESOURCE}-2ev1565445792-5c6cd3",
        f"https://www.hydroshare.org/resource/{RESOURCE}", f"https://www.hydroshare.org/resource/{RESOURCE}",
    ),
    Golden(
        "ckan", quote(CKAN, safe=""), "my-sample-dataset-001.v1712023831", "ckan-my-sample-dataset-001",
        "ckan-2dmy-2dsample-2ddataset-2d001-5226f9", quote(CKAN, safe=""), CKAN,
    ),
]  # fmt: skip


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.provider)
def test_names_are_binderhubs(golden: Golden) -> None:
    repository = pin(golden.provider, golden.spec, golden.ref, hosts=HOSTS)
    assert repository.build_slug == golden.slug
    assert image_name(PREFIX, golden.slug, golden.ref) == f"{PREFIX}{golden.image}:{golden.ref}".lower()
    assert (repository.resolved_spec, repository.ref_url) == (golden.resolved_spec, golden.ref_url)
    assert len(build_name(golden.slug, golden.ref)) <= 63


def test_the_table_has_all_providers() -> None:
    assert {golden.provider for golden in GOLDEN} == PROVIDERS.keys()


@pytest.mark.parametrize(
    ("provider", "spec", "ref", "repo_url"),
    [
        ("zenodo", "10.5281/zenodo.3242073", "3242074", "https://zenodo.org/records/3242074"),
        ("zenodo", "10.5072/zenodo.7", "7", "https://sandbox.zenodo.org/record/7"),
        ("zenodo", "10.22002/D1.1235", "1235", "https://data.caltech.edu/records/1235"),
        (
            "figshare",
            "10.6084/m9.figshare.9782777",
            "9782777.v3",
            "https://figshare.com/articles/dataset/_/9782777/3",
        ),
        ("figshare", "10.25384/SAGE.7.v2", "7.v2", "https://figshare.com/articles/dataset/_/7/2"),
    ],
)
def test_the_address_of_a_dataset_names_the_version(
    provider: str, spec: str, ref: str, repo_url: str
) -> None:
    repository = pin(provider, spec, ref, hosts=HOSTS)
    assert repository.repo_url == repo_url
    assert repository.content_provider == {"zenodo": "Zenodo", "figshare": "Figshare"}[provider]


_PARTS = st.text(alphabet=string.ascii_letters + string.digits + "-._", min_size=1, max_size=20)


@given(prefix=st.sampled_from(sorted(PROVIDERS)), spec=st.text(max_size=80))
def test_any_spec_is_rejected_or_has_a_name(prefix: str, spec: str) -> None:
    providers = Providers(ProviderSettings(banned_specs={prefix: ["x"]}))
    with suppress(RequestRejected):
        providers.check_allowed(prefix, spec)
        providers.get(prefix).check(spec)
        assert providers.get(prefix).pin(spec, "1.v1").build_slug


@given(
    prefix=st.sampled_from(sorted(PROVIDERS)), spec=st.text(max_size=60), ref=st.text(min_size=1, max_size=20)
)
def test_a_pinned_repository_has_an_address_on_the_web(prefix: str, spec: str, ref: str) -> None:
    try:
        repository = pin(prefix, spec, ref, hosts=HOSTS)
    except RequestRejected:
        return
    assert repository.repo_url.startswith(("https://", "http://", "git://", "ssh://"))
    assert not any(sign.isspace() for sign in repository.repo_url)


@given(url=st.text(max_size=100), ref=st.none() | st.text(max_size=20))
def test_any_pasted_text_becomes_a_spec_or_an_explanation(url: str, ref: str | None) -> None:
    try:
        provider, spec = from_url(url, ref)
    except RequestRejected:
        return
    assert provider in PROVIDERS
    assert spec


@given(groups=st.lists(_PARTS.filter(lambda part: part[0] not in "-."), min_size=1, max_size=5), ref=_PARTS)
def test_a_gitlab_url_of_any_depth_is_its_spec(groups: list[str], ref: str) -> None:
    path = "/".join(["group", *(f"p{part.removesuffix('.git')}" for part in groups)])
    provider, spec = from_url(f"https://gitlab.com/{path}/-/tree/{quote(ref)}")
    assert provider == "gl"
    project, _, version = spec.partition("/")
    assert (unquote(project), unquote(version)) == (path.removesuffix(".git"), ref)
