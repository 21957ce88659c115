"""`python -m docs.generate`: write the reference pages from the code; `--check` only compares.

Settings, commands, messages, HTTP API and metrics are described once, beside the code that has them. Each function
here returns one page as MyST Markdown.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import typer
from pydantic import BaseModel, SecretStr
from tests.benchmarks.comparison import Figures
from tests.benchmarks.comparison import table as figures_table

from rabbit2docker import metrics as consumer_metrics
from rabbit2docker.amqp.dead_letter_help import EXPLANATIONS
from rabbit2docker.cli.app import app
from rabbit2docker.hub.web.openapi import document
from rabbit2docker.settings import HubAuth, Settings
from rabbit2docker.settings.descriptions import descriptions
from rabbit2docker_schemas import documents
from rabbit2docker_schemas.providers import PROVIDERS, ProviderDescriptor
from rabbit2docker_schemas.reasons import AGAIN_OF, CATEGORY_OF, HINT_OF, FailureReason

REFERENCE: Final = Path(__file__).parent / "reference"
FIGURES: Final = Path(__file__).parent / "comparison.json"
ENV_PREFIX: Final = "RABBIT2DOCKER_"


def cell(text: object) -> str:
    """Return text as one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(*header: str, rows: Iterable[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


# -- settings


def _default(value: Any) -> str:
    match value:
        case None | "":
            return ""
        case SecretStr():
            return "(secret)"
        case bool() | list() | dict() | tuple():
            return f"`{json.dumps(value, default=str)}`"
        case Path():
            return f"`{value}`".replace(str(Path.home()), "~")
        case _:
            return f"`{value}`"


def _settings(model: type[BaseModel], defaults: BaseModel, prefix: str) -> Iterator[tuple[str, ...]]:
    texts = descriptions(model)
    for name in model.model_fields:
        value = getattr(defaults, name)
        if not isinstance(value, BaseModel):
            yield f"`{prefix}{name.upper()}`", _default(value), texts.get(name, "")
        elif prefix != ENV_PREFIX:  # the groups themselves have a section each
            yield from _settings(type(value), value, f"{prefix}{name.upper()}__")


def settings() -> str:
    """Return the page on settings."""
    defaults = Settings.model_construct(
        **{
            name: field.get_default(call_default_factory=True)
            for name, field in Settings.model_fields.items()
        }
    )
    parts = [
        "# Settings",
        "Each setting is an environment variable, or a line in the YAML file that `RABBIT2DOCKER_CONFIG` names: "
        "`RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS=20` is `limits: {concurrent_builds: 20}`. The environment wins. "
        "Lists and mappings are JSON. Unknown names are errors. `rabbit2docker settings` prints the values in force.",
        "## General",
        table("Setting", "Default", "Meaning", rows=list(_settings(Settings, defaults, ENV_PREFIX))),
    ]
    for name in Settings.model_fields:
        group = getattr(defaults, name)
        if isinstance(group, BaseModel):
            parts += [f"## {name}", (type(group).__doc__ or "").strip()]
            rows = list(_settings(type(group), group, f"{ENV_PREFIX}{name.upper()}__"))
            parts.append(table("Setting", "Default", "Meaning", rows=rows))
    return "\n\n".join(parts)


# -- command line


def _plain(text: str | None) -> str:
    return (text or "").replace("\b", "").strip()


def _command(command: Any, path: str) -> Iterator[str]:
    subcommands: dict[str, Any] = getattr(command, "commands", {})
    yield f"{'#' * min(2 + path.count(' '), 4)} `{path}`"
    if command.help:
        yield _plain(command.help)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    if arguments:
        rows = [(f"`{each.make_metavar_or_name}`", _plain(each.help)) for each in map(_Argument, arguments)]
        yield table("Argument", "Meaning", rows=rows)
    if options:
        rows = [
            (f"`{', '.join(each.opts)}`", _plain(each.help)) for each in options if "--help" not in each.opts
        ]
        if rows:
            yield table("Option", "Meaning", rows=rows)
    for name in sorted(subcommands):
        yield from _command(subcommands[name], f"{path} {name}")


class _Argument:
    """An argument's name and help, whichever version of typer made it."""

    def __init__(self, parameter: Any) -> None:
        """Take the parameter."""
        self.make_metavar_or_name = str(parameter.metavar or parameter.name.upper()).strip("[]")
        self.help = getattr(parameter, "help", "")


def command_line() -> str:
    """Return the page on the commands."""
    command: Any = typer.main.get_command(app)
    parts = ["# Command line", *_command(command, "rabbit2docker")]
    if epilog := getattr(command, "epilog", None):
        parts.insert(2, _plain(epilog))
    return "\n\n".join(parts)


# -- messages


def _type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        found = [_type_of(each) for each in schema["anyOf"]]
        return " or ".join(dict.fromkeys(each for each in found if each != "null"))
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows: list[tuple[object, ...]] = [
        (f"`{name}`", _type_of(field), "yes" if name in required else "", field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table("Field", "Type", "Always there", "Meaning", rows=rows)


def messages() -> str:
    """Return the page on requests and events."""
    parts = [
        "# Messages",
        "Bodies are JSON. Unknown fields are ignored; those of a request are named in the `notice` of its `accepted` event. "
        "`rabbit2docker schema NAME` prints the JSON Schema, `rabbit2docker schema --asyncapi` the AsyncAPI document. "
        "Routing keys and delivery are in [](../how-to/use-from-a-program.md).",
    ]
    for name, schema in documents.json_schemas().items():
        parts += [f"## {name}", schema.get("description", ""), _fields(schema)]
        for inner, definition in sorted(schema.get("$defs", {}).items()):
            if "enum" in definition:
                values = ", ".join(f"`{value}`" for value in definition["enum"])
                parts.append(f"`{inner}` is one of {values}.")
    return "\n\n".join(part for part in parts if part)


# -- HTTP API


def http_api() -> str:
    """Return the page on the JSON API of the hub's service."""
    described: dict[str, Any] = document("/services/binder/", HubAuth.TOKENS)
    parts = [
        "# HTTP API",
        "The JSON API of `rabbit2docker hub`. A running service has this as `api/openapi.json`. BinderHub's routes, "
        "which the same service answers, are in [](../how-to/jupyterhub.md).",
    ]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            parts.append(f"## {method.upper()} {path}")
            parts.append(
                f"Operation `{operation['operationId']}`. {operation.get('summary', '')}.".replace("..", ".")
            )
            if text := operation.get("description"):
                parts.append(text)
            parameters = [*operations.get("parameters", ()), *operation.get("parameters", ())]
            rows: list[tuple[object, ...]] = [
                (f"`{each['name']}`", each["in"], each.get("description", ""))
                for each in parameters
                if "name" in each
            ]
            if rows:
                parts.append(table("Parameter", "In", "Meaning", rows=rows))
            answers: list[tuple[object, ...]] = [
                (status, answer.get("description", "")) for status, answer in operation["responses"].items()
            ]
            parts.append(table("Status", "Answer", rows=answers))
    for name, schema in described["components"]["schemas"].items():
        if "properties" in schema:
            parts += [f"## {name}", schema.get("description", ""), _fields(schema)]
    return "\n\n".join(part for part in parts if part)


# -- metrics


def metrics() -> str:
    """Return the page on metrics."""
    rows: list[tuple[object, ...]] = []
    for collector in dict.fromkeys(consumer_metrics.REGISTRY._collector_to_names):
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    return "\n\n".join(
        [
            "# Metrics",
            "In Prometheus's format at `/metrics` of the consumer and of the hub's service. Labels come from small "
            "fixed sets: never a repository, a person or a build.",
            table("Metric", "Type", "Labels", "Meaning", rows=rows),
        ]
    )


def failures() -> str:
    """Return the page on the reasons of failed builds."""
    rows = [
        (f"`{reason}`", CATEGORY_OF[reason], AGAIN_OF[reason], HINT_OF[reason]) for reason in FailureReason
    ]
    return "\n\n".join(
        [
            "# Failures",
            "A `failed` event has one of these reasons, the category of the party that can act, a message with the "
            "words of the program that failed, and a hint. A failure is tried again `here` (the builder repeats the "
            "step, then another attempt follows), `elsewhere` (another attempt, on another node if there is one) or "
            "`never`.",
            table("Reason", "Category", "Tried again", "Hint", rows=rows),
        ]
    )


def dead_letters() -> str:
    """Return the page on the reasons of dead letters."""
    rows = [(f"`{reason}`", each.cause, each.action) for reason, each in EXPLANATIONS.items()]
    return "\n\n".join(
        [
            "# Dead letters",
            "A message in `builds.dead` has one of these reasons. Command line and page show the same texts. "
            "[](../how-to/dead-letters.md) says how to list the letters, publish them again and discard them.",
            table("Reason", "Cause", "What to do", rows=rows),
        ]
    )


def _example(provider: ProviderDescriptor) -> str:
    """Return a command that builds the descriptor's example."""
    repository = (
        quote(provider.repo_placeholder, safe="") if provider.url_encoded else provider.repo_placeholder
    )
    return f"`rabbit2docker build {provider.prefix} {repository}{'/HEAD' if provider.has_ref else ''}`"


def providers() -> str:
    """Return the page on the providers of repositories and datasets."""
    rows = [
        (f"`{each.prefix}`", each.display_name, f"`{each.spec_form}`", each.version, _example(each))
        for each in PROVIDERS.values()
    ]
    return "\n\n".join(
        [
            "# Providers",
            "A request names a provider and a spec, as in BinderHub's `/build/PROVIDER/SPEC`. Names of images and builds are "
            "BinderHub's, so that images which it built are found again. `rabbit2docker name PROVIDER SPEC --ref VERSION` "
            "prints them without a connection.",
            table("Provider", "Name", "Spec", "Version, and tag of the image", "Example", rows=rows),
            "## Addresses",
            "`rabbit2docker build ADDRESS`, the pages and the API map an address as people paste it to provider and spec: "
            "of a repository, branch, tag, commit, file, pull or merge request at GitHub and GitLab (also at the hosts of "
            "`providers.github_hostname` and `providers.gitlab_hostname`), of a gist, of a record or dataset, or a DOI. "
            "Any other address is read as one of a git repository.",
            "## Versions",
            "A request is pinned when it is admitted, and exactly that version is built or none: git commits by their id, "
            "records of Zenodo and Figshare by an address that names the version. HydroShare, Dataverse and CKAN (without an "
            "activity) have the newest content only. If that changes between admission and download, the build fails "
            "with `ref_not_found`, and the next request gets the new version.",
            "A repository on GitHub or GitLab that was renamed is built from its new address, under the names of the old "
            "one, and `accepted` has a `notice`. The same holds for a permanent redirect of a `git` address. "
            "`main` and `master` stand for the default branch where they do not exist.",
            "## Limits",
            "A dataset without files is rejected with `repository_empty`, one larger than `providers.max_dataset_bytes` by "
            "what its host says with `repository_too_large`; what is downloaded and unpacked has the same limit. Addresses "
            "from requests, redirects and datasets must be public, unless `providers.allow_private_addresses` is on. A host "
            "that limits requests is asked again at the time that it names; the requests wait, and a progress event says "
            "until when. `rabbit2docker_host_requests_left` shows how many requests are left.",
        ]
    )


# -- comparison


def comparison(figures: Figures | None = None) -> str:
    """Return the page on the last figures of `make bench-compare`."""
    found = figures or Figures.model_validate_json(FIGURES.read_bytes())
    header, rows = figures_table(found)
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    about = (
        f"The reference was {found.reference}."
        if found.reference
        else "No reference was measured: `REFERENCE_URL` names any service that speaks BinderHub's HTTP."
    )
    return "\n\n".join(
        [
            "# Figures beside others",
            "What `make bench-compare` measured last, on one machine, each row in one run: this service, a reference, and floors, "
            "which are bare libraries and commands that do a part of the same work. The sides take turns in every round; a "
            "figure is the median of the rounds with the least and the greatest, a ratio that of the rounds' ratios. Pods "
            "are simulated, RabbitMQ and services are real. Load is the average number of programs that ran or waited for a "
            "core: where it is far above the number of cores, times say more about the machine than ratios do.",
            f"Measured on {found.measured} ({machine}). {about}",
            table(*header, rows=rows),
            "`make bench-compare` compares its ratios with these, and ends with 1 if one is more than 15 % worse. "
            "`make bench-compare ARGS=--help` says what can be chosen, and `--record` keeps new figures in "
            "`docs/comparison.json`, from which `make docs-reference` writes this page.",
        ]
    )


PAGES: Final[dict[str, Callable[[], str]]] = {
    "settings.md": settings,
    "command-line.md": command_line,
    "messages.md": messages,
    "http-api.md": http_api,
    "metrics.md": metrics,
    "failures.md": failures,
    "dead-letters.md": dead_letters,
    "providers.md": providers,
    "comparison.md": comparison,
}


def main() -> int:
    """Write the pages, or compare them with what is there."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a page is out of date"
    )
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        text = "<!-- Written by `python -m docs.generate`. -->\n" + page().rstrip() + "\n"
        path = REFERENCE / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"Out of date: {', '.join(stale)}. Run `python -m docs.generate`.")  # noqa: T201
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
