"""The JSON API's OpenAPI 3.1 document, generated from its models."""

from copy import deepcopy
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rabbit2docker.hub.store.models import Build, BuildPage, Record
from rabbit2docker.hub.web.api import ListQuery, LogQuery, RebuildQuery
from rabbit2docker.hub.web.api_stream import BuildEvent, QueuePosition
from rabbit2docker.hub.web.base import MAX_BODY_BYTES, Handler
from rabbit2docker.hub.web.build_form import CreateBuildRequest
from rabbit2docker.hub.web.log_response import LogAnswer
from rabbit2docker.settings import HubAuth
from rabbit2docker_schemas.requests import BuildRequest

Json = dict[str, Any]


class ErrorAnswer(Record):
    """The body of every error response."""

    message: str
    """A message for people: what happened and what to do."""
    status: int
    """The status code of the response."""


_REF: Final = "#/components/schemas/"
_MODELS: Final[tuple[type[BaseModel], ...]] = (
    Build,
    BuildPage,
    LogAnswer,
    BuildEvent,
    QueuePosition,
    ErrorAnswer,
)


def _ref(name: str) -> Json:
    return {"$ref": f"{_REF}{name}"}


def _json(name: str) -> Json:
    return {"application/json": {"schema": _ref(name)}}


_ID: Final[Json] = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Id of a build, or of a request for it.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"},
}
_ERRORS: Final = {
    "400": "The request is not valid; the message says why.",
    "403": "The client is not authenticated, is not allowed to do this, or acts for a page of another site.",
    "404": "There is no such build, or the client may not see it.",
    "409": "The build has ended already, or others requested it as well.",
    "413": f"The body is longer than {MAX_BODY_BYTES} bytes.",
    "415": "The body is not JSON.",
    "429": "The client has requested too many builds, or watches too many; see `Retry-After`.",
    "500": "An internal error; the service's log has the details.",
    "503": "RabbitMQ or the database is unavailable.",
}
_LIMITS: Final[Json] = {
    f"X-RateLimit-{name}": {"description": description, "schema": {"type": "integer"}}
    for name, description in (
        ("Limit", "Builds that the client may request per period."),
        ("Remaining", "Builds left in the current period."),
        ("Reset", "Time at which more are allowed, in seconds since 1970."),
    )
}


def _errors(*codes: str) -> Json:
    return {code: {"description": _ERRORS[code], "content": _json("ErrorAnswer")} for code in (*codes, "500")}


def _parameters(query: type[BaseModel]) -> list[Json]:
    schema = query.model_json_schema(ref_template=f"{_REF}{{model}}")
    return [
        {
            "name": name,
            "in": "query",
            "description": about.pop("description", ""),
            "schema": {key: value for key, value in about.items() if key != "title"},
        }
        for name, about in deepcopy(schema["properties"]).items()
    ]


def _accepted() -> Json:
    return {
        "description": "The request is queued. Its build gets this id unless the request joins a running build.",
        "headers": {
            "Location": {"description": "URL of the build.", "schema": {"type": "string"}},
            **_LIMITS,
        },
        "content": _json("Build"),
    }


def _paths() -> Json:
    return {
        "/api/builds": {"get": _list_builds(), "post": _create_build()},
        "/api/builds/{id}": {"parameters": [_ID], "get": _get_build(), "delete": _cancel_build()},
        "/api/builds/{id}/log": {"parameters": [_ID], "get": _get_log()},
        "/api/builds/{id}/events": {"parameters": [_ID], "get": _stream_events()},
        "/api/builds/{id}/rebuild": {"parameters": [_ID], "post": _rebuild()},
    }


def _list_builds() -> Json:
    return {
        "operationId": "listBuilds",
        "summary": "List the builds that the user may see, newest first",
        "parameters": _parameters(ListQuery),
        "responses": {
            "200": {"description": "A page of builds.", "content": _json("BuildPage")},
            **_errors("400", "403", "503"),
        },
    }


def _create_build() -> Json:
    return {
        "operationId": "createBuild",
        "summary": "Request a build",
        "requestBody": {"required": True, "content": _json("CreateBuildRequest")},
        "responses": {"202": _accepted(), **_errors("400", "403", "413", "415", "429", "503")},
    }


