"""`name`, `schema` and `settings`: answers that need nobody."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from pydantic import BaseModel, SecretStr
from rich.table import Table

from rabbit2docker.cli.exits import Exit, explained, fail, out
from rabbit2docker.cli.options import BuildArgs, Labels, Subdir, pairs
from rabbit2docker.settings import ENV_PREFIX, Settings, load_settings
from rabbit2docker_schemas import documents


def name(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Such as gh or git.")],
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As in BinderHub's /build/PROVIDER/SPEC.")],
    ref: Annotated[str, typer.Option("--ref", help="The commit that the spec is taken to mean.")],
    prefix: Annotated[
        str | None, typer.Option(help="Image prefix. Default: RABBIT2DOCKER_IMAGES__PREFIX.")
    ] = None,
    subdir: Subdir = None,
    build_arg: BuildArgs = None,
    label: Labels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the names a build would have, without building or asking anyone."""
    with explained():
        from rabbit2docker.consumer.images.names import build_name, image_name, options_digest
        from rabbit2docker.consumer.providers.catalog import Providers

        settings = load_settings()
        repository = Providers(settings.providers).get(provider).pin(spec, ref)
        options = options_digest(
            subdir=subdir,
            build_args=pairs(build_arg, "--build-arg"),
            labels=pairs(label, "--label"),
            appendix=None,
        )
        slug, resolved = repository.build_slug, repository.resolved_ref
        names = {
            "build_name": build_name(slug, resolved, options_digest=options),
            "image": image_name(
                settings.images.prefix if prefix is None else prefix,
                slug,
                resolved,
                options_digest=options,
                nonce=None,
            ),
            "repo_url": repository.repo_url,
        }
    if as_json:
        typer.echo(json.dumps(names))
        return
    for key, value in names.items():
        out.print(f"{key}: {value}", markup=False)


def schema(
    message: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Such as build.completed.v1; without it: all names."),
    ] = None,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI document.")] = False,
) -> None:
    """Print the contract: the JSON Schema of a message, or the AsyncAPI document of all."""
    schemas = documents.json_schemas()
    if asyncapi:
        typer.echo(json.dumps(documents.asyncapi(), indent=2, ensure_ascii=False))
    elif message is None:
        for known in sorted(schemas):
            typer.echo(known)
    elif message not in schemas:
        fail(f"There is no message {message}. Known: {', '.join(sorted(schemas))}.", Exit.NOT_FOUND)
    else:
        typer.echo(json.dumps(schemas[message], indent=2, ensure_ascii=False))


def _leaves(model: type[BaseModel], values: BaseModel, path: str = "") -> Iterator[tuple[str, Any, str]]:
    for field, info in model.model_fields.items():
        value, where = getattr(values, field), f"{path}{field.upper()}"
        if isinstance(value, BaseModel):
            yield from _leaves(type(value), value, f"{where}__")
        else:
            yield f"{ENV_PREFIX}{where}", value, " ".join((info.description or "").split())


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "(set, not shown)"
    if isinstance(value, list | dict | bool):
        return json.dumps(value, default=_inner)
    return "" if value is None else str(value)


def _inner(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def settings(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every setting with its value now and what it means. Secrets are not shown."""
    with explained():
        values = load_settings()
    found = [(key, _shown(value), text) for key, value, text in _leaves(Settings, values)]
    if as_json:
        for key, value, text in found:
            typer.echo(json.dumps({"name": key, "value": value, "help": text}))
        return
    table = Table("SETTING", "VALUE", "MEANING", box=None, pad_edge=False)
    for row in found:
        table.add_row(*(f"{text}" for text in row))
    out.print(table, markup=False)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (name, schema, settings):
        app.command(rich_help_panel="Information")(command)
