"""Parts that all operations in the OpenAPI document share: answers, errors, parameters."""

from copy import deepcopy
from typing import Any, Final

from pydantic import BaseModel

from rabbit2docker.hub.store.models import Record
from rabbit2docker.hub.web.base import MAX_BODY_BYTES

Json = dict[str, Any]


class ErrorAnswer(Record):
    """The body of every error response."""

    message: str
    """A message for people: what happened and what to do."""
    status: int
    """The status code of the response."""


REF: Final = "#/components/schemas/"
ERRORS: Final = {
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


def ref(name: str) -> Json:
    """Return a reference to a model."""
    return {"$ref": f"{REF}{name}"}


def content(name: str) -> Json:
    """Return the content of an answer that is a model."""
    return {"application/json": {"schema": ref(name)}}


def errors(*codes: str) -> Json:
    """Return the answers with these statuses, and 500."""
    return {
        code: {"description": ERRORS[code], "content": content("ErrorAnswer")} for code in (*codes, "500")
    }


def parameters(query: type[BaseModel]) -> list[Json]:
    """Return the fields of a model as parameters of a URL."""
    schema = query.model_json_schema(ref_template=f"{REF}{{model}}")
    return [
        {
            "name": name,
            "in": "query",
            "description": about.pop("description", ""),
            "schema": {key: value for key, value in about.items() if key != "title"},
        }
        for name, about in deepcopy(schema["properties"]).items()
    ]
