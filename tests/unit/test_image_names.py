"""Image and build names are identical to BinderHub's; options add a suffix."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.images.names import build_name, image_name, options_digest
from rabbit2docker.errors import RequestRejected
from rabbit2docker_schemas.reasons import RejectReason

PREFIX = "quay.io/org/pfx-"
SHA = "38e50c71130fcf56655685f0992f4f125bef3879"
OPTIONS = options_digest(subdir="docs")
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.mark.parametrize(
    ("slug", "ref", "name"),
    [
        ("jupyterhub-zero-to-jupyterhub-k8s", SHA, "jupyterhub-2dzero-2dto-2djupyterhub-2dk8s-b3e028"),
        ("8a658f7f63b13768d1e75fa2464f5092", SHA, "8a658f7f63b13768d1e75fa2464f5092-ae58b0"),
        (
            "https://github.com/jupyterhub/zero-to-jupyterhub-k8s",
            "ada2170a2181ae1760d85eab74e5264d0c6bb67f",
            "https-3a-2f-2fgithub-2ecom-2fjupyterhub-2fzero-2dto-2djupyterhub-2dk8s-e903f9",
        ),
        ("gitlab_-org-gitlab_-foss", SHA, "gitlab-5f-2dorg-2dgitlab-5f-2dfoss-a53a80"),
        ("zenodo-3242074", "3242074", "zenodo-2d3242074-b993d2"),
        ("figshare-9782777.v3", "9782777.v3", "figshare-2d9782777-2ev3-cf7eea"),
        ("dataverse-dvn-2ftjclkp", "3035124.v3.0", "dataverse-2ddvn-2d2ftjclkp-a1371f"),
        ("ckan-my-sample-dataset-001", "1", "ckan-2dmy-2dsample-2ddataset-2d001-5226f9"),
    ],
)
def test_an_image_name_is_identical_to_binderhubs(slug: str, ref: str, name: str) -> None:
    assert image_name(PREFIX, slug, ref) == f"{PREFIX}{name}:{ref}"


def test_underscores_and_capitals_of_the_prefix_are_replaced_as_in_binderhub() -> None:
    name = image_name("Registry.example.org:5000/My_Org/R2D-", "a-b", "1.V2_x")
    assert name.startswith("registry.example.org:5000/my-org/r2d-a-2db-")
    assert name.endswith(":1.v2-x")


def test_a_build_name_is_the_escaped_slug_its_hash_and_the_short_version() -> None:
    assert re.fullmatch(
        r"build-jupyterhub-2dzero-2dto-2djupyterhub-2dk8s-b3e028-38e-[0-9a-f]{2}",
        build_name("jupyterhub-zero-to-jupyterhub-k8s", SHA),
    )


def test_long_slugs_are_cut_and_distinguished_by_their_hash() -> None:
    names = {build_name("a" * 100 + end, SHA) for end in "xyz"}
    images = {image_name(PREFIX, "a" * 300 + end, SHA) for end in "xyz"}
    assert len(names) == len(images) == 3
    assert {len(name) for name in names} == {63}
    assert {len(image.rpartition(":")[0]) for image in images} == {255}


@given(slug=st.text(min_size=1).filter(lambda text: text.isprintable()), ref=st.text("abc.-_XY0", min_size=1))
def test_every_build_name_is_a_dns_label(slug: str, ref: str) -> None:
    for options in (None, OPTIONS):
        assert DNS_LABEL.fullmatch(build_name(slug, ref, options_digest=options))


def test_different_options_never_share_a_name() -> None:
    digests = [
        options_digest(**options)
        for options in (
            {"subdir": "docs"},
            {"subdir": "docs2"},
            {"appendix": "docs"},
            {"labels": {"docs": "1"}},
            {"build_args": {"docs": "1"}},
            {"build_args": {"docs": "2"}},
        )
    ]
    assert len({image_name(PREFIX, "a", SHA, options_digest=digest) for digest in [*digests, None]}) == 7
    assert len({build_name("a", SHA, options_digest=digest) for digest in [*digests, None]}) == 7


def test_the_order_of_options_and_empty_options_do_not_change_a_name() -> None:
    assert options_digest(subdir=None, build_args={}, labels={}, appendix=None) is None
    assert options_digest(labels={"a": "1", "b": "2"}) == options_digest(labels={"b": "2", "a": "1"})


@pytest.mark.parametrize(
    ("prefix", "slug", "ref", "advice"),
    [
        ("r/" + "x" * 250, "a", SHA, "shorten"),
        ("quay.io/org/", "_a", SHA, "image prefix"),
        ("quay.io//org/", "a", SHA, "image prefix"),
        (PREFIX, "a", "feature/x", "simpler name"),
        (PREFIX, "a", "v" * 129, "simpler name"),
        (PREFIX, "a", "", "simpler name"),
        (PREFIX, "a", "ü", "simpler name"),
    ],
)
def test_a_name_that_no_registry_accepts_is_rejected_with_advice(
    prefix: str, slug: str, ref: str, advice: str
) -> None:
    with pytest.raises(RequestRejected, match=advice) as caught:
        image_name(prefix, slug, ref)
    assert caught.value.reason is RejectReason.INVALID_IMAGE_NAME
