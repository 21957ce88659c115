"""Volumes and the ServiceAccount that an operator gives build pods."""

from typing import Any

import pytest
from pydantic import ValidationError

from rabbit2docker.consumer.executors.base import AttemptStatus
from rabbit2docker.consumer.executors.fetch_access import FetchAccess
from rabbit2docker.consumer.executors.kubernetes.manifest import build_pod
from rabbit2docker.settings import KubernetesSettings, Settings
from rabbit2docker.settings.kubernetes import POD_VOLUMES
from tests.support.records import a_spec

ACCESS = FetchAccess({"login_0": "password=x"}, {"directory": "/git", "ssh_command": None})
AUTHORITY = {"name": "authority", "configMap": {"name": "authority"}}
KEYS = {"name": "keys", "secret": {"secretName": "keys"}}
MOUNTS = [
    {"name": "authority", "mountPath": "/etc/ssl/authority", "readOnly": True},
    {"name": "keys", "mountPath": "/etc/keys"},
]


def pod(*, access: FetchAccess | None = None, **kubernetes: Any) -> Any:
    settings = Settings.model_validate({"kubernetes": kubernetes})
    manifest = build_pod(
        a_spec(),
        AttemptStatus(),
        settings,
        replica="replica-1",
        builder_map="rabbit2docker-builder-0",
        access=access,
        ready_nodes=(),
    )
    return manifest["spec"]


def test_the_cage_has_the_certificate_authority_and_no_volume_that_may_hold_credentials() -> None:
    spec = pod(extra_volumes=[AUTHORITY, KEYS], extra_volume_mounts=MOUNTS)

    assert [volume for volume in spec["volumes"] if volume in (AUTHORITY, KEYS)] == [AUTHORITY, KEYS]
    has = {
        container["name"]: [mount["name"] for mount in container["volumeMounts"] if mount in MOUNTS]
        for container in spec["containers"]
    }
    assert has == {"builder": ["authority", "keys"], "fetch": ["authority", "keys"], "cage": ["authority"]}


def test_a_service_account_is_an_identity_and_no_access_to_the_api_server() -> None:
    spec = pod(service_account="builder")

    assert spec["serviceAccountName"] == "builder"
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod()


def test_names_of_volumes_that_every_pod_has_are_refused() -> None:
    spec = pod(push_secret="push", access=ACCESS)
    assert {volume["name"] for volume in spec["volumes"]} == POD_VOLUMES


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"extra_volumes": [{"name": "git", "emptyDir": {}}]}, "not 'git'"),
        ({"extra_volumes": [{"emptyDir": {}}]}, "not None"),
        ({"extra_volumes": [KEYS, KEYS]}, "not 'keys'"),
        ({"extra_volume_mounts": [{"name": "docker-config", "mountPath": "/x"}]}, "'docker-config'"),
    ],
    ids=["reserved", "nameless", "twice", "mount-of-no-extra-volume"],
)
def test_impossible_volumes_are_refused_at_the_start(values: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        KubernetesSettings.model_validate(values)
