"""The table of all values in the chart's README, from the comments of values.yaml and from the schema.

A value is described by the comment behind it or above it, and a group by the one above it. A mapping that stands on one
line is one value. Names that mean the same everywhere, such as fields of Kubernetes, need no comment.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

_KEY: Final = re.compile(r"^( *)([A-Za-z]\w*):(.*)$")
_TRAILING: Final = re.compile(r"\s#\s+(.*)$")
_COMMENT: Final = re.compile(r"^( *)# ?(.*)$")
_EXAMPLE: Final = re.compile(r"^ {2,}")

MARK: Final = "<!-- From here on written by `python -m deploy.helm.schema`, from values.yaml. -->"
COMMON: Final = {
    "accessModes": "Access modes of the volume.",
    "affinity": "Affinity of the pods.",
    "annotations": "Additional annotations.",
    "closedAddresses": "Further networks that are closed.",
    "containerSecurityContext": "Security context of the main container.",
    "digest": "Digest of the image (sha256:…), instead of a tag.",
    "egress": "Further rules for outgoing connections, as in a NetworkPolicy.",
    "enabled": "Whether it is there.",
    "existingSecret": "Name of the Secret.",
    "extraContainers": "Additional containers of the pods.",
    "extraEnv": "Additional environment variables of the main container: a list, or a mapping of names to values.",
    "extraEnvFrom": "Sources of additional environment variables.",
    "extraVolumeMounts": "Additional mounts of the main container.",
    "extraVolumes": "Additional volumes of the pods.",
    "initContainers": "Additional init containers of the pods.",
    "key": "Key in the Secret.",
    "labels": "Additional labels.",
    "lifecycle": "Hooks of the main container.",
    "livenessProbe": "Times of the liveness probe.",
    "nodePort": "Port of the nodes, for a Service of that type.",
    "nodeSelector": "Labels of the nodes that the pods run on.",
    "podAnnotations": "Additional annotations of the pods.",
    "podDisruptionBudget": "How many pods may be away at once when nodes are drained.",
    "podLabels": "Additional labels of the pods.",
    "podSecurityContext": "Security context of the pods.",
    "port": "Port of the Service.",
    "maxReplicas": "Greatest number of pods.",
    "minReplicas": "Least number of pods.",
    "priorityClassName": "PriorityClass of the pods.",
    "pullPolicy": "When the image is pulled.",
    "readinessProbe": "Times of the readiness probe.",
    "replicas": "Number of pods.",
    "repository": "Name of the image.",
    "resources": "Requests and limits of the main container.",
    "revisionHistoryLimit": "Number of old versions that are kept.",
    "tag": "Tag of the image.",
    "terminationGracePeriodSeconds": "Seconds between SIGTERM and SIGKILL.",
    "tolerations": "Tolerations of the pods.",
    "topologySpreadConstraints": "How the pods are spread.",
    "type": "Type of the Service.",
    "updateStrategy": "How pods are replaced.",
    "urlKey": "Key of the URL in the Secret.",
}
"""Names that have the same meaning wherever they stand."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value, or a group of values."""

    path: tuple[str, ...]
    default: Any
    description: str
    is_group: bool


@dataclass(frozen=True, slots=True)
class Line:
    """The line of a key, besides its value."""

    comment: str
    """That behind the key, else the one above it."""
    is_whole: bool
    """The value is a mapping that stands on this line."""


def lines_of(text: str) -> dict[tuple[str, ...], Line]:
    """Return the line of each key of a YAML file."""
    found: dict[tuple[str, ...], Line] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            above.append(comment[2])
        elif key := _KEY.match(line):
            indentation = len(key[1])
            path = [part for part in path if part[0] < indentation] + [(indentation, key[2])]
            trailing = _TRAILING.search(key[3])
            comment_text = trailing[1] if trailing else _joined(above)
            found[tuple(name for _, name in path)] = Line(comment_text, key[3].lstrip().startswith("{"))
            above = []
        else:
            above = []
    return found


def _joined(lines: list[str]) -> str:
    """Return the sentences of a comment, without its examples."""
    return " ".join(line.strip() for line in lines if not _EXAMPLE.match(line)).strip()


def values(text: str, schema: dict[str, Any]) -> list[Value]:
    """Return all values in their order. What the schema does not look into is one value."""
    return list(_walk((), yaml.safe_load(text), schema, lines_of(text)))


def _walk(
    path: tuple[str, ...], default: Any, schema: dict[str, Any], lines: dict[tuple[str, ...], Line]
) -> Iterator[Value]:
    for name, value in default.items():
        inner = schema.get("properties", {}).get(name, {})
        here = (*path, name)
        is_group = bool(inner.get("properties")) and not lines[here].is_whole
        common = "" if is_group else COMMON.get(name, "")
        yield Value(here, value, lines[here].comment or common, is_group)
        if is_group:
            yield from _walk(here, value, inner, lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{{", "&#123;&#123;")


def _default(value: Any) -> str:
    text = json.dumps(value)
    return "" if value is None or value == "" else f"`{text}`".replace("|", "\\|")


def table(text: str, schema: dict[str, Any]) -> str:
    """Return the values as Markdown: one table for those without a group, and one for each group."""
    found = values(text, schema)
    groups = [one.path[0] for one in found if len(one.path) == 1 and one.is_group]
    parts = ["## Values", *_rows(one for one in found if one.path[0] not in groups)]
    for group in groups:
        members = [one for one in found if one.path[0] == group]
        parts += ["", f"### {group}", ""]
        parts += [f"{_cell(members[0].description)}", ""] if members[0].description else []
        parts += _rows(members[1:])
    return "\n".join(parts).replace("## Values\n|", "## Values\n\n|") + "\n"


def _rows(found: Any) -> Iterator[str]:
    yield "| Value | Default | Meaning |"
    yield "|---|---|---|"
    for one in found:
        if not one.is_group or one.description:
            default = "" if one.is_group else _default(one.default)
            yield f"| `{'.'.join(one.path)}` | {default} | {_cell(one.description)} |"


def readme(current: str, text: str, schema: dict[str, Any]) -> str:
    """Return the README with its table written anew."""
    head = current.partition(MARK)[0].rstrip()
    return f"{head}\n\n{MARK}\n\n{table(text, schema)}"
