"""The contract as documents: a JSON Schema for each message, and one AsyncAPI document.

`python -m rabbit2docker_schemas.documents` writes them beside this file; with `--check` it writes nothing and fails if
one of them differs from the models.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from rabbit2docker_schemas import asyncapi_document
from rabbit2docker_schemas.cloudevents import SCHEMA_PREFIX, event_type, schema_name
from rabbit2docker_schemas.events import MODEL_OF
from rabbit2docker_schemas.requests import CANCEL_TYPE, REQUEST_TYPE, BuildRequest, CancelRequest

HOME: Final = Path(__file__).parent
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI_FILE: Final = "asyncapi.json"
_READERS_VIEW: Final[JsonSchemaMode] = "validation"  # a field with a default may be absent

MODEL_OF_TYPE: Final[dict[str, type[BaseModel]]] = {
    REQUEST_TYPE: BuildRequest,
    CANCEL_TYPE: CancelRequest,
    **{event_type(kind): model for kind, model in MODEL_OF.items()},
}


class RequestSchema(GenerateJsonSchema):
    """JSON Schema without titles that repeat field names and without null defaults."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: a field's title would repeat its name."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Omit defaults that are null."""
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def encode_default(self, dft: Any) -> Any:
        """Write default models as events do, without nulls."""
        return (
            dft.model_dump(mode="json", exclude_none=True)
            if isinstance(dft, BaseModel)
            else super().encode_default(dft)
        )


class EventSchema(RequestSchema):
    """JSON Schema of events, where an absent value is omitted and never null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Describe only the value, since null never occurs."""
        return self.generate_inner(schema["schema"])


def _generator(model: type[BaseModel]) -> type[GenerateJsonSchema]:
    return RequestSchema if model in (BuildRequest, CancelRequest) else EventSchema


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema (2020-12) of each message by its name, such as `build.completed.v1`."""
    return {
        schema_name(ce_type): {
            "$schema": DIALECT,
            "$id": f"{SCHEMA_PREFIX}{schema_name(ce_type)}",
            **model.model_json_schema(schema_generator=_generator(model), mode=_READERS_VIEW),
        }
        for ce_type, model in MODEL_OF_TYPE.items()
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0.0 document, from the service's point of view."""
    schemas: dict[str, Any] = {}
    for model in MODEL_OF_TYPE.values():
        schema = model.model_json_schema(
            schema_generator=_generator(model),
            mode=_READERS_VIEW,
            ref_template="#/components/schemas/{model}",
        )
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return asyncapi_document.document(schemas)


def _files() -> dict[str, str]:
    documents: Mapping[str, Any] = {
        **{f"json/{name}.json": schema for name, schema in json_schemas().items()},
        ASYNCAPI_FILE: asyncapi(),
    }
    return {
        name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in documents.items()
    }


def outdated(directory: Path = HOME) -> list[str]:
    """Return the documents in `directory` that are missing, outdated or without a model."""
    files = _files()
    present = {str(path.relative_to(directory)) for path in directory.glob("json/*.json")}
    differing = {
        name
        for name, content in files.items()
        if not (path := directory / name).is_file() or path.read_text(encoding="utf-8") != content
    }
    return sorted(differing | (present - files.keys()))


def write(directory: Path = HOME) -> list[Path]:
    """Write all documents into `directory` and return their paths."""
    paths = []
    for name, content in _files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Write or check the documents and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rabbit2docker_schemas.documents", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a document is out of date"
    )
    parser.add_argument(
        "--directory", type=Path, default=HOME, help="directory of the documents (default: beside the models)"
    )
    options = parser.parse_args(arguments)
    if not options.check:
        write(options.directory)
        return 0
    if wrong := outdated(options.directory):
        sys.stderr.write(
            f"Out of date: {', '.join(wrong)}. Run `python -m rabbit2docker_schemas.documents` and commit the result.\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
