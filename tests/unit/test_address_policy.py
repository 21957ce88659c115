"""A request cannot make the service connect to internal addresses, in any spelling."""

import asyncio
import socket

import pytest

from rabbit2docker.consumer.providers import address_policy
from rabbit2docker.consumer.providers.address_policy import AddressPolicy, Target
from rabbit2docker.errors import ProviderUnavailable, RequestRejected
from rabbit2docker.settings import ProviderSettings
from rabbit2docker_schemas.reasons import RejectReason

STRICT = AddressPolicy(ProviderSettings())
OPEN = AddressPolicy(ProviderSettings(allow_private_addresses=True))


INTERNAL_HOSTS = [
    "127.0.0.1", "127.1", "0177.0.0.1", "0x7f.0.0.1", "2130706433", "0x7f000001", "0", "0.0.0.0",
    "１２７.0.0.1", "127。0。0。1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "localhost", "LOCALHOST.", "a.localhost",
    "rabbitmq", "hub.default.svc", "hub.default.svc.cluster.local", "hub.default.svc.example.com",
    "metadata.google.internal", "printer.local", "router.lan",
]  # fmt: skip
MALFORMED_URLS = [
    "file:///etc/passwd", "/etc/passwd", "../a", "ext::sh -c id", "ext::sh", "https::http://example.org/a",
    "ftp://example.org/a", "ssh://git@example.org/a", "git+ssh://example.org/a", "--upload-pack=id", "-oProxyCommand=id",
    "https:/example.org/a", "https:example.org/a", "https:///a", "http://", "https://-example.org/a",
    "https://exa mple.org/a", "https://example.org/\na", "https://example.org\\@127.0.0.1/", "https://%31.example.org/",
    "https://[::1%eth0]/a", "https://[::1/a", "https://example.org:x/a", "https://example.org:99999/a",
    "https://example.org/a/../b", "https://example.org/a/%2E./b", "https://e\u2028x.org/", "",
]  # fmt: skip


def refusal(policy: AddressPolicy, url: str) -> str:
    with pytest.raises(RequestRejected) as caught:
        policy.check(url)
    assert caught.value.reason is RejectReason.REFUSED_URL
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://github.com/a/b", Target("https", "github.com", 443)),
        ("HTTPS://GitHub.COM./a/b.git", Target("https", "github.com", 443)),
        ("http://example.org:8080/a", Target("http", "example.org", 8080)),
        ("git://example.org/a", Target("git", "example.org", 9418)),
        ("https://8.8.8.8/a", Target("https", "8.8.8.8", 443)),
        ("https://[2606:4700::1111]/a", Target("https", "2606:4700::1111", 443)),
        ("https://bücher.example/a", Target("https", "xn--bcher-kva.example", 443)),
    ],
)
def test_public_addresses_are_allowed(url: str, target: Target) -> None:
    assert STRICT.check(url) == target


@pytest.mark.parametrize("host", INTERNAL_HOSTS)
def test_internal_addresses_are_rejected_in_every_spelling(host: str) -> None:
    assert "ask the operator" in refusal(STRICT, f"http://{host}/a/b")


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "[::1]", "localhost", "git.default.svc"])
def test_the_operator_can_allow_internal_addresses(host: str) -> None:
    assert OPEN.check(f"http://{host}/a").scheme == "http"


@pytest.mark.parametrize("policy", [STRICT, OPEN])
@pytest.mark.parametrize("url", MALFORMED_URLS)
def test_a_malformed_or_unsupported_url_is_rejected_under_every_policy(
    policy: AddressPolicy, url: str
) -> None:
    assert refusal(policy, url)


@pytest.mark.parametrize(
    "url", ["https://me:s3cret@example.org/a", "https://s3cret@example.org/a", "http://a@s3cret@example.org/"]
)
def test_credentials_in_a_url_are_rejected_and_not_repeated(url: str) -> None:
    message = refusal(OPEN, url)
    assert "Remove them" in message
    assert "s3cret" not in message


async def test_a_literal_address_resolves_to_itself() -> None:
    assert await STRICT.resolve("https://8.8.8.8/a") == ["8.8.8.8"]


