"""The operations on batches and dead letters in the OpenAPI document."""

from typing import Final

from rabbit2docker.hub.web.batches import BatchesQuery
from rabbit2docker.hub.web.dead_letters import ID_PATTERN, DeadLetterQuery
from rabbit2docker.hub.web.openapi_parts import Json, content, errors, parameters
from rabbit2docker_schemas.batches import BATCH_ID_PATTERN

_BATCH: Final[Json] = {
    "name": "batch",
    "in": "path",
    "required": True,
    "description": "Id of a batch.",
    "schema": {"type": "string", "pattern": f"^{BATCH_ID_PATTERN}$"},
}
_LETTER: Final[Json] = {
    "name": "letter",
    "in": "path",
    "required": True,
    "description": "Id of a dead letter.",
    "schema": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
}
_LETTER_ERRORS: Final = {
    "403": "The client is not an administrator, or acts for a page of another site.",
    "404": "The service has no access to dead letters, or there is no such letter.",
    "503": "RabbitMQ is unavailable, or refuses the user that the operator has configured.",
}


def _list_batches() -> Json:
    return {
        "operationId": "listBatches",
        "summary": "List the latest batches that have builds which the user may see, newest first",
        "parameters": parameters(BatchesQuery),
        "responses": {
            "200": {"description": "The batches.", "content": content("BatchesPage")},
            **errors("400", "403", "503"),
        },
    }


def _get_batch() -> Json:
    return {
        "operationId": "getBatch",
        "summary": "Get a batch with its answered requests",
        "responses": {
            "200": {"description": "The batch.", "content": content("BatchReport")},
            **errors("403", "404", "503"),
        },
    }


def _get_batch_report() -> Json:
    return {
        "operationId": "getBatchReport",
        "summary": "Get the report of a batch as CSV",
        "responses": {
            "200": {
                "description": "One line for each answered request.",
                "content": {"text/csv": {"schema": {"type": "string"}}},
            },
            **errors("403", "404", "503"),
        },
    }


def _letter_errors(*codes: str) -> Json:
    """Return the errors of all operations on dead letters, and these."""
    return {
        code: {**about, "description": _LETTER_ERRORS.get(code, about["description"])}
        for code, about in errors(*codes, *_LETTER_ERRORS).items()
    }


def _list_dead_letters() -> Json:
    return {
        "operationId": "listDeadLetters",
        "summary": "List the oldest messages that could not be carried out; for administrators",
        "parameters": parameters(DeadLetterQuery),
        "responses": {
            "200": {"description": "The dead letters.", "content": content("DeadLetterPage")},
            **_letter_errors("400"),
        },
    }


def _get_dead_letter() -> Json:
    return {
        "operationId": "getDeadLetter",
        "summary": "Get a dead letter with its content",
        "responses": {
            "200": {"description": "The dead letter.", "content": content("DeadLetterDetail")},
            **_letter_errors(),
        },
    }


def _redrive() -> Json:
    return {
        "operationId": "redriveDeadLetters",
        "summary": "Publish dead letters again, under their original routing keys",
        "description": "A letter is removed once RabbitMQ has confirmed its copy. One that may be forged is kept.",
        "requestBody": {"required": True, "content": content("RedriveSelection")},
        "responses": {
            "200": {"description": "The result for each letter.", "content": content("LetterResults")},
            **_letter_errors("400", "413", "415"),
        },
    }


def _discard() -> Json:
    return {
        "operationId": "discardDeadLetters",
        "summary": "Delete dead letters for good",
        "requestBody": {"required": True, "content": content("LetterSelection")},
        "responses": {
            "200": {"description": "The result for each letter.", "content": content("LetterResults")},
            **_letter_errors("400", "413", "415"),
        },
    }


def operations() -> Json:
    """Return the operations by path."""
    return {
        "/api/batches": {"get": _list_batches()},
        "/api/batches/{batch}": {"parameters": [_BATCH], "get": _get_batch()},
        "/api/batches/{batch}/report": {"parameters": [_BATCH], "get": _get_batch_report()},
        "/api/dead-letters": {"get": _list_dead_letters()},
        "/api/dead-letters/{letter}": {"parameters": [_LETTER], "get": _get_dead_letter()},
        "/api/dead-letters/redrive": {"post": _redrive()},
        "/api/dead-letters/discard": {"post": _discard()},
    }
