"""Client addresses, rate limits, build tokens and BinderHub's metrics, without HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from rabbit2docker import metrics
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.errors import ConfigurationError, StoreUnavailable
from rabbit2docker.hub.store.models import Allowance
from rabbit2docker.hub.store.store import Store
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.build_tokens import BuildTokens, InvalidBuildToken, mint, origin_of
from rabbit2docker.hub.web.errors import BannedNetwork, RateLimited
from rabbit2docker.hub.web.limits import (
    Limits,
    client_address,
    format_duration,
    format_period,
    limit_headers,
    read_address,
    read_networks,
)
from rabbit2docker.settings import HubSettings, ProviderSettings
from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.providers import PROVIDERS
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason
from tests.support.hub_service import a_store

SECRET = "5e" * 64
SPEC = "ada/thesis/HEAD"
HERE = "hub.example.org"


class TestClientAddress:
    @pytest.mark.parametrize(
        ("written", "address"),
        [
            ("192.0.2.7", "192.0.2.7"),
            (" 192.0.2.7 ", "192.0.2.7"),
            ("192.0.2.7:51234", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ('"[2001:db8::7]:51234"', "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("fe80::1%eth0", "fe80::1"),
        ],
    )
    def test_every_spelling_of_an_address_by_proxies_is_parsed(self, written: str, address: str) -> None:
        assert str(read_address(written)) == address

    @pytest.mark.parametrize(
        "written",
        [
            "",
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.7:x",
            "192.0.2.7:",
            "[2001:db8::7]x",
            "1.2.3.4/8",
            "٣",
        ],
    )
    def test_an_invalid_address_is_none(self, written: str) -> None:
        assert read_address(written) is None

    @pytest.mark.parametrize(
        ("peer", "forwarded", "who"),
        [
            ("192.0.2.7", [], "192.0.2.7"),
            ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),
            ("127.0.0.1", ["192.0.2.7"], "192.0.2.7"),
            ("::1", ["2001:db8::7"], "2001:db8::7"),
            ("::ffff:127.0.0.1", ["192.0.2.7"], "192.0.2.7"),
            ("127.0.0.1", ["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
            ("127.0.0.1", ["198.51.100.1", "192.0.2.7"], "192.0.2.7"),
            ("127.0.0.1", ["192.0.2.7, 10.0.0.9, 10.0.0.8"], "192.0.2.7"),
            ("127.0.0.1", ["127.0.0.1, 192.0.2.7, 10.0.0.8"], "192.0.2.7"),
            ("127.0.0.1", ["10.0.0.9,10.0.0.8"], "10.0.0.9"),
            ("127.0.0.1", ["192.0.2.7, junk"], "127.0.0.1"),
            ("127.0.0.1", ["192.0.2.7, junk, 10.0.0.8"], "10.0.0.8"),
            ("127.0.0.1", [""], "127.0.0.1"),
            ("127.0.0.1", [",".join(["10.0.0.8"] * 10_000)], "10.0.0.8"),
        ],
    )
    def test_the_client_is_the_last_address_that_is_no_trusted_proxy(
        self, peer: str, forwarded: list[str], who: str
    ) -> None:
        trusted = read_networks(["127.0.0.0/8", "::1/128", "10.0.0.0/8"], "TRUSTED_PROXIES")
        assert str(client_address(peer, forwarded, trusted)) == who

    def test_a_unix_socket_has_no_address(self) -> None:
        assert client_address("", ["192.0.2.7"], read_networks(["0.0.0.0/0"], "TRUSTED_PROXIES")) is None

    @pytest.mark.parametrize("setting", ["ban_networks", "trusted_proxies"])
    def test_invalid_networks_are_named(self, setting: str) -> None:
        wrong = {"10.0.0.1/8": "x", "lab": "y", "192.0.2.0/24": "z"}
        settings = HubSettings.model_validate({setting: wrong if setting == "ban_networks" else list(wrong)})
        with pytest.raises(ConfigurationError) as caught:
            Limits(settings, Counting())
        assert setting.upper() in str(caught.value)
        assert "10.0.0.1/8" in str(caught.value)
        assert "'lab'" in str(caught.value)
        assert "192.0.2.0/24'" not in str(caught.value)


class Counting:
    """A rate limit store in memory that can be unavailable."""

    def __init__(self, left: int = 100, wait: float = 730.0) -> None:
        self.left, self.wait, self.away = left, wait, False
        self.asked: list[str] = []

    async def check_rate(self, who: str, *, limit: int, seconds: float, at: datetime) -> Allowance:
        if self.away:
            raise StoreUnavailable("The database is away.")
        self.asked.append(who)
        self.left -= 1
        reset = at + timedelta(seconds=self.wait)
        return Allowance(allowed=self.left >= 0, limit=limit, remaining=max(0, self.left), reset_at=reset)


ADDRESS = read_address("192.0.2.7")


class TestRateLimit:
    async def test_the_message_names_user_limit_and_waiting_time(self) -> None:
        limits = Limits(HubSettings(), Counting(left=0))
        with pytest.raises(RateLimited) as caught:
            await limits.check_rate(User("ada"), ADDRESS)
        assert caught.value.status_code == 429
        assert caught.value.retry_after == 730
        assert caught.value.message == (
            "Rate limit exceeded. You (ada) have requested 300 builds within an hour, which is the limit. "
            "Try again in 13 minutes."
        )

    async def test_a_request_without_a_name_counts_for_its_address(self) -> None:
        counting = Counting(left=0)
        limits = Limits(HubSettings(requests_per_address=1, requests_period_seconds=20), counting)
        with pytest.raises(RateLimited) as caught:
            await limits.check_rate(User(None, admin=True), ADDRESS)
        words = "Your address (192.0.2.7) has requested 1 build within 20 seconds, which is the limit."
        assert words in caught.value.message

    async def test_an_ipv6_network_counts_as_one_client_and_names_are_kept_apart(self) -> None:
        counting = Counting()
        limits = Limits(HubSettings(), counting)
        for address in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", "2001:db8:0:2::1"):
            await limits.check_rate(User(None), read_address(address))
        await limits.check_rate(User("192.0.2.7"), ADDRESS)
        await limits.check_rate(User(None), ADDRESS)
        limits = Limits(HubSettings(requests_per_service=5), counting)
        await limits.check_rate(User("192.0.2.7", is_service=True), ADDRESS)
        assert counting.asked == [
            "address:2001:db8:0:1::/64",
            "address:2001:db8:0:1::/64",
            "address:2001:db8:0:2::/64",
            "user:192.0.2.7",
            "address:192.0.2.7",
            "service:192.0.2.7",
        ]

    async def test_admins_and_clients_without_an_address_are_not_counted(self) -> None:
        counting = Counting(left=0)
        limits = Limits(HubSettings(), counting)
        assert await limits.check_rate(User("root", admin=True), ADDRESS) is None
        assert await limits.check_rate(User(None), None) is None
        assert not counting.asked

    @pytest.mark.parametrize(
        ("user", "limit"),
        [
            (User("ada"), 30),
            (User("ci", is_service=True), 20),
            (User(None), 10),
            (User(None, admin=True), 10),
        ],
    )
    async def test_people_services_and_addresses_have_limits_of_their_own(
        self, user: User, limit: int
    ) -> None:
        settings = HubSettings(requests_per_user=30, requests_per_service=20, requests_per_address=10)
        left = await Limits(settings, Counting()).check_rate(user, ADDRESS)
        assert left is not None
        assert left.limit == limit

    async def test_a_limit_of_zero_is_no_limit(self) -> None:
        counting = Counting(left=0)
        assert await Limits(HubSettings(requests_per_user=0), counting).check_rate(User("a"), ADDRESS) is None
        assert not counting.asked

    async def test_an_unavailable_database_allows_the_request(self) -> None:
        counting = Counting(left=0)
        counting.away = True
        assert await Limits(HubSettings(), counting).check_rate(User("ada"), ADDRESS) is None

    async def test_requests_do_not_count_while_rabbitmq_is_down(self) -> None:
        counting, away = Counting(left=1), True
        limits = Limits(HubSettings(), counting, lambda: away)
        for _ in range(3):
            assert await limits.check_rate(User("ada"), ADDRESS) is None
        away = False
        left = await limits.check_rate(User("ada"), ADDRESS)
        assert left is not None
        assert left.remaining == 0

    def test_the_reset_is_in_seconds_since_1970(self) -> None:
        at = datetime.fromtimestamp(1_790_000_000.2, UTC)
        left = Allowance(allowed=True, limit=60, remaining=59, reset_at=at)
        assert dict(limit_headers(left)) == {
            "X-RateLimit-Limit": "60",
            "X-RateLimit-Remaining": "59",
            "X-RateLimit-Reset": "1790000001",
        }

    def test_banned_networks_are_refused_with_their_label(self) -> None:
        limits = Limits(
            HubSettings(ban_networks={"192.0.2.0/24": "the lab", "2001:db8::/32": "v6"}), Counting()
        )
        with pytest.raises(BannedNetwork) as caught:
            limits.check_network(ADDRESS)
        assert (caught.value.message, caught.value.status_code) == (
            "Requests from the lab are not allowed",
            403,
        )
        with pytest.raises(BannedNetwork):
            limits.check_network(read_address("2001:db8::1"))
        with pytest.raises(BannedNetwork):
            limits.check_network(read_address("::ffff:192.0.2.1"))
        limits.check_network(read_address("198.51.100.1"))
        limits.check_network(None)

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "1 second"),
            (44.1, "45 seconds"),
            (59.5, "1 minute"),
            (61, "2 minutes"),
            (719, "12 minutes"),
            (7140, "119 minutes"),
            (7141, "2 hours"),
            (36_000, "10 hours"),
            (200_000, "3 days"),
        ],
    )
    def test_durations_are_rounded_up(self, seconds: float, words: str) -> None:
        assert format_duration(seconds) == words

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (3600, "an hour"),
            (86_400, "a day"),
            (60, "a minute"),
            (7200, "2 hours"),
            (5400, "90 minutes"),
            (0.5, "0.5 seconds"),
        ],
    )
    def test_periods_are_formatted_for_people(self, seconds: float, words: str) -> None:
        assert format_period(seconds) == words


def test_forms_are_offered_exactly_the_providers_of_the_consumer() -> None:
    assert sorted(PROVIDERS) == sorted(Providers(ProviderSettings())._providers)


def made_elsewhere(
    *, key: str = SECRET, algorithm: str = "HS256", leave_out: str | None = None, **claims: Any
) -> str:
    """Return a token that BinderHub's own web page could have made."""
    whole = {
        "exp": int(time.time()) + 300,
        "aud": f"gh/{SPEC}",
        "origin": HERE,
        **claims,
    }
    whole = {name: claim for name, claim in whole.items() if name != leave_out}
    return jwt.encode(whole, key=bytes.fromhex(key) if algorithm != "none" else "", algorithm=algorithm)


