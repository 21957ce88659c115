"""Pure: what somebody asks the API for, made into a request for a build."""

import json
import re
from typing import Any, Final
from urllib.parse import unquote

from pydantic import Field, ValidationError

from rabbit2docker.errors import RequestRejected
from rabbit2docker.hub.store.models import Build
from rabbit2docker.hub.web.auth import HttpError
from rabbit2docker.repository_urls import from_url
from rabbit2docker_schemas.requests import BuildRequest, Message
from rabbit2docker_schemas.validation_messages import describe

OPTIONS: Final = ("force", "subdir", "build_args", "labels", "appendix", "timeout_seconds")
"""What a request may ask for beside the repository."""
_PASSWORD = re.compile(r"://[^/?#]*@")
_LOGIN_NAME = re.compile(r"ssh://[\w-]+@")


class CreateBuildRequest(Message):
    """A build, by provider and spec or by the URL of a repository; the rest as in the message to the service."""

    provider: str | None = None
    spec: str | None = None
    url: str | None = None
    """Address of a repository as people paste it, also of a branch, commit, file or pull request at GitHub."""
    ref: str | None = None
    """With `url`: branch, tag or commit; absent: the one that the URL names, else HEAD."""
    force: bool = False
    subdir: str | None = None
    build_args: dict[str, str] = Field(default={})
    labels: dict[str, str] = Field(default={})
    appendix: str | None = None
    timeout_seconds: int | None = None


def read_create_request(body: bytes, *, requester: str | None, github_hostname: str) -> BuildRequest:
    """Return the request that a body asks for. Raises Refusal that says everything that is wrong."""
    wish = _create_request(body)
    if (wish.url is None) == (wish.provider is None) or (wish.spec is None) == (wish.provider is not None):
        raise HttpError("Name either `provider` and `spec`, or the `url` of a repository.", 400)
    provider, spec = wish.provider, wish.spec
    if wish.url is not None:
        try:
            provider, spec = from_url(wish.url, wish.ref or None, github_hostname=github_hostname)
        except RequestRejected as error:
            raise HttpError(error.message, 400) from error
    elif wish.ref is not None:
        raise HttpError("`ref` goes with `url`; with `provider` it is the last part of `spec`.", 400)
    check_password(spec or "")
    options = {name: getattr(wish, name) for name in OPTIONS if name in wish.model_fields_set}
    return made_request(provider=provider, spec=spec, requester=requester, **options)


def made_request(**fields: Any) -> BuildRequest:
    """Return the request with these fields. Raises Refusal that says everything that is wrong."""
    try:
        return BuildRequest.model_validate(fields)
    except ValidationError as error:
        raise HttpError(describe(error, CreateBuildRequest.model_fields), 400) from error


def again(build: Build, *, requester: str | None) -> BuildRequest:
    """Return a request for the same once more, whether its image exists or not."""
    options = build.options.model_dump(exclude_none=True) if build.options else {}
    return made_request(
        provider=build.provider, spec=build.spec, requester=requester, **{**options, "force": True}
    )


def check_password(spec: str) -> None:
    """Raise Refusal for an address with a password: the builders would refuse it, and it must not be remembered."""
    for text in {spec, unquote(spec)}:
        if _PASSWORD.search(_LOGIN_NAME.sub("ssh://", text)):
            raise HttpError(
                "The address holds a user name or a password. Write it without them: requests are remembered, and "
                "credentials for private repositories are the operator's to set.",
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