def _get_build() -> Json:
    return {
        "operationId": "getBuild",
        "summary": "Get a build",
        "responses": {
            "200": {"description": "The build.", "content": _json("Build")},
            **_errors("403", "404", "503"),
        },
    }


def _cancel_build() -> Json:
    cancelling = "The build is being cancelled; the body is its last known state."
    return {
        "operationId": "cancelBuild",
        "summary": "Cancel a build that no one else requested",
        "responses": {
            "202": {"description": cancelling, "content": _json("Build")},
            **_errors("400", "403", "404", "409", "413", "415", "503"),
        },
    }


def _get_log() -> Json:
    lines = (
        "Lines `first` to `last` as they were written. A line in brackets stands for lines that are missing."
    )
    content = {"text/plain": {"schema": {"type": "string"}}, **_json("LogAnswer")}
    return {
        "operationId": "getLog",
        "summary": "Get the log written so far",
        "parameters": _parameters(LogQuery),
        "responses": {
            "200": {"description": lines, "content": content},
            **_errors("400", "403", "404", "503"),
        },
    }


def _stream_events() -> Json:
    return {
        "operationId": "streamBuildEvents",
        "summary": "Stream the events of a build from its beginning to its end",
        "description": (
            "Server-sent events: `event` is the kind, `data` is a `BuildEvent`, `id` is a position. While a request "
            "waits for a slot, `event: queue` is sent with a `QueuePosition` as data and without an id. The stream "
            "ends after completed, failed, cancelled or rejected. To resume, reconnect with `Last-Event-ID` set to the "
            "last `id` received; after the end the response is then 204."
        ),
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "The last `id` that was received; only later events are sent.",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "200": {
                "description": "The events.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "204": {"description": "All events have been received."},
            **_errors("403", "404", "429", "503"),
        },
    }


def _rebuild() -> Json:
    return {
        "operationId": "rebuild",
        "summary": "Request the same build again; if it completed, even though its image exists",
        "parameters": _parameters(RebuildQuery),
        "responses": {"202": _accepted(), **_errors("400", "403", "404", "413", "415", "429", "503")},
    }


def _create_request() -> Json:
    """Return the schema of CreateBuildRequest, with the limits of the request message."""
    schema = CreateBuildRequest.model_json_schema()
    known = BuildRequest.model_json_schema()["properties"]
    schema["properties"] = {name: known.get(name, about) for name, about in schema["properties"].items()}
    for name in ("url", "ref"):
        schema["properties"][name] |= {"type": "string"}
        del schema["properties"][name]["anyOf"], schema["properties"][name]["default"]
    schema["oneOf"] = [
        {"required": ["provider", "spec"], "not": {"anyOf": [{"required": ["url"]}, {"required": ["ref"]}]}},
        {"required": ["url"], "not": {"anyOf": [{"required": ["provider"]}, {"required": ["spec"]}]}},
    ]
    return schema


def _security(auth: HubAuth) -> Json:
    token: Json = {
        "type": "http",
        "scheme": "bearer",
        "description": "A JupyterHub token with access to this service."
        if auth is HubAuth.JUPYTERHUB
        else "A token that the operator has issued.",
    }
    return {} if auth is HubAuth.NONE else {"token": token}


@cache
def document(base_url: str, auth: HubAuth) -> Json:
    """Return the document of the API at this base URL. It is cached: do not modify it."""
    inputs: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in _MODELS]
    _, definitions = models_json_schema(inputs, ref_template=f"{_REF}{{model}}")
    schemas = definitions["$defs"] | {"CreateBuildRequest": _create_request()}
    for name, about in ListQuery.model_json_schema(ref_template=f"{_REF}{{model}}").get("$defs", {}).items():
        schemas.setdefault(name, about)
    security = _security(auth)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rabbit2docker",
            "version": version("rabbit2docker"),
            "description": "Builds container images from repositories: request, follow, cancel and repeat builds.",
        },
        "servers": [{"url": base_url.rstrip("/") or "/"}],
        "security": [{name: []} for name in security],
        "paths": _paths(),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            **({"securitySchemes": security} if security else {}),
        },
    }


class OpenApiHandler(Handler):
    """The JSON API's OpenAPI document, open to all clients."""

    def get(self) -> None:
        """Answer with the document."""
        self.write_json(document(self.settings["base_url"], self.context.settings.hub.auth))