async def test_a_name_that_resolves_to_an_internal_address_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_with(monkeypatch, "93.184.215.14", "127.0.0.1")
    with pytest.raises(RequestRejected, match=r"is at 127\.0\.0\.1") as caught:
        await STRICT.resolve("https://rebound.example.org/a")
    assert caught.value.reason is RejectReason.REFUSED_URL


async def test_the_checked_addresses_are_returned_for_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "93.184.215.14", "93.184.215.14", "2606:4700::1111")
    assert await STRICT.resolve("https://example.org/a") == ["93.184.215.14", "2606:4700::1111"]


async def test_a_link_local_answer_with_an_interface_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "fe80::1%eth0")
    with pytest.raises(RequestRejected, match="fe80::1"):
        await STRICT.resolve("https://example.org/a")


async def test_an_unknown_name_is_rejected_while_a_dns_failure_is_transient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer_with(monkeypatch, error=socket.gaierror(socket.EAI_NONAME, "unknown"))
    with pytest.raises(RequestRejected, match="There is no host") as caught:
        await STRICT.resolve("https://unknown.example.org/a")
    assert caught.value.reason is RejectReason.REPOSITORY_NOT_FOUND
    answer_with(monkeypatch, error=socket.gaierror(socket.EAI_AGAIN, "try again"))
    with pytest.raises(ProviderUnavailable, match="DNS"):
        await STRICT.resolve("https://example.org/a")


@pytest.mark.parametrize("policy", [STRICT, OPEN])
async def test_an_unknown_host_is_looked_up_twice_and_then_rejected_under_every_policy(
    monkeypatch: pytest.MonkeyPatch, policy: AddressPolicy
) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "unknown")
    looks = answer_with(monkeypatch, error=unknown)
    monkeypatch.setattr(address_policy, "SECOND_LOOK_SECONDS", 0.0)
    with pytest.raises(RequestRejected, match=r"There is no host unknown\.example\.org\. Check the address"):
        await policy.resolve("https://unknown.example.org/a")
    assert len(looks) == 2


@pytest.mark.parametrize("policy", [STRICT, OPEN])
async def test_a_host_that_a_second_look_finds_is_used(
    monkeypatch: pytest.MonkeyPatch, policy: AddressPolicy
) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "unknown")
    looks = answer_with(monkeypatch, "93.184.215.14", error=unknown, failures=1)
    monkeypatch.setattr(address_policy, "SECOND_LOOK_SECONDS", 0.0)
    assert await policy.resolve("https://example.org/a") in ([], ["93.184.215.14"])
    assert len(looks) == 2


@pytest.mark.parametrize("policy", [STRICT, OPEN])
async def test_a_failing_name_server_is_waited_for_under_every_policy(
    monkeypatch: pytest.MonkeyPatch, policy: AddressPolicy
) -> None:
    looks = answer_with(monkeypatch, error=socket.gaierror(socket.EAI_AGAIN, "try again"))
    with pytest.raises(ProviderUnavailable, match=r"DNS cannot resolve example\.org"):
        await policy.resolve("https://example.org/a")
    assert len(looks) == 1


async def test_behind_a_proxy_names_are_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, error=AssertionError("asked the name service"))
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    assert await STRICT.resolve("https://example.org/a") == []
    with pytest.raises(RequestRejected, match="ask the operator"):
        await STRICT.resolve("https://127.0.0.1/a")


async def test_a_variable_that_git_ignores_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.org:3128")
    with pytest.raises(RequestRejected, match="inside this network"):
        await STRICT.resolve("http://example.org/a")


def answer_with(
    monkeypatch: pytest.MonkeyPatch,
    *addresses: str,
    error: BaseException | None = None,
    failures: int | None = None,
) -> list[object]:
    """Replace DNS lookups with fixed answers, or `error` for the first `failures` lookups; return those made."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    looks: list[object] = []

    async def getaddrinfo(*asked: object, **__: object) -> list[object]:
        looks.append(asked)
        if error and (failures is None or len(looks) <= failures):
            raise error
        return [(0, 0, 0, "", (address, 443)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return looks
