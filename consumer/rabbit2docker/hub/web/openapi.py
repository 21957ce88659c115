"""The JSON API's OpenAPI 3.1 document, generated from its models."""

from functools import cache
from typing import Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rabbit2docker.hub.store.models import BatchReport, Build, BuildPage
from rabbit2docker.hub.web.api import ListQuery, LogQuery, RebuildQuery
from rabbit2docker.hub.web.api_stream import BuildEvent, QueuePosition
from rabbit2docker.hub.web.base import Handler
from rabbit2docker.hub.web.batches import BatchesPage
from rabbit2docker.hub.web.build_form import CreateBuildRequest
from rabbit2docker.hub.web.dead_letters import (
    DeadLetterDetail,
    DeadLetterPage,
    LetterResults,
    LetterSelection,
    RedriveSelection,
)
from rabbit2docker.hub.web.log_response import LogAnswer
from rabbit2docker.hub.web.openapi_operations import operations
from rabbit2docker.hub.web.openapi_parts import REF, ErrorAnswer, Json, content, errors, parameters
from rabbit2docker.own_version import OWN_VERSION
from rabbit2docker.settings import HubAuth
from rabbit2docker_schemas.requests import BuildRequest

_MODELS: Final[tuple[type[BaseModel], ...]] = (
    Build,
    BuildPage,
    LogAnswer,
    BuildEvent,
    QueuePosition,
    ErrorAnswer,
    BatchesPage,
    BatchReport,
    DeadLetterPage,
    DeadLetterDetail,
    LetterResults,
    LetterSelection,
    RedriveSelection,
)


_ID: Final[Json] = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Id of a build, or of a request for it.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"},
}
_LIMITS: Final[Json] = {
    f"X-RateLimit-{name}": {"description": description, "schema": {"type": "integer"}}
    for name, description in (
        ("Limit", "Builds that the client may request per period."),
        ("Remaining", "Builds left in the current period."),
        ("Reset", "Time at which more are allowed, in seconds since 1970."),
    )
}


def _accepted() -> Json:
    return {
        "description": "The request is queued. Its build gets this id unless the request joins a running build.",
        "headers": {
            "Location": {"description": "URL of the build.", "schema": {"type": "string"}},
            **_LIMITS,
        },
        "content": content("Build"),
    }


def _paths() -> Json:
    return {
        "/api/builds": {"get": _list_builds(), "post": _create_build()},
        "/api/builds/{id}": {"parameters": [_ID], "get": _get_build(), "delete": _cancel_build()},
        "/api/builds/{id}/log": {"parameters": [_ID], "get": _get_log()},
        "/api/builds/{id}/events": {"parameters": [_ID], "get": _stream_events()},
        "/api/builds/{id}/rebuild": {"parameters": [_ID], "post": _rebuild()},
        **operations(),
    }


def _list_builds() -> Json:
    return {
        "operationId": "listBuilds",
        "summary": "List the builds that the user may see, newest first",
        "parameters": parameters(ListQuery),
        "responses": {
            "200": {"description": "A page of builds.", "content": content("BuildPage")},
            **errors("400", "403", "503"),
        },
    }


def _create_build() -> Json:
    return {
        "operationId": "createBuild",
        "summary": "Request a build",
        "requestBody": {"required": True, "content": content("CreateBuildRequest")},
        "responses": {"202": _accepted(), **errors("400", "403", "413", "415", "429", "503")},
    }


def _get_build() -> Json:
    return {
        "operationId": "getBuild",
        "summary": "Get a build",
        "responses": {
            "200": {"description": "The build.", "content": content("Build")},
            **errors("403", "404", "503"),
        },
    }


def _cancel_build() -> Json:
    cancelling = "The build is being cancelled; the body is its last known state."
    return {
        "operationId": "cancelBuild",
        "summary": "Cancel a build that no one else requested",
        "responses": {
            "202": {"description": cancelling, "content": content("Build")},
            **errors("400", "403", "404", "409", "413", "415", "503"),
        },
    }


def _get_log() -> Json:
    lines = (
        "Lines `first` to `last` as they were written. A line in brackets stands for lines that are missing."
    )
    written = {"text/plain": {"schema": {"type": "string"}}, **content("LogAnswer")}
    return {
        "operationId": "getLog",
        "summary": "Get the log written so far",
        "parameters": parameters(LogQuery),
        "responses": {
            "200": {"description": lines, "content": written},
            **errors("400", "403", "404", "503"),
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
            **errors("403", "404", "429", "503"),
        },
    }


def _rebuild() -> Json:
    return {
        "operationId": "rebuild",
        "summary": "Request the same build again; if it completed, even though its image exists",
        "parameters": parameters(RebuildQuery),
        "responses": {"202": _accepted(), **errors("400", "403", "404", "413", "415", "429", "503")},
    }


def _create_request() -> Json:
    """Return the schema of CreateBuildRequest, with the limits of the request message."""
    schema = CreateBuildRequest.model_json_schema()
    known, about = BuildRequest.model_json_schema()["properties"], schema["properties"]
    schema["properties"] = {name: known.get(name, text) for name, text in about.items()}
    for name in ("credentials", "request_id"):
        [form] = [each for each in known[name]["anyOf"] if each.get("type") == "string"]
        schema["properties"][name] = {**about[name], **form}
    for name in ("url", "ref", "credentials", "request_id"):
        schema["properties"][name] |= {"type": "string"}
        del schema["properties"][name]["anyOf"], schema["properties"][name]["default"]
    schema["dependentRequired"] = {"credentials": ["request_id"], "request_id": ["credentials"]}
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
    _, definitions = models_json_schema(inputs, ref_template=f"{REF}{{model}}")
    schemas = definitions["$defs"] | {"CreateBuildRequest": _create_request()}
    for name, about in ListQuery.model_json_schema(ref_template=f"{REF}{{model}}").get("$defs", {}).items():
        schemas.setdefault(name, about)
    security = _security(auth)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rabbit2docker",
            "version": OWN_VERSION,
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
