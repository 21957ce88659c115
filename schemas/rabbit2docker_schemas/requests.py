"""Messages to the service: build requests and cancel messages."""

import hashlib
import json
import re
from functools import cache
from typing import Annotated, Any, Final, Literal, Self, TypeVar, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from rabbit2docker_schemas.events import BuildOptions
from rabbit2docker_schemas.ids import REQUEST_ID_PATTERN
from rabbit2docker_schemas.personal_secrets import NAME_PATTERN

REQUEST_TYPE: Final = "io.rabbit2docker.build.requested.v1"
CANCEL_TYPE: Final = "io.rabbit2docker.build.cancel.v1"

ShortText = Annotated[str, StringConstraints(max_length=256)]
KEEP_CACHE: Final = "cache"


def _check_force(value: object) -> object:
    # One sentence, where a union would report a problem for each of its members.
    if isinstance(value, bool) or value == KEEP_CACHE:
        return value
    raise ValueError(f'must be true, false or "{KEEP_CACHE}"')


Force = Annotated[bool | Literal["cache"], BeforeValidator(_check_force)]
_ARGUMENT_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
# repo2docker writes them into the Dockerfile that it generates, where other values would have another meaning than in a
# Dockerfile of the repository.
_TAKEN_ARGUMENTS = {"NB_USER", "NB_UID"}
_LABEL_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")
_INSIDE = re.compile(r"^(?![/-])(?!([^/]*/)*\.\.(/|$))")


def _open_to_additions(schema: dict[str, Any]) -> None:
    # Validators of this version must pass messages of later ones.
    schema.pop("additionalProperties", None)


class Message(BaseModel):
    """A message to the service.

    A publisher that makes one may not misspell a field. The service reads messages of later versions, too: it ignores the
    fields that it does not know, see `with_unknown_fields`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, json_schema_extra=_open_to_additions
    )

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        """The names of the fields that this version does not know, sorted."""
        return tuple(sorted(self.model_extra or ()))

    @field_validator("*")
    @classmethod
    def _no_null_characters(cls, value: object) -> object:
        texts = [*value.keys(), *value.values()] if isinstance(value, dict) else [value]
        if any(isinstance(text, str) and "\0" in text for text in texts):
            raise ValueError("holds a null character, which cannot be passed to a program")
        return value


class BuildRequest(Message):
    """A request for an image. The tenant is in the routing key; credentials are never part of a request."""

    provider: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    """Prefix of a provider, such as `gh` or `git`, as in BinderHub's `/build/<provider>/<spec>`."""
    spec: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=4096)]
    """Repository and version in the provider's grammar: `owner/repository/ref` for gh."""
    request_id: Annotated[str, StringConstraints(pattern=REQUEST_ID_PATTERN)] | None = None
    """Idempotency key; use a new one for each request. Default: the `ce-id` header, then the AMQP message_id."""
    force: Force = False
    """Build even if the image exists. true: without the engine's cache, on base images that are pulled anew; `cache`: with
    it. The image's tag then names the new image, whose digest is in `completed`."""
    subdir: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=1024),
            WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 1024, "pattern": _INSIDE.pattern}),
        ]
        | None
    ) = None
    """Directory within the repository to build from."""
    build_args: dict[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default={}, max_length=50, json_schema_extra={"propertyNames": {"pattern": _ARGUMENT_NAME.pattern}}
    )
    """Docker build arguments; not `NB_USER` and `NB_UID`, which the operator sets."""
    labels: dict[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default={}, max_length=50, json_schema_extra={"propertyNames": {"pattern": _LABEL_NAME.pattern}}
    )
    """Image labels."""
    appendix: Annotated[str, StringConstraints(min_length=1, max_length=16_384)] | None = None
    """Lines to append to the generated Dockerfile."""
    timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] | None = None
    """Limit of the build in seconds. It can shorten the configured limit but not extend it."""
    not_after: AwareDatetime | None = None
    """Time after which the request is rejected as expired instead of being built."""
    requester: ShortText | None = None
    """Name of the requester, for the record."""
    credentials: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None
    """Name of a Secret with the requester's own credentials for this request, see `rabbit2docker.client.personal_secret`."""
    replay_of: Annotated[str, StringConstraints(pattern=REQUEST_ID_PATTERN)] | None = None
    """request_id of the original request, set by replay."""

    @field_validator("subdir")
    @classmethod
    def _subdir_stays_inside(cls, value: str | None) -> str | None:
        if value is not None and not _INSIDE.match(value):
            raise ValueError("must be a relative path inside the repository")
        return value

    @field_validator("build_args")
    @classmethod
    def _arguments_have_names(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if not _ARGUMENT_NAME.fullmatch(name)]:
            raise ValueError(f"has invalid build argument names: {', '.join(wrong)}")
        if taken := sorted(_TAKEN_ARGUMENTS & value.keys()):
            raise ValueError(
                f"must not have {' and '.join(taken)}: the operator sets the user of all images, with the settings "
                "builder.user_name and builder.user_id. Remove it, or give it another name"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _labels_have_names(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if not _LABEL_NAME.fullmatch(name)]:
            raise ValueError(f"has invalid label names: {', '.join(wrong)}")
        return value

    def options(self) -> BuildOptions:
        """Return the build options as events report them."""
        given = self.model_dump(include=set(BuildOptions.model_fields) - {"force"})
        return BuildOptions(**given, force=bool(self.force), keep_cache=self.force == KEEP_CACHE)

    def digest(self) -> str:
        """Return a digest of everything except the request_id: equal digests mean equal requests."""
        # Without defaults, a field that a later version adds changes the digest only where it is used.
        content = self.model_dump(mode="json", exclude={"request_id"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _one_id(schema: dict[str, Any]) -> None:
    _open_to_additions(schema)
    schema["oneOf"] = [
        {"required": [name], "properties": {name: {"type": "string"}}} for name in ("build_id", "request_id")
    ]


class CancelRequest(Message):
    """A request to end a build, or to withdraw a request that has not started one. Give exactly one of the two ids."""

    model_config = ConfigDict(json_schema_extra=_one_id)

    build_id: Annotated[str, StringConstraints(pattern=REQUEST_ID_PATTERN)] | None = None
    """The build to end, for all requests that share it."""
    request_id: Annotated[str, StringConstraints(pattern=REQUEST_ID_PATTERN)] | None = None
    """The request whose build is to end."""
    spare_joined: bool = False
    """With `request_id`: end the build only if this request started it, not if it joined the build of another request."""
    requester: ShortText | None = None
    """Name of the requester; shown in the `cancelled` event."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.build_id is None) == (self.request_id is None):
            raise ValueError("name either build_id or request_id")
        return self


MessageT = TypeVar("MessageT", bound=Message)


class _Open(Message):
    """A message that keeps unknown fields."""

    # Docstrings would be looked for in source files, which blocks the event loop.
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=False)


@cache
def _open(model: type[MessageT]) -> type[MessageT]:
    # Of two bases, the last one decides the configuration.
    bases = cast("tuple[type[MessageT], ...]", (model, _Open))
    return create_model(model.__name__, __base__=bases, __module__=model.__module__)


def with_unknown_fields(model: type[MessageT], value: dict[str, Any], *, strict: bool = False) -> MessageT:
    """Validate a message, perhaps of a later version: fields that this one does not know are kept and have no effect.

    Raises ValidationError. In `strict` mode values are those of JSON, and none is converted.
    """
    chosen = _open(model) if value.keys() - model.model_fields.keys() else model
    return chosen.model_validate_json(json.dumps(value), strict=strict)
