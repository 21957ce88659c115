"""Parses the API's requests for builds."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from pydantic import Field, ValidationError

from rabbit2docker.errors import RequestRejected
from rabbit2docker.hub.store.models import Build, BuildState
from rabbit2docker.hub.web.auth import User
from rabbit2docker.hub.web.errors import Forbidden, HttpError, UnknownProvider
from rabbit2docker.repository_urls import from_url
from rabbit2docker_schemas.personal_secrets import is_request_id_of, personal_secret_name
from rabbit2docker_schemas.providers import PROVIDERS, in_words
from rabbit2docker_schemas.requests import KEEP_CACHE, BuildRequest, Force, Message
from rabbit2docker_schemas.validation_messages import describe

OPTIONS: Final = ("force", "subdir", "build_args", "labels", "appendix", "timeout_seconds")
"""Fields that are passed on to the consumer unchanged."""
_PASSWORD = re.compile(r"://[^/?#]*@")
_LOGIN_NAME = re.compile(r"ssh://[\w-]+@")


class CreateBuildRequest(Message):
    """A build, by provider and spec or by a repository's URL; all other fields as in the request message."""

    provider: str | None = None
    spec: str | None = None
    url: str | None = None
    """Address of a repository or dataset as people paste it: also of a branch, commit, file, pull or merge request at
    GitHub and GitLab, or a DOI."""
    requester: str | None = None
    """The person that a service requests the build for; the build counts and is listed as that person's."""
    ref: str | None = None
    """With `url`: branch, tag or commit. Default: the one that the URL names, else HEAD."""
    force: Force = False
    subdir: str | None = None
    build_args: dict[str, str] = Field(default={})
    labels: dict[str, str] = Field(default={})
    appendix: str | None = None
    timeout_seconds: int | None = None
    credentials: str | None = None
    """Name of a Secret with the requester's own credentials for this request, never a token: `personal_secret` of
    rabbit2docker.client makes the Secret for the `request_id`."""
    request_id: str | None = None
    """With `credentials`: the id that the Secret is for, which `personal_request_id` of rabbit2docker.client makes for the
    requester: `person-`, 32 random hexadecimal digits, `-`, and the first 40 hexadecimal digits of the SHA-256 of these 32, a
    slash, and the requester's name. A build of this id that exists is not requested again."""


def read_create_request(body: bytes, *, user: User, hosts: Mapping[str, str], tenant: str) -> BuildRequest:
    """Parse a body. Raises HttpError that lists everything that is wrong."""
    form = _create_request(body)
    requester = user.acting_for(form.requester).name
    _check_credentials(form, requester, tenant)
    if (form.url is None) == (form.provider is None) or (form.spec is None) == (form.provider is not None):
        raise HttpError("Name either `provider` and `spec`, or the `url` of a repository.", 400)
    provider, spec = form.provider, form.spec
    if form.url is not None:
        try:
            provider, spec = from_url(form.url, form.ref or None, hosts=hosts)
        except RequestRejected as error:
            raise HttpError(error.message, 400) from error
    elif form.ref is not None:
        raise HttpError("`ref` goes with `url`; with `provider` it is the last part of `spec`.", 400)
    check_password(spec or "")
    options = {name: getattr(form, name) for name in OPTIONS if name in form.model_fields_set}
    own = {"request_id": form.request_id, "credentials": form.credentials}
    return _validate(provider=provider, spec=spec, requester=requester, **options, **own)


def _check_credentials(form: CreateBuildRequest, requester: str | None, tenant: str) -> None:
    """Raise HttpError if the request refers to credentials that are not its requester's, for this very request.

    The id of the request follows from the person, and the name of the Secret from the id: what is another person's, or a
    token, has another form. Nothing of it is repeated in a message.
    """
    if form.credentials is None and form.request_id is None:
        return
    if form.credentials is None or form.request_id is None:
        raise HttpError("Send `credentials` and `request_id` together, or neither.", 400)
    if requester is None:
        raise Forbidden("Credentials are a person's: they need a client with a name. Log in first.", 403)
    _validate(provider="gh", spec="-", request_id=form.request_id, credentials=form.credentials)
    if not is_request_id_of(form.request_id, requester):
        raise Forbidden(
            "This `request_id` was not made for the requester. Make one with `personal_request_id`, and the Secret for it.",
            403,
        )
    if form.credentials != personal_secret_name(tenant, form.request_id):
        raise Forbidden(
            "These `credentials` are not those of this request: they are for another `request_id`, or another tenant.",
            403,
        )


def _validate(**fields: Any) -> BuildRequest:
    """Return the request with these fields. Raises HttpError that lists everything that is wrong."""
    try:
        return BuildRequest.model_validate(fields)
    except ValidationError as error:
        raise HttpError(describe(error, CreateBuildRequest.model_fields), 400) from error


def rebuild_request(build: Build, state: BuildState, *, requester: str | None) -> BuildRequest:
    """Return a request that repeats a build in this state: anew if it completed, otherwise as it was requested.

    An image that was not built need not be forced: the next requests for it are to have the result, too.
    """
    options = build.options.model_dump(exclude_none=True) if build.options else {}
    force: Force = options.pop("force", False)
    force = KEEP_CACHE if options.pop("keep_cache", False) else force
    if state is BuildState.COMPLETED:
        force = True
    return _validate(provider=build.provider, spec=build.spec, requester=requester, **options, force=force)


def check_provider(prefix: str) -> None:
    """Raise UnknownProvider, with BinderHub's sentence and the available prefixes, before anything is published."""
    if prefix not in PROVIDERS:
        raise UnknownProvider(
            f"No provider found for prefix {prefix[:64]}. There are {in_words(list(PROVIDERS))}.", 404
        )


def check_password(spec: str) -> None:
    """Raise HttpError for a URL with credentials: no builder accepts it, and they must not be stored."""
    for text in {spec, unquote(spec)}:
        if _PASSWORD.search(_LOGIN_NAME.sub("ssh://", text)):
            raise HttpError(
                "The address contains a user name or a password. Remove them: requests are stored, and credentials for "
                "private repositories are configured by the operator.",
                400,
            )


def _create_request(body: bytes) -> CreateBuildRequest:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError("The body is not JSON.", 400) from error
    if not isinstance(data, dict):
        raise HttpError("The body must be a JSON object.", 400)
    try:
        return CreateBuildRequest.model_validate(data, strict=True)
    except ValidationError as error:
        raise HttpError(describe(error, CreateBuildRequest.model_fields), 400) from error
