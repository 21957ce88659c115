"""Files of the chart that are made from others: the schema and the reference of its values, the reasons of its alerts.

`python -m deploy.helm.schema` writes them into the chart; `--check` only checks that they are up to date. The schema is
`values.schema.yaml` with the settings of the consumer as `config`. It includes the settings that the chart sets itself:
the templates reject those with an explanation, which a schema cannot give.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from deploy.helm import reference
from rabbit2docker.settings import Settings
from rabbit2docker.settings.base import Group
from rabbit2docker.settings.descriptions import descriptions
from rabbit2docker_schemas.reasons import CATEGORY_OF, Category, FailureReason

HOME: Final = Path(__file__).parent
CHART: Final = HOME / "rabbit2docker"
SOURCE: Final = HOME / "values.schema.yaml"
TARGET: Final = CHART / "values.schema.json"
REASONS: Final = CHART / "files" / "reasons.yaml"
README: Final = CHART / "README.md"
VALUES: Final = CHART / "values.yaml"


def values_schema() -> dict[str, Any]:
    """Return the JSON Schema, in draft 7, which every version of Helm supports."""
    schema: dict[str, Any] = yaml.safe_load(SOURCE.read_text())
    settings = Settings.model_json_schema()
    _describe(settings, Settings)
    for group in Group.__subclasses__():
        _describe(settings["$defs"][group.__name__], group)
    schema["properties"]["config"] = _without_references(settings, settings.pop("$defs"))
    return schema


def _describe(schema: dict[str, Any], group: type[BaseModel]) -> None:
    """Write the descriptions of a group's settings into its schema, whose keywords are sorted."""
    for name, text in descriptions(group).items():
        properties = schema["properties"]
        properties[name] = dict(sorted({**properties[name], "description": text}.items()))


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


def reasons() -> str:
    """Return the reasons that alerts name, by category; a pod that an operator deletes is no reason for an alert."""
    alerting = {
        category.value: [
            reason.value
            for reason, its_category in CATEGORY_OF.items()
            if its_category is category and reason is not FailureReason.POD_DELETED
        ]
        for category in (Category.INFRASTRUCTURE, Category.OPERATOR)
    }
    return "# Written by `python -m deploy.helm.schema`.\n" + yaml.safe_dump(alerting)


def readme() -> str:
    """Return the chart's README with the reference of its values."""
    return reference.readme(README.read_text(), VALUES.read_text(), values_schema())


GENERATED: Final = {TARGET: text, REASONS: reasons, README: readme}
"""The function that returns the text of each file."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.helm.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    is_check, stale = parser.parse_args().check, 0
    for path, make in GENERATED.items():
        if not is_check:
            path.write_text(make())
        elif not path.exists() or path.read_text() != make():
            print(f"{path} is out of date: run python -m deploy.helm.schema", file=sys.stderr)  # noqa: T201
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
