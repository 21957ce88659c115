"""The hook by which KubeSpawner gives a user's pod the pull Secret of the tenant whose image it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbit2docker.client import PullSecrets
from rabbit2docker.consumer.images.names import image_name
from rabbit2docker.consumer.images.tenants import TenantImages
from rabbit2docker.settings import Settings

COMMON: Final = "registry.example.org:5000/hub/r2d_"
OWN: Final = "registry.example.org/Beta/r2d-"
REF: Final = "0123456789" * 4
SECRETS: Final = {"default": "pull-default", "alpha": "pull-alpha", "beta": "pull-beta"}
SETTINGS: Final = Settings.model_validate(
    {
        "images": {"prefix": COMMON},
        "tenants": {
            "default": {},
            "alpha": {},
            "beta": {"images": {"prefix": OWN}},
            "gamma": {},
            "shares": {"images": {"prefix": COMMON}},
        },
    }
)
IMAGES: Final = TenantImages(SETTINGS)
HOOK: Final = PullSecrets(SECRETS, prefix=COMMON, prefixes={"beta": OWN})
# A hub's configuration, and what KubeSpawner does between a user's choice and the request to create the pod.
SPAWN: Final = """
import asyncio, json, sys
from kubernetes_asyncio.client import ApiClient
from kubespawner import KubeSpawner
from traitlets.config import Config
from jupyterhub.utils import maybe_future
from rabbit2docker.client import PullSecrets

async def spawn(image, secrets):
    c = Config()
    c.KubeSpawner.modify_pod_hook = PullSecrets({"alpha": "pull-alpha"}, prefix="registry.example.org/hub/r2d-")
    c.KubeSpawner.image_pull_secrets = secrets
    c.KubeSpawner.init_containers = [{"name": "first", "image": "busybox"}]
    c.KubeSpawner.profile_list = [{"display_name": "Any", "slug": "any", "default": True, "profile_options": {
        "image": {"display_name": "Image", "choices": {"none": {"display_name": "-", "kubespawner_override": {}}},
                  "unlisted_choice": {"enabled": True, "display_name": "Image",
                                      "kubespawner_override": {"image": "{value}"}}}}}]
    spawner = KubeSpawner(config=c, _mock=True)
    spawner.user_options = {"profile": "any", "image--unlisted-choice": image}
    await spawner.load_user_options()
    pod = await spawner.get_pod_manifest()
    pod = await maybe_future(spawner.modify_pod_hook(spawner, pod))
    return ApiClient().sanitize_for_serialization(pod)

async def main():
    return [await spawn(*each) for each in json.loads(sys.argv[1])]

print(json.dumps(asyncio.run(main())))
"""


def name(tenant: str, slug: str, *, is_private: bool = False) -> str:
    return image_name(IMAGES.prefix(tenant, is_private=is_private), slug, REF)


@pytest.mark.parametrize("ending", ["", "@sha256:" + "0" * 64])
@pytest.mark.parametrize("tenant", SECRETS)
def test_an_image_has_the_secret_of_its_tenant(tenant: str, ending: str) -> None:
    for is_private in (False, True):
        image = name(tenant, "owner/repository", is_private=is_private) + ending
        assert HOOK.of_image(image) == [SECRETS[tenant]]


@given(st.sampled_from(sorted(SETTINGS.tenants)), st.text(min_size=1, max_size=40), st.booleans())
def test_no_image_has_the_secret_of_another_tenant(tenant: str, slug: str, is_private: bool) -> None:
    image = name(tenant, f"x{slug}", is_private=is_private)
    shared = "default" if tenant == "shares" and not is_private else tenant
    assert HOOK.of_image(image) == ([SECRETS[shared]] if shared in SECRETS else [])


@pytest.mark.parametrize(
    "image", ["", "busybox", "registry.example.org/hub/r2d-x", COMMON, f"evil.example/{COMMON}x:1"]
)
def test_other_images_have_none(image: str) -> None:
    assert HOOK.of_image(image) == []


def test_without_a_prefix_every_image_would_be_the_default_tenants() -> None:
    with pytest.raises(ValueError, match=r"images\.prefix"):
        PullSecrets(SECRETS, prefix="")


def spawned(directory: Path, *pods: tuple[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the pods that KubeSpawner would create for images that users choose."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "none", "cluster": {"server": "https://cluster.invalid"}}],
        "users": [{"name": "hub", "user": {"token": "x"}}],
        "contexts": [{"name": "hub", "context": {"cluster": "none", "user": "hub"}}],
        "current-context": "hub",
    }
    (directory / "kubeconfig").write_text(json.dumps(config))
    result = subprocess.run(
        [sys.executable, "-c", SPAWN, json.dumps(pods)],
        env={**os.environ, "KUBECONFIG": str(directory / "kubeconfig")},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.returncode, result.stderr
    made: list[dict[str, Any]] = json.loads(result.stdout)
    return made


def test_pods_of_the_real_spawner_have_the_secret(tmp_path: Path) -> None:
    ours = "registry.example.org/hub/r2d-alpha.owner-2drepo-0a1b2c:abc"
    pods = spawned(
        tmp_path,
        (ours, []),
        (ours, ["of-all"]),
        (ours, [{"name": "pull-alpha"}]),
        ("registry.example.org/hub/r2d-beta.owner-2drepo-0a1b2c:abc", ["of-all"]),
    )
    assert [pod["spec"]["containers"][0]["image"] for pod in pods[:3]] == [ours] * 3
    assert [pod["spec"].get("imagePullSecrets", []) for pod in pods] == [
        [{"name": "pull-alpha"}],
        [{"name": "of-all"}, {"name": "pull-alpha"}],
        [{"name": "pull-alpha"}],
        [{"name": "of-all"}],
    ]
