"""Web pages: the server renders the frame of each page, and scripts fill it from the JSON API.

Nothing is inline and nothing is loaded from other hosts, so that a strict Content-Security-Policy holds.
"""

import hashlib
import json
import os
import re
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from tornado.web import HTTPError

from rabbit2docker.errors import StoreUnavailable
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.base import Handler
from rabbit2docker.hub.web.batches import NO_SUCH_BATCH, viewer_of
from rabbit2docker.hub.web.dead_letters import check_admin
from rabbit2docker.hub.web.errors import NO_SUCH_PAGE, RECORDS_UNAVAILABLE, Forbidden, HttpError
from rabbit2docker.own_version import OWN_VERSION
from rabbit2docker.settings import HubAuth
from rabbit2docker_schemas.providers import PROVIDERS

PACKAGE: Final = "rabbit2docker.hub.web"
CONTENT_SECURITY_POLICY: Final = "; ".join(
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
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NEXT: Final = re.compile(r"(new|dead-letters|batches|(?:builds|batches)/[A-Za-z0-9._~%-]+)(\?[^\s#]*)?")
"""Pages to which the list of builds redirects after a login."""
YEAR_SECONDS: Final = 31_536_000
_TITLES: Final = {
    401: "A token is required",
    403: "You do not have access",
    404: "Page not found",
    405: "Method not allowed",
    503: "Service unavailable",
}
_DEFAULT_TITLE: Final = "Something went wrong"
_MESSAGES: Final = {
    404: "Check the address. What was here may also have been deleted after its retention period.",
    503: "Please try again in a minute.",
}
_DEFAULT_MESSAGE: Final = "Please try again, or contact the operator."


class Assets:
    """Scripts, styles and images, in memory; their URLs contain a hash over all of them."""

    def __init__(self) -> None:
        """Read the files."""
        found = sorted(files(PACKAGE).joinpath("static").iterdir(), key=lambda file: file.name)
        self.contents = {file.name: file.read_bytes() for file in found if _suffix(file.name) in MEDIA_TYPES}
        digest = hashlib.sha256()
        for name, content in self.contents.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self.version = digest.hexdigest()[:16]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1]


@cache
def assets() -> Assets:
    """Return the assets, read once."""
    return Assets()


@cache
def templates() -> Environment:
    """Return the templates, compiled once."""
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


def load_pages() -> None:
    """Read all files at start, so that no request waits for the disk."""
    assets()
    templates()


def jupyterhub_url() -> str | None:
    """Return the URL of JupyterHub's own pages from the environment of its services; None without one."""
    if public := os.environ.get("JUPYTERHUB_PUBLIC_HUB_URL"):
        return public if public.endswith("/") else f"{public}/"
    if base := os.environ.get("JUPYTERHUB_BASE_URL"):
        return f"{os.environ.get('JUPYTERHUB_HOST', '')}{base}hub/"
    return None


@cache
def page_providers(hosts: frozenset[tuple[str, str]]) -> str:
    """Return the descriptors of all providers as JSON for scripts, with the configured hosts by provider."""
    chosen = dict(hosts)
    data = [descriptor.as_page_data() for descriptor in PROVIDERS.values()]
    return json.dumps([{**each, "host": chosen.get(each["prefix"], each["host"])} for each in data])


def _wants_html(handler: Handler) -> bool:
    return "text/html" in handler.request.headers.get("Accept", "")


