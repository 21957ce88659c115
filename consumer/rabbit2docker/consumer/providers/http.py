"""The HTTP client that providers and the registry check share."""

from importlib.metadata import PackageNotFoundError, version

import aiohttp

from rabbit2docker.settings import ProviderSettings


def user_agent() -> str:
    """Return the User-Agent header of our requests."""
    try:
        return f"rabbit2docker/{version('rabbit2docker')}"
    except PackageNotFoundError:
        return "rabbit2docker"


def open_session(settings: ProviderSettings) -> aiohttp.ClientSession:
    """Return a session, which the caller closes; call it inside the event loop.

    Proxies are taken from the environment. Cookies are dropped, so that hosts cannot link requests.
    """
    return aiohttp.ClientSession(
        trust_env=True,
        timeout=aiohttp.ClientTimeout(total=settings.timeout),
        headers={"User-Agent": user_agent()},
        cookie_jar=aiohttp.DummyCookieJar(),
    )
