"""A person's own credentials over the JSON API: a reference for one request of this person, and never a token."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rabbit2docker.client import personal_request_id, personal_secret
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.openapi import document
from rabbit2docker.settings import HubAuth
from tests.contract.test_binder_stream import BUILD, completed
from tests.support.hub_api import Answer, Api
from tests.support.hub_service import MemoryBuilds, serving

GH = {"provider": "gh", "spec": "ada/thesis/HEAD"}
TOKENS = {"ada": "ada-secret", "eve": "eve-secret", "portal": "portal-secret", "root": "root-secret"}
PLANTED = [
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "glpat-0a1b2c3d4e5f6a7b8c9d",
    "0123456789abcdef" * 2 + "01234567",
]
"""Tokens as hosts give them; some have the form of a name in Kubernetes."""


def named(request_id: str, *, tenant: str = "default") -> dict[str, str]:
    """Return what a request says about its credentials."""
    secret = personal_secret(request_id, tenant=tenant, host="github.com", token="x")
    return {"request_id": request_id, "credentials": secret["metadata"]["name"]}


@pytest.fixture
def builds() -> MemoryBuilds:
    builds = MemoryBuilds()
    builds.plan = [*BUILD, completed()]
    return builds


@pytest.fixture
async def api(builds: MemoryBuilds, store: Store) -> AsyncIterator[Api]:
    access: dict[str, Any] = {"auth": "tokens", "tokens": TOKENS, "services": ["portal"], "admins": ["root"]}
    async with serving(builds, store, **access) as viewer:
        yield Api(viewer.address)


async def post(api: Api, client: str, **form: Any) -> Answer:
    return await api.with_token(TOKENS[client]).post("api/builds", {**GH, **form})


async def test_a_person_refers_to_credentials_of_their_own(api: Api, builds: MemoryBuilds) -> None:
    given = named(personal_request_id("ada"))
    answer = await post(api, "ada", **given)
    assert answer.status == 202, answer
    assert answer.json["request_id"] == given["request_id"]
    [asked] = builds.asked
    assert (asked.requester, asked.request_id, asked.credentials) == ("ada", *given.values())


async def test_a_service_refers_to_those_of_the_person_that_it_acts_for(
    api: Api, builds: MemoryBuilds
) -> None:
    given = named(personal_request_id("ada"))
    answer = await post(api, "portal", requester="ada", **given)
    assert answer.status == 202, answer
    [asked] = builds.asked
    assert (asked.requester, asked.credentials) == ("ada", given["credentials"])


@pytest.mark.parametrize(
    ("client", "more"),
    [
        ("eve", {}),
        ("eve", {"requester": "ada"}),
        ("root", {}),
        ("root", {"requester": "ada"}),
        ("portal", {}),
        ("portal", {"requester": "eve"}),
    ],
)
async def test_another_client_cannot_use_the_reference(
    api: Api, builds: MemoryBuilds, client: str, more: dict[str, str]
) -> None:
    answer = await post(api, client, **named(personal_request_id("ada")), **more)
    assert answer.status == 403
    assert builds.asked == []
    assert (await api.with_token(TOKENS["root"]).get("api/builds")).json["builds"] == []


async def test_the_id_of_a_build_cannot_be_taken_over(api: Api, builds: MemoryBuilds) -> None:
    of_ada = named(personal_request_id("ada"))
    build = (await post(api, "ada", **of_ada)).json["id"]
    of_eve = named(personal_request_id("eve"))
    mixed = [
        of_ada,
        {**of_eve, "request_id": of_ada["request_id"]},
        {**of_eve, "credentials": of_ada["credentials"]},
        named("hub-00000000-0-0"),
        {**named(personal_request_id("eve"), tenant="other")},
    ]
    for given in mixed:
        answer = await post(api, "eve", **given)
        assert answer.status == 403, given
        assert of_ada["credentials"] not in answer.text
    assert len(builds.asked) == 1
    assert (await api.with_token(TOKENS["eve"]).get(f"api/builds/{build}")).status == 404


@pytest.mark.parametrize("one", ["request_id", "credentials"])
async def test_neither_is_taken_without_the_other(api: Api, builds: MemoryBuilds, one: str) -> None:
    answer = await post(api, "ada", **{one: named(personal_request_id("ada"))[one]})
    assert (answer.status, builds.asked) == (400, [])
    assert "together" in answer.message


@pytest.mark.parametrize("token", PLANTED)
async def test_a_token_in_the_place_of_a_reference_is_refused_and_left_nowhere(
    api: Api,
    builds: MemoryBuilds,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    token: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    request_id = personal_request_id("ada")
    forms: list[dict[str, Any]] = [
        {"request_id": request_id, "credentials": token},
        {"request_id": request_id, "credentials": f"personal-{token}"},
        {"request_id": token, "credentials": token},
        {"request_id": request_id, "credentials": {"token": token}},
        {"request_id": request_id, "credentials": [token]},
        {"credentials": token},
    ]
    for form in forms:
        answer = await post(api, "ada", **form)
        assert answer.status in (400, 403), form
        assert token not in answer.text
    assert builds.asked == []
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert stored
    assert token.encode() not in stored
    assert token not in caplog.text + "".join(capfd.readouterr())


async def test_a_client_without_a_name_has_no_credentials(builds: MemoryBuilds) -> None:
    async with serving(builds) as viewer:
        answer = await Api(viewer.address).post("api/builds", {**GH, **named(personal_request_id(""))})
    assert (answer.status, builds.asked) == (403, [])


def test_the_document_says_what_is_sent() -> None:
    schema = document("/", HubAuth.TOKENS)["components"]["schemas"]["CreateBuildRequest"]
    assert schema["dependentRequired"] == {"credentials": ["request_id"], "request_id": ["credentials"]}
    assert schema["properties"]["credentials"]["pattern"] == "^personal-[0-9a-f]{40}$"
    assert "never a token" in schema["properties"]["credentials"]["description"]
    assert "personal_request_id" in schema["properties"]["request_id"]["description"]
    assert "anyOf" not in json.dumps([schema["properties"][name] for name in ("credentials", "request_id")])
