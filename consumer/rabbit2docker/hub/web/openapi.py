"""Pure: the JSON API's own description, OpenAPI 3.1, made of the models that it is written with."""

from copy import deepcopy
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rabbit2docker.hub.store.models import Build, BuildPage, Record
from rabbit2docker.hub.web.api import ListQuery, LogAnswer, LogQuery
from rabbit2docker.hub.web.api_stream import BuildEvent, QueuePosition
from rabbit2docker.hub.web.base import BODY_BYTES, Handler
from rabbit2docker.hub.web.build_form import CreateBuildRequest
from rabbit2docker.settings import HubAuth
from rabbit2docker_schemas.requests import BuildRequest

Json = dict[str, Any]


class ErrorAnswer(Record):
    """What every error is answered with."""

    message: str
    """For a person."""
    status: int
    """The status of the answer."""


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
    "description": "Id of a build, or of a request that led to one.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"},
}
_WORDS_OF: Final = {
    "400": "What was asked for cannot be; the message says why.",
    "403": "Who asks may not, or it is not known who asks, or a page of another site asks.",
    "404": "There is no such build, or it is somebody else's.",
    "409": "The build has ended already, or others wait for it as well.",
    "413": f"The body has more than {BODY_BYTES} bytes.",
    "415": "The body is not JSON.",
    "429": "Too many builds were asked for; see `Retry-After`.",
    "500": "A defect of the service, which its log tells the operator about.",
    "503": "RabbitMQ or the database is away.",
}
_LIMITS: Final[Json] = {
    f"X-RateLimit-{name}": {"description": words, "schema": {"type": "integer"}}
    for name, words in (
        ("Limit", "Builds that one may ask for in the period."),
        ("Remaining", "Builds that are left."),
        ("Reset", "When there are more, in seconds since 1970."),
    )
}


def _errors(*codes: str) -> Json:
    return {
        code: {"description": _WORDS_OF[code], "content": _json("ErrorAnswer")} for code in (*codes, "500")
    }


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


def _asked() -> Json:
    return {
        "description": "It was asked for. The build has the id of its own unless it joins one that runs already.",
        "headers": {
            "Location": {"description": "Where it is told about.", "schema": {"type": "string"}},
            **_LIMITS,
        },
        "content": _json("Build"),
    }


def _paths() -> Json:
    lines = (
        "Lines `first` to `last` as they were written; a line of its own in brackets says what is missing."
    )
    return {
        "/api/builds": {
            "get": {
                "operationId": "listBuilds",
                "summary": "List the builds that one may see, newest first",
                "parameters": _parameters(ListQuery),
                "responses": {
                    "200": {"description": "A page of builds.", "content": _json("BuildPage")},
                    **_errors("400", "403", "503"),
                },
            },
            "post": {
                "operationId": "createBuild",
                "summary": "Ask for a build",
                "requestBody": {"required": True, "content": _json("CreateBuildRequest")},
                "responses": {
                    "202": _asked(),
                    **_errors("400", "403", "413", "415", "429", "503"),
                },
            },
        },
        "/api/builds/{id}": {
            "parameters": [_ID],
            "get": {
                "operationId": "getBuild",
                "summary": "Tell where a build stands",
                "responses": {
                    "200": {"description": "The build.", "content": _json("Build")},
                    **_errors("403", "404", "503"),
                },
            },
            "delete": {
                "operationId": "cancelBuild",
                "summary": "End a build, if nobody else waits for it",
                "responses": {
                    "202": {
                        "description": "It will end; the build as it stood.",
                        "content": _json("Build"),
                    },
                    **_errors("400", "403", "404", "409", "413", "415", "503"),
                },
            },
        },
        "/api/builds/{id}/log": {
            "parameters": [_ID],
            "get": {
                "operationId": "getLog",
                "summary": "Tell what was written so far",
                "parameters": _parameters(LogQuery),
                "responses": {
                    "200": {
                        "description": lines,
                        "content": {
                            "text/plain": {"schema": {"type": "string"}},
                            **_json("LogAnswer"),
                        },
                    },
                    **_errors("400", "403", "404", "503"),
                },
            },
        },
        "/api/builds/{id}/events": {
            "parameters": [_ID],
            "get": {
                "operationId": "streamBuildEvents",
                "summary": "Tell what happens, from the beginning to the end",
                "description": (
                    "Server-sent events: `event` is the kind, `data` is `Told`, `id` is the place to go on from. While "
                    "a request waits for a slot, `event: queue` comes with `Queue` as data and without an id. After the "
                    "end (completed, failed, cancelled, rejected) the stream ends; who comes back then gets 204."
                ),
                "parameters": [
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "The last `id` that was received: only what follows is told.",
                        "schema": {"type": "string"},
                    }
                ],
                "responses": {
                    "200": {
                        "description": "The events.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    },
                    "204": {"description": "Everything was told."},
                    **_errors("403", "404", "503"),
                },
            },
        },
        "/api/builds/{id}/rebuild": {
            "parameters": [_ID],
            "post": {
                "operationId": "rebuild",
                "summary": "Ask for the same once more, even if its image exists",
                "responses": {
                    "202": _asked(),
                    **_errors("400", "403", "404", "413", "415", "429", "503"),
                },
            },
        },
    }


def _create_request() -> Json:
    """Return the schema of what may be asked for: its limits are those of the message to the service."""
    made = CreateBuildRequest.model_json_schema()
    known = BuildRequest.model_json_schema()["properties"]
    made["properties"] = {name: known.get(name, about) for name, about in made["properties"].items()}
    for name in ("url", "ref"):
        made["properties"][name] |= {"type": "string"}
        del made["properties"][name]["anyOf"], made["properties"][name]["default"]
    made["oneOf"] = [
        {"required": ["provider", "spec"], "not": {"anyOf": [{"required": ["url"]}, {"required": ["ref"]}]}},
        {"required": ["url"], "not": {"anyOf": [{"required": ["provider"]}, {"required": ["spec"]}]}},
    ]
    return made


def _security(auth: HubAuth) -> Json:
    token: Json = {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the JupyterHub with access to this service."
        if auth is HubAuth.JUPYTERHUB
        else "A token that the operator has given out.",
    }
    return {} if auth is HubAuth.NONE else {"token": token}


@cache
def document(base_url: str, auth: HubAuth) -> Json:
    """Return the description of the API under this address. It is shared: do not change it."""
    inputs: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in _MODELS]
    _, made = models_json_schema(inputs, ref_template=f"{_REF}{{model}}")
    schemas = made["$defs"] | {"CreateBuildRequest": _create_request()}
    for name, about in ListQuery.model_json_schema(ref_template=f"{_REF}{{model}}").get("$defs", {}).items():
        schemas.setdefault(name, about)
    security = _security(auth)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rabbit2docker",
            "version": version("rabbit2docker"),
            "description": "Container images built from repositories: asked for, followed, ended, built again.",
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
    """The description of the JSON API, for everybody."""

    def get(self) -> None:
        """Answer with it."""
        self.answer(document(self.settings["base_url"], self.parts.settings.hub.auth))