class TestBuildTokens:
    def test_a_token_made_by_binderhub_is_valid(self) -> None:
        BuildTokens(HubSettings.model_validate({"build_token_secret": SECRET}).build_token_secret).check(
            made_elsewhere(), "gh", SPEC, HERE
        )

    def test_a_token_made_here_can_be_decoded_by_binderhub(self) -> None:
        token = mint(SECRET, "gh", SPEC, origin=HERE)
        read = jwt.decode(token, key=bytes.fromhex(SECRET), audience=f"gh/{SPEC}", algorithms=["HS256"])
        assert (read["aud"], read["origin"]) == (f"gh/{SPEC}", HERE)
        assert 0 < read["exp"] - time.time() <= 300

    @pytest.mark.parametrize(
        "wrong",
        [
            {"exp": int(time.time()) - 10},
            {"aud": "gh/ada/notes/HEAD"},
            {"aud": f"git/{SPEC}"},
            {"origin": "evil.example.org"},
            {"origin": None},
            {"key": "00" * 32},
            {"algorithm": "none"},
            {"algorithm": "HS512"},
            {"leave_out": "exp"},
            {"leave_out": "aud"},
            {"leave_out": "origin"},
        ],
    )
    def test_a_token_with_wrong_claims_is_invalid(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidBuildToken):
            _tokens().check(made_elsewhere(**wrong), "gh", SPEC, HERE)

    @pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.é.é", "\0", "..."])
    def test_a_malformed_token_is_invalid(self, token: str) -> None:
        with pytest.raises(InvalidBuildToken):
            _tokens().check(token, "gh", SPEC, HERE)

    def test_escapes_in_the_spec_of_a_token_are_kept(self) -> None:
        spec = "https%3A%2F%2Fgit.example.org%2Fx/main"
        _tokens().check(mint(SECRET, "git", spec, origin=HERE), "git", spec, HERE)
        with pytest.raises(InvalidBuildToken):
            _tokens().check(
                mint(SECRET, "git", spec, origin=HERE), "git", "https://git.example.org/x/main", HERE
            )

    def test_without_a_secret_no_token_is_valid(self) -> None:
        with pytest.raises(InvalidBuildToken):
            BuildTokens(None).check(made_elsewhere(), "gh", SPEC, HERE)

    @pytest.mark.parametrize("secret", ["", "hello", "5e" * 31, "xy" * 32])
    def test_an_invalid_secret_is_a_configuration_error_that_does_not_show_it(self, secret: str) -> None:
        settings = HubSettings.model_validate({"build_token_secret": secret})
        with pytest.raises(ConfigurationError, match="BUILD_TOKEN_SECRET") as caught:
            BuildTokens(settings.build_token_secret)
        assert not secret or secret not in str(caught.value)

    @pytest.mark.parametrize(
        ("headers", "origin"),
        [
            ({"Host": "hub.example.org"}, "hub.example.org"),
            ({"Host": "inside:8000", "Origin": "https://hub.example.org"}, "hub.example.org"),
            ({"Host": "x", "Origin": "http://hub.example.org:8000"}, "hub.example.org:8000"),
            ({"Host": "x", "Origin": "null"}, ""),
            ({}, ""),
        ],
    )
    def test_the_origin_is_that_of_the_page_or_else_the_host(
        self, headers: dict[str, str], origin: str
    ) -> None:
        assert origin_of(headers) == origin

    def test_a_token_without_an_origin_is_invalid(self) -> None:
        with pytest.raises(InvalidBuildToken):
            _tokens().check(made_elsewhere(origin=""), "gh", SPEC, "")


