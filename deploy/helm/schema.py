"""The schema of the chart's values: `values.schema.yaml` with the settings of the consumer as `config`.

`python -m deploy.helm.schema` writes it into the chart; `--check` only checks that it is up to date. It includes the
settings that the chart sets itself: the templates reject those with an explanation, which a schema cannot give.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from rabbit2docker.settings import Settings

HOME: Final = Path(__file__).parent
CHART: Final = HOME / "rabbit2docker"
SOURCE: Final = HOME / "values.schema.yaml"
TARGET: Final = CHART / "values.schema.json"


def values_schema() -> dict[str, Any]:
    """Return the JSON Schema, in draft 7, which every version of Helm supports."""
    schema: dict[str, Any] = yaml.safe_load(SOURCE.read_text())
    settings = Settings.model_json_schema()
    schema["properties"]["config"] = _without_references(settings, settings.pop("$defs"))
    return schema


def _without_references(node: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with its references inlined, and without defaults, which are those of the consumer."""
    if isinstance(node, list):
        return [_without_references(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _without_references(definitions[node["$ref"].rpartition("/")[2]], definitions)
    plain = {
        key: _without_references(value, definitions)
        for key, value in node.items()
        if key not in ("default", "title", "properties")
    }
    if "properties" in node:  # keys are names of settings, which may equal those of the keywords above
        plain["properties"] = {
            name: _without_references(value, definitions) for name, value in node["properties"].items()
        }
    return plain


def text() -> str:
    """Return the text of the committed schema."""
    return json.dumps(values_schema(), indent=1) + "\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.helm.schema", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the schema is out of date"
    )
    if not parser.parse_args().check:
        TARGET.write_text(text())
    elif TARGET.read_text() != text():
        print(f"{TARGET} is out of date: run python -m deploy.helm.schema", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
