"""The tenant in a routing key is believed only where no other can have sent the message, dead letters included."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from rabbit2docker.amqp.dead_letters import DeadLetter, read_dead_letter
from rabbit2docker.amqp.senders import ANY_USER, Origin, SenderCheck, publisher_headers
from rabbit2docker_schemas.routing import FORGED

ONE, TWO = "request.one.interactive", "request.two.interactive"
CHECK = SenderCheck({"one": "hub-one"})
NAMES_TWO = {"r2d-routing-key": TWO, "r2d-message-id": "m", "r2d-reason": "unavailable"}


def problem(
    exchange: str,
    key: str,
    queue: str = "builds.requests",
    *,
    user: str | None = None,
    headers: dict[str, Any] | None = None,
    check: SenderCheck = ANY_USER,
) -> str:
    return check.why_forged(Origin(exchange, queue, key, user, headers or {}))


@pytest.mark.parametrize("exchange", ["builds", "builds.entry.one"])
@pytest.mark.parametrize(
    ("key", "queue"),
    [
        (ONE, "builds.requests"),
        ("request.one.bulk", "builds.requests.bulk"),
        ("cancel.one", "builds.cancels"),
    ],
)
def test_a_key_is_believed_from_builds_and_from_the_tenants_own_exchange(
    exchange: str, key: str, queue: str
) -> None:
    assert problem(exchange, key, queue) == ""
    assert problem(exchange, key, "builds.unrouted") == ""


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        ("builds.entry.one", "came through the exchange of the tenant one"),
        ("builds.entry.", "came through the exchange of the tenant"),
        ("builds.entry.two.x", "came through the exchange of the tenant two.x"),
        ("builds.unrouted", "Publish it to builds.entry.two or builds directly"),
        ("builds.results", "Publish it to builds.entry.two or builds directly"),
        ("builds.dlx", "Publish it to builds.entry.two or builds directly"),
        ("hub.two.x", "Publish it to builds.entry.two or builds directly"),
    ],
)
def test_a_key_is_not_believed_from_any_other_exchange(exchange: str, words: str) -> None:
    assert words in problem(exchange, TWO)
    assert words in problem(exchange, TWO, "builds.unrouted")
    assert words in problem(exchange, TWO, headers={"r2d-routing-key": ONE})


@pytest.mark.parametrize("exchange", ["builds", "builds.entry.one", "", "builds.retry"])
def test_a_message_in_a_queue_that_its_key_does_not_lead_to_is_forged(exchange: str) -> None:
    headers = {"r2d-routing-key": ONE}
    assert "where its routing key request.one.interactive does not lead" in problem(
        exchange, ONE, "builds.cancels", headers=headers
    )


@pytest.mark.parametrize("exchange", ["", "builds.retry"])
def test_the_service_s_headers_count_on_its_copies_alone(exchange: str) -> None:
    headers = {"r2d-routing-key": TWO}
    assert Origin(exchange, "builds.requests", "builds.requests", None, headers).routing_key == TWO
    assert problem(exchange, "builds.requests", headers=headers, check=SenderCheck({"two": "hub-two"})) == ""
    assert Origin("builds.entry.one", "builds.requests", ONE, None, headers).routing_key == ONE


def test_a_tenant_with_a_known_user_needs_its_user_id_and_others_may_not_have_it() -> None:
    assert problem("builds", ONE, user="hub-one", check=CHECK) == ""
    assert "must have the user_id hub-one" in problem("builds.entry.one", ONE, check=CHECK)
    assert "published by the user x; messages" in problem("builds", ONE, user="x", check=CHECK)
    assert problem("builds", TWO, check=CHECK) == problem("builds", TWO, user="x", check=CHECK) == ""
    assert "published by the user hub-one." in problem("builds", TWO, user="hub-one", check=CHECK)


def test_a_key_of_no_tenant_is_no_forgery() -> None:
    assert problem("hub.one.x", "request.a.b.c") == ""


def test_copies_lose_headers_that_would_route_them_or_that_only_the_service_sets() -> None:
    headers = {**NAMES_TWO, "CC": ["a"], "BCC": ["b"], "x-death": [], "ce-id": "1", "cc": "kept"}
    assert publisher_headers(headers) == {"ce-id": "1", "cc": "kept"}


def letter(
    headers: dict[str, Any], key: str = ONE, *, are_deaths_trusted: bool = True, user: str | None = None
) -> DeadLetter:
    message: Any = SimpleNamespace(
        exchange="builds.dlx",
        routing_key=key,
        headers=headers,
        body=b"{}",
        message_id="own",
        user_id=user,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return read_dead_letter(message, CHECK, are_deaths_trusted=are_deaths_trusted)


def dropped(exchange: str, **death: object) -> dict[str, Any]:
    own = {"queue": "hub.one.q", "exchange": "builds", "reason": "rejected"}
    of_requests = {"queue": "builds.requests", "exchange": exchange, "reason": "expired", **death}
    return {**NAMES_TWO, "x-death": [own, of_requests]}


def test_a_copy_of_the_service_has_the_service_s_headers() -> None:
    found = letter(NAMES_TWO)
    assert (found.routing_key, found.message_id, found.reason, found.why_kept()) == (
        TWO,
        "m",
        "unavailable",
        "",
    )
    assert "It may be forged. words" in letter({"r2d-reason": FORGED, "r2d-message": "words"}).why_kept()


def test_headers_of_a_publisher_do_not_rename_what_rabbitmq_dropped() -> None:
    found = letter(dropped("builds.entry.one"), user="hub-one")
    assert (found.routing_key, found.message_id, found.reason) == (ONE, "own", "expired")
    assert found.why_kept() == ""
    assert (
        "came through the exchange of the tenant one" in letter(dropped("builds.entry.one"), TWO).why_kept()
    )
    assert "must have the user_id hub-one" in letter(dropped("builds.entry.one")).why_kept()
    for deaths in ([], None, "no list", [None, {"queue": None}]):
        assert letter({**NAMES_TWO, "x-death": deaths}).reason == FORGED


def test_what_was_dropped_on_its_way_back_from_the_ladder_keeps_its_key() -> None:
    found = letter(dropped("", reason="delivery_limit"), "builds.requests")
    assert (found.routing_key, found.message_id, found.reason) == (TWO, "m", "delivery_limit")
    assert found.why_kept() == ""


def test_where_deaths_can_be_forged_a_drop_is_published_again_on_demand_only() -> None:
    found = letter(dropped("builds.entry.one"), user="hub-one", are_deaths_trusted=False)
    assert "--unverified" in found.why_kept()
    assert found.why_kept(unverified=True) == ""
    forged = letter(dropped("builds.entry.one"), TWO, are_deaths_trusted=False)
    assert "may be forged" in forged.why_kept(unverified=True)


def test_a_letter_whose_headers_are_lost_does_not_prove_its_sender() -> None:
    found = letter({**NAMES_TWO, "x-r2d-undecodable": "headers: more than 32 KiB"})
    assert found.routing_key == ONE
    assert "--unverified" in found.why_kept()
    assert letter({"x-r2d-undecodable": "timestamp: not a number of seconds"}).why_kept() == ""