def _tokens() -> BuildTokens:
    return BuildTokens(HubSettings.model_validate({"build_token_secret": SECRET}).build_token_secret)


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def build_id(name: str) -> str:
    return ids.build_id_of("default", f"r-{name}")


class TestBinderHubMetrics:
    """Builds are counted in BinderHub's own metrics."""

    AT = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def accepted(self, build: str, **more: Any) -> Event:
        data = events.Accepted(
            **{
                "request_id": f"r-{build}",
                "build_id": build_id(build),
                "build_name": "build-x",
                "provider": "gh",
                "spec": SPEC,
                "resolved_ref": "0123",
                "repo_url": "https://x",
                "image": "r/x:0123",
                **more,
            }
        )
        return Event(ids.request_event_id("default", data.request_id, "accepted"), "default", self.AT, data)

    def end(self, build: str, kind: str = "completed", seconds: float = 90.0) -> Event:
        reason = FailureReason.BUILD_STEP_FAILED
        data: events.AnyEventData
        if kind == "completed":
            data = events.Completed(
                build_id=build_id(build), image="x", digest="sha256:1", resolved_ref="0123"
            )
        elif kind == "failed":
            data = events.Failed(
                build_id=build_id(build),
                reason=reason,
                category=CATEGORY_OF[reason],
                message="",
                hint=HINT_OF[reason],
                attempt=1,
            )
        else:
            data = events.Cancelled(build_id=build_id(build), by="ada", attempt=1)
        at = self.AT + timedelta(seconds=seconds)
        return Event(ids.terminal_event_id(build_id(build)), "default", at, data)

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        async with a_store(tmp_path) as store:
            yield store

    @pytest.mark.parametrize(
        ("kind", "status"), [("completed", "success"), ("failed", "failure"), ("cancelled", "cancelled")]
    )
    async def test_a_build_counts_once_across_redeliveries_and_instances(
        self, store: Store, tmp_path: Path, kind: str, status: str
    ) -> None:
        count = ("binderhub_build_count_total", {"status": status, "provider": "GitHub"})
        bucket = ("binderhub_build_time_seconds_bucket", {"status": status, "le": "120.0"})
        smaller = ("binderhub_build_time_seconds_bucket", {"status": status, "le": "60.0"})
        before = [value(name, **labels) for name, labels in (count, bucket, smaller)]
        joined = self.accepted("one", request_id="r2", attached=True)
        await store.put([self.accepted("one"), joined])
        assert await store.running_count() == 1
        async with a_store(tmp_path) as other:
            await asyncio.gather(*(each.put([self.end("one", kind)]) for each in (store, other)))
            await other.put([self.accepted("one"), joined, self.end("one", kind)])
        assert await store.running_count() == 0
        after = [value(name, **labels) for name, labels in (count, bucket, smaller)]
        assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 0]

    async def test_an_end_that_arrives_before_the_acceptance_is_counted(self, store: Store) -> None:
        before = value("binderhub_build_time_seconds_sum", status="success")
        await store.put([self.end("early", seconds=500)])
        await store.put([self.accepted("early")])
        assert value("binderhub_build_time_seconds_sum", status="success") == before + 500

    async def test_a_cached_image_does_not_count_as_a_build(self, store: Store) -> None:
        before = value("binderhub_build_count_total", status="success", provider="GitHub")
        await store.put([self.accepted("two", cached=True)])
        assert await store.running_count() == 0
        await store.put([self.end("two")])
        assert value("binderhub_build_count_total", status="success", provider="GitHub") == before

    async def test_an_unknown_provider_has_the_label_other(self, store: Store) -> None:
        before = value("binderhub_build_count_total", status="success", provider="other")
        await store.put([self.accepted("three", provider="of-tomorrow"), self.end("three")])
        assert value("binderhub_build_count_total", status="success", provider="other") == before + 1

    async def test_past_builds_that_an_empty_store_catches_up_with_are_not_counted(
        self, store: Store
    ) -> None:
        before = value("binderhub_build_count_total", status="success", provider="GitHub")
        store.metrics.begin(since=self.AT + timedelta(hours=1))
        await store.put([self.accepted("old"), self.end("old")])
        await store.put([self.accepted("new"), self.end("new", seconds=4000)])
        assert value("binderhub_build_count_total", status="success", provider="GitHub") == before + 1
