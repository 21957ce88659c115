"""Web pages: the frame of each is made here, what stands in it comes from the JSON API by way of scripts.

Nothing is inline and nothing is from elsewhere, so that the strictest content policy holds.
"""

import hashlib
import os
import re
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from tornado.web import HTTPError

from rabbit2docker.errors import StoreUnavailable
from rabbit2docker.hub.web.auth import Forbidden, HttpError, User
from rabbit2docker.hub.web.base import Handler, HomeHandler, NotFoundHandler
from rabbit2docker.settings import HubAuth

PACKAGE: Final = "rabbit2docker.hub.web"
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_OWN: Final = re.compile(r"(new|builds/[A-Za-z0-9._~%-]+)(\?[^\s#]*)?")
"""Pages beside the first one."""
YEAR_SECONDS: Final = 31_536_000
_TITLES: Final = {
    401: "A token is needed",
    403: "This is not for you",
    404: "There is nothing here",
    405: "This cannot be done here",
    503: "Not at the moment",
}
_WORDS: Final = {
    404: "The address may be wrong, or what was here is forgotten by now.",
    503: "Please try again in a minute.",
}
_ELSE: Final = "Please try again, or tell the operator."


class Assets:
    """Scripts, styles and pictures, in memory; all of them change their address when one of them changes."""

    def __init__(self) -> None:
        """Read them."""
        found = sorted(files(PACKAGE).joinpath("static").iterdir(), key=lambda file: file.name)
        self.contents = {file.name: file.read_bytes() for file in found if _suffix(file.name) in TYPES}
        digest = hashlib.sha256()
        for name, content in self.contents.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self.version = digest.hexdigest()[:16]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1]


@cache
def assets() -> Assets:
    """Return the one set of them."""
    return Assets()


@cache
def templates() -> Environment:
    """Return the templates, read and compiled."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in environment.list_templates():
        environment.get_template(name)
    return environment


def prepare_pages() -> None:
    """Read everything from the disk, so that no viewer waits for it."""
    assets()
    templates()


def hub_address() -> str | None:
    """Return where the JupyterHub has its own pages, as it tells its services; None without one."""
    if public := os.environ.get("JUPYTERHUB_PUBLIC_HUB_URL"):
        return public if public.endswith("/") else f"{public}/"
    if base := os.environ.get("JUPYTERHUB_BASE_URL"):
        return f"{os.environ.get('JUPYTERHUB_HOST', '')}{base}hub/"
    return None


class Page(Handler):
    """What pages have in common."""

    def set_default_headers(self) -> None:
        """Let a page run its own scripts only, stand in no frame, and stay out of shared caches."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Vary", "Accept, Cookie, Authorization")

    @property
    def is_wanted(self) -> bool:
        """Tell whether a page is wanted, not what programs get at the same address."""
        return True

    async def viewer(self) -> User | None:
        """Return who looks; None when they were sent to log in and all is answered. Raises NotAllowed."""
        try:
            return await self.parts.guard.user(self)
        except Forbidden as refusal:
            if refusal.login_url:
                self.redirect(refusal.login_url)
                return None
            if refusal.challenge and _takes_pages(self):
                self._challenge(refusal, refusal.challenge)
                return None
            raise

    def _challenge(self, refusal: Forbidden, challenge: str) -> None:
        """Let the browser ask for a token, at the base: it sends it to what is below the page where it had to."""
        base = self.settings["base_url"]
        if self.request.path == base:
            self.set_header("WWW-Authenticate", challenge)
            self._show_error(401, refusal.message)
        else:
            here = str(self.request.uri).removeprefix(base)
            self.redirect(f"{base}?{urlencode({'next': here})}")

    def show(self, template: str, user: User | None, **values: Any) -> None:
        """Answer with a page."""
        hub = hub_address() if self.parts.settings.hub.auth is HubAuth.JUPYTERHUB else None
        base = self.settings["base_url"]
        # Reading the token sets the cookie that has to come with it.
        token = self.xsrf_token.decode() if user and self.parts.guard.cookie_secret() else ""
        page = templates().get_template(template)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            page.render(
                base=base,
                static=f"{base}static/{assets().version}/",
                hub=hub,
                user=user,
                xsrf=token,
                silence=self.parts.settings.hub.keepalive_seconds,
                version=version("rabbit2docker"),
                **values,
            )
        )

    def write_error(self, status_code: int, **about: Any) -> None:
        """Answer an error with a page."""
        if not self.is_wanted:
            super().write_error(status_code, **about)
            return
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, StoreUnavailable):
            status_code = 503
            self.set_header("Retry-After", "30")
            words = "The record of builds cannot be read at the moment. Please try again in a minute."
        else:
            words = error.message if isinstance(error, HttpError) else _WORDS.get(status_code, _ELSE)
        self._show_error(status_code, words)

    def _show_error(self, status_code: int, words: str) -> None:
        self.set_status(status_code)
        title = _TITLES.get(status_code, "Something went wrong")
        self.show("error.html", None, title=title, words=words, status=status_code)


def _takes_pages(handler: Handler) -> bool:
    return "text/html" in handler.request.headers.get("Accept", "")


class ListPage(Page, HomeHandler):
    """The list of builds; programs still get what this service is, as JSON."""

    @property
    def is_wanted(self) -> bool:
        """Tell a browser from a program."""
        return _takes_pages(self)

    async def get(self) -> None:
        """Show it."""
        if not self.is_wanted:
            await HomeHandler.get(self)
            return
        if not (user := await self.viewer()):
            return
        if _OWN.fullmatch(wanted := self.get_query_argument("next", "")):
            self.redirect(self.settings["base_url"] + wanted)
        else:
            self.show("list.html", user, title="Builds")


class NewPage(Page):
    """Where a build is asked for."""

    async def get(self) -> None:
        """Show it, filled in with what the address says."""
        if user := await self.viewer():
            given = {name: self.get_query_argument(name, "") for name in ("repo", "ref", "subdir")}
            self.show("new.html", user, title="New build", given=given)


class BuildPage(Page):
    """One build."""

    async def get(self, build_id: str) -> None:
        """Show it to who may see it; to others it does not exist."""
        if not (user := await self.viewer()):
            return
        build = await self.parts.records.build(build_id)
        if build is None or not user.can_view(build):
            raise HttpError("There is no such build, it is forgotten by now, or it is somebody else's.", 404)
        self.show("build.html", user, title="Build", build=build)


class StaticHandler(Handler):
    """Scripts, styles and pictures."""

    def get(self, wanted: str, name: str) -> None:
        """Answer with one. Under the address of its version it never changes."""
        content = assets().contents.get(name)
        if content is None:
            raise HTTPError(404)
        is_current = wanted == assets().version
        keep = f"public, max-age={YEAR_SECONDS}, immutable" if is_current else "no-cache"
        self.set_header("Cache-Control", keep)
        self.set_header("Content-Type", TYPES[_suffix(name)])
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(content)


class NotFoundPage(Page, NotFoundHandler):
    """Everything else."""

    @property
    def is_wanted(self) -> bool:
        """Tell a browser from a program."""
        return _takes_pages(self)


PAGE_ROUTES: Final[tuple[tuple[str, type[Handler]], ...]] = (
    ("", ListPage),
    ("new", NewPage),
    ("builds/([^/]+)", BuildPage),
)
"""Paths after the base, for who is known."""
STATIC_ROUTE: Final[tuple[str, type[Handler]]] = ("static/([0-9a-f]+)/([^/]+)", StaticHandler)
