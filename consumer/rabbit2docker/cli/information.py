"""The commands `name`, `schema` and `settings`, which need no connection."""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rabbit2docker.cli.exits import Exit, errors_explained, fail
from rabbit2docker.cli.options import BuildArgs, Labels, Subdir, parse_pairs
from rabbit2docker.cli.output import say
from rabbit2docker.settings.constants import (
    DEFAULT_GITHUB_HOSTNAME,
    DEFAULT_GITLAB_HOSTNAME,
    DEFAULT_IMAGE_PREFIX,
    ENV_PREFIX,
    is_configured,
    provider_hosts,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _NamingSettings(NamedTuple):
    """The settings that names depend on."""

    image_prefix: str
    hosts: dict[str, str]


def _naming_settings() -> _NamingSettings:
    """Return the settings for names. The settings, slow to import, are read only if there are any."""
    if not is_configured(os.environ):
        return _NamingSettings(
            DEFAULT_IMAGE_PREFIX, provider_hosts(DEFAULT_GITHUB_HOSTNAME, DEFAULT_GITLAB_HOSTNAME)
        )
    from rabbit2docker.consumer.images.tenants import TenantImages
    from rabbit2docker.settings import load_settings

    settings = load_settings()
    prefix = TenantImages(settings).prefix(settings.tenant)
    return _NamingSettings(prefix, settings.providers.hosts)


def name(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Provider, such as gh or git.")],
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="Repository and version, as in BinderHub's /build/PROVIDER/SPEC."
        ),
    ],
    ref: Annotated[
        str, typer.Option("--ref", help="Commit, or version of a dataset, that the spec stands for.")
    ],
    prefix: Annotated[
        str | None, typer.Option(help="Image prefix. Default: that of RABBIT2DOCKER_TENANT.")
    ] = None,
    subdir: Subdir = None,
    build_arg: BuildArgs = None,
    label: Labels = None,
    as_json: AsJson = False,
) -> None:
    """Print the names of an image and its build, without a connection.

    Example: `rabbit2docker name gh binder-examples/requirements/HEAD --ref COMMIT`
    """
    with errors_explained():
        from rabbit2docker.consumer.images.names import build_name, image_name, options_digest
        from rabbit2docker.consumer.providers.specs import pin

        settings = _naming_settings()
        repository = pin(provider, spec, ref, hosts=settings.hosts)
        options = options_digest(
            subdir=subdir,
            build_args=parse_pairs(build_arg, "--build-arg"),
            labels=parse_pairs(label, "--label"),
        )
        slug, resolved = repository.build_slug, repository.resolved_ref
        image_prefix = settings.image_prefix if prefix is None else prefix
        names = {
            "build_name": build_name(slug, resolved, options_digest=options),
            "image": image_name(image_prefix, slug, resolved, options_digest=options),
            "repo_url": repository.repo_url,
        }
    if as_json:
        say(json.dumps(names))
        return
    for key, value in names.items():
        say(f"{key}: {value}")


def schema(
    message: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name such as build.completed.v1. Default: list all names."),
    ] = None,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI document.")] = False,
) -> None:
    """Print the contract: the JSON Schema of a message, or the AsyncAPI document.

    Example: `rabbit2docker schema build.requested.v1`
    """
    from rabbit2docker_schemas import documents

    schemas = documents.json_schemas()
    if asyncapi:
        say(json.dumps(documents.asyncapi(), indent=2, ensure_ascii=False))
    elif message is None:
        for known in sorted(schemas):
            say(known)
    elif message not in schemas:
        fail(f"There is no message {message}. The names are: {', '.join(sorted(schemas))}.", Exit.NOT_FOUND)
    else:
        say(json.dumps(schemas[message], indent=2, ensure_ascii=False))


def settings(as_json: AsJson = False) -> None:
    """List all settings with their current value and meaning. Secrets are not shown."""
    from rabbit2docker.settings import load_settings

    with errors_explained():
        values = load_settings()
    found = [(key, _shown(value), text) for key, value, text in _leaves(values)]
    if as_json:
        for key, value, text in found:
            say(json.dumps({"name": key, "value": value, "help": text}))
    else:
        _print_settings(found)


def _leaves(values: "BaseModel", path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield variable, value and description of each setting below `values`."""
    from pydantic import BaseModel

    from rabbit2docker.settings.descriptions import descriptions

    texts = descriptions(type(values))
    for field in type(values).model_fields:
        value, where = getattr(values, field), f"{path}{field.upper()}"
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{where}__")
        else:
            yield f"{ENV_PREFIX}{where}", value, " ".join(texts.get(field, "").split())


def _shown(value: Any) -> str:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return "(set, not shown)"
    if isinstance(value, list | dict | bool):
        return json.dumps(value, default=_nested)
    return "" if value is None else str(value)


def _nested(value: Any) -> Any:
    from pydantic import BaseModel

    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _print_settings(found: list[tuple[str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rabbit2docker.cli.console import out

    table = Table("SETTING", "VALUE", "MEANING", box=None, pad_edge=False)
    for row in found:
        table.add_row(*map(Text, row))
    out().print(table)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (name, schema, settings):
        app.command(rich_help_panel="Information")(command)
