"""No tenant is answered with an image of another, unless the operator says that they share."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.consumer.breakers import Breakers
from rabbit2docker.consumer.images.names import image_name
from rabbit2docker.consumer.images.tenants import TenantImages, TenantRegistries
from rabbit2docker.errors import ConfigurationError
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.routing import TENANT_PATTERN

COMMON = "registry.example/hub/r2d-"
REF = "0" * 40


def images(**prefixes: str | None) -> TenantImages:
    tenants = {name: {"images": {"prefix": prefix}} for name, prefix in prefixes.items()}
    return TenantImages(Settings.model_validate({"images": {"prefix": COMMON}, "tenants": tenants}))


def test_the_default_tenant_keeps_binderhubs_names_and_others_have_names_of_their_own() -> None:
    made = images(default=None, alpha=None)
    assert made.prefix("default") == made.prefix("default", is_private=True) == COMMON
    assert made.prefix("alpha") == made.prefix("alpha", is_private=True) == f"{COMMON}alpha."
    assert made.prefix("unknown") == f"{COMMON}unknown."


def test_tenants_that_share_do_so_for_public_repositories_alone() -> None:
    made = images(default=None, alpha=COMMON, beta="registry.example/beta/r2d-")
    assert made.prefix("alpha") == made.prefix("default") == COMMON
    assert made.prefix("alpha", is_private=True) == f"{COMMON}alpha."
    assert made.prefix("default", is_private=True) == f"{COMMON}default."
    assert made.prefix("beta", is_private=True) == made.prefix("beta") == "registry.example/beta/r2d-"


@pytest.mark.parametrize(
    "prefix", [f"{COMMON}b", f"{COMMON}b_", COMMON.replace("r2d-", "R2D_b-"), COMMON[:-2]]
)
def test_a_prefix_that_a_repository_could_continue_to_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="could get the image name of one of"):
        images(default=None, alpha=prefix)


# Slugs are whatever the requester chooses.
@given(
    st.tuples(st.from_regex(TENANT_PATTERN, fullmatch=True), st.text(min_size=1, max_size=40)),
    st.tuples(st.from_regex(TENANT_PATTERN, fullmatch=True), st.text(min_size=1, max_size=40)),
)
def test_no_two_tenants_have_the_same_name_whatever_they_ask_for(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    made = images(default=None)
    names = {
        tenant: made.prefix(tenant) + image_name("", f"x{slug}", REF).partition(":")[0]
        for tenant, slug in (first, second)
    }
    assert len(names) == len(set(names.values()))


async def test_a_tenant_looks_images_up_with_its_own_account(tmp_path: Path) -> None:
    for name in ("common", "alpha"):
        (tmp_path / name).mkdir()
        auths = {"registry.example": {"username": name, "password": "secret"}}
        (tmp_path / name / "config.json").write_text(json.dumps({"auths": auths}))
    settings = Settings.model_validate(
        {
            "docker": {"config": tmp_path / "common"},
            "tenants": {"alpha": {"docker_config": tmp_path / "alpha"}, "beta": {}},
        }
    )
    session: Any = None
    registries = TenantRegistries(session, settings, Breakers())
    for tenant, account in {"alpha": "alpha", "beta": "common", "unknown": "common"}.items():
        registry = registries._own.get(tenant, registries._common)
        found = await registry._config.credentials("registry.example")
        assert found
        assert found.username == account