class Page(Handler):
    """The base of all pages."""

    def set_default_headers(self) -> None:
        """Allow own scripts only, forbid framing, and keep the page out of shared caches."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("Vary", "Accept, Cookie, Authorization")

    @property
    def is_html(self) -> bool:
        """Return whether the response is a page, not JSON for a program."""
        return True

    async def authenticated_user(self) -> User | None:
        """Return the user; None once a login was started as the response. Raises Forbidden."""
        try:
            return await self.context.authenticator.user(self)
        except Forbidden as error:
            if error.login_url:
                self.redirect(error.login_url)
                return None
            if error.challenge and _wants_html(self):
                self._challenge(error.message, error.challenge)
                return None
            raise

    def _challenge(self, message: str, challenge: str) -> None:
        """Let the browser ask for a token, at the base URL: it then sends the token to all pages below it."""
        base = self.settings["base_url"]
        if self.request.path == base:
            self.set_header("WWW-Authenticate", challenge)
            self._render_error(401, message)
        else:
            here = str(self.request.uri).removeprefix(base)
            self.redirect(f"{base}?{urlencode({'next': here})}")

    def render_page(self, template: str, user: User | None, **values: Any) -> None:
        """Finish the response with a page."""
        hub = jupyterhub_url() if self.context.settings.hub.auth is HubAuth.JUPYTERHUB else None
        base = self.settings["base_url"]
        # Reading the property sets the cookie that scripts send together with the token.
        token = self.xsrf_token.decode() if user and self.context.authenticator.cookie_secret() else ""
        page = templates().get_template(template)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            page.render(
                base=base,
                static=f"{base}static/{assets().version}/",
                hub=hub,
                user=user,
                xsrf=token,
                keepalive_seconds=self.context.settings.hub.keepalive_seconds,
                providers=page_providers(frozenset(self.context.settings.providers.hosts.items())),
                version=OWN_VERSION,
                **values,
            )
        )

    def write_error(self, status_code: int, **about: Any) -> None:
        """Finish the response with an error page, or with JSON for a program."""
        if not self.is_html:
            super().write_error(status_code, **about)
            return
        _, error, _ = about.get("exc_info", (None, None, None))
        if isinstance(error, StoreUnavailable):
            status_code = 503
            self.set_header("Retry-After", "30")
            message = RECORDS_UNAVAILABLE
        else:
            message = (
                error.message
                if isinstance(error, HttpError)
                else _MESSAGES.get(status_code, _DEFAULT_MESSAGE)
            )
        self._render_error(status_code, message)

    def _render_error(self, status_code: int, message: str) -> None:
        self.set_status(status_code)
        title = _TITLES.get(status_code, _DEFAULT_TITLE)
        self.render_page("error.html", None, title=title, message=message, status=status_code)


class ListPage(Page):
    """The list of builds; programs get the name of the service as JSON."""

    @property
    def is_html(self) -> bool:
        """Return whether the client is a browser."""
        return _wants_html(self)

    async def get(self) -> None:
        """Answer with the page or the JSON."""
        if not (user := await self.authenticated_user()):
            return
        if not self.is_html:
            self._describe(user)
        elif _NEXT.fullmatch(target := self.get_query_argument("next", "")):
            self.redirect(self.settings["base_url"] + target)
        else:
            self.render_page("list.html", user, title="Builds")

    def _describe(self, user: User) -> None:
        if self.context.authenticator.cookie_secret():
            self.xsrf_token  # noqa: B018 - reading it sets the cookie
        build = f"{self.settings['base_url']}build/<provider>/<spec>?build_only=true"
        self.write_json({"service": "rabbit2docker", "user": user.name, "build": build})


class NewPage(Page):
    """The form for a new build."""

    async def get(self) -> None:
        """Answer with the form, filled in from the URL's parameters."""
        if user := await self.authenticated_user():
            given = {name: self.get_query_argument(name, "") for name in ("repo", "ref", "subdir")}
            self.render_page("new.html", user, title="New build", given=given)


class BuildPage(Page):
    """One build."""

    async def get(self, build_id: str) -> None:
        """Answer with the page if the user may see the build, else 404."""
        if not (user := await self.authenticated_user()):
            return
        build = await self.context.records.build(build_id)
        if build is None or not user.can_view(build):
            raise HttpError(
                "There is no such build, or you do not have access to it. Builds are deleted after a retention period.",
                404,
            )
        build = await self.context.streamed.caught_up(build, partial(self.context.records.build, build.id))
        self.render_page("build.html", user, title="Build", build=build)


class BatchesPage(Page):
    """The list of batches."""

    async def get(self) -> None:
        """Answer with the page."""
        if user := await self.authenticated_user():
            self.render_page("batches.html", user, title="Batches")


class BatchPage(Page):
    """One batch."""

    async def get(self, id_: str) -> None:
        """Answer with the page if the user may see any build of the batch, else 404."""
        if user := await self.authenticated_user():
            if not await self.context.records.batches.exists(id_, viewer_of(user)):
                raise HttpError(NO_SUCH_BATCH, 404)
            self.render_page("batch.html", user, title="Batch", batch=id_)


class DeadLettersPage(Page):
    """The dead letters, for administrators."""

    async def get(self) -> None:
        """Answer with the page, or with how to enable it. Raises Forbidden for others."""
        if user := await self.authenticated_user():
            check_admin(user)
            is_enabled = self.context.dead_letters is not None
            self.render_page("dead-letters.html", user, title="Dead letters", is_enabled=is_enabled)


class StaticHandler(Handler):
    """Scripts, styles and images."""

    def get(self, asset_version: str, name: str) -> None:
        """Answer with a file; below the URL of the current version it may be cached indefinitely."""
        content = assets().contents.get(name)
        if content is None:
            raise HTTPError(404)
        is_current = asset_version == assets().version
        caching = f"public, max-age={YEAR_SECONDS}, immutable" if is_current else "no-cache"
        self.set_header("Cache-Control", caching)
        self.set_header("Content-Type", MEDIA_TYPES[_suffix(name)])
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(content)


class NotFoundPage(Page):
    """All other addresses."""

    @property
    def is_html(self) -> bool:
        """Return whether the client is a browser."""
        return _wants_html(self)

    def prepare(self) -> None:
        """Answer 404."""
        self.check_network()
        raise HttpError(NO_SUCH_PAGE, 404)


PAGE_ROUTES: Final[tuple[tuple[str, type[Handler]], ...]] = (
    ("", ListPage),
    ("new", NewPage),
    ("builds/([^/]+)", BuildPage),
    ("batches", BatchesPage),
    ("batches/([^/]+)", BatchPage),
    ("dead-letters", DeadLettersPage),
)
"""Paths below the base URL; they need authentication."""
STATIC_ROUTE: Final[tuple[str, type[Handler]]] = ("static/([0-9a-f]+)/([^/]+)", StaticHandler)
