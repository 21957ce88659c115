"""Values files of Helm: merged as helm merges them, and the section of a chart found in those of its parent."""

from collections.abc import Iterator
from typing import Any, Final

from rabbit2docker.errors import ConfigurationError

Values = dict[str, Any]
Path = tuple[str, ...]

NAMES: Final = ("binderhub-service", "binderhub")
"""Names that charts have as dependencies of others."""
_DISTINCTIVE: Final = frozenset(
    {
        "buildPodsDockerConfig",
        "buildPodsRegistryCredentials",
        "dockerApi",
        "imageBuilderType",
        "imageCleaner",
        "dind",
    }
)
"""Values that only charts of BinderHub have."""
_CLASSES: Final = frozenset(
    {
        "BinderHub",
        "BuildExecutor",
        "KubernetesBuildExecutor",
        "KubernetesCleaner",
        "DockerRegistry",
        "GitHubRepoProvider",
    }
)
"""Groups of settings under `config` that only BinderHub has."""
_OURS: Final = frozenset({"hubService", "removeOnUninstall", "tenantCredentials"})
_DEPTH: Final = 4


def parse(text: str, name: str) -> Values:
    """Return the values in a file. Raises a ConfigurationError, which never shows the text."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{name} is not YAML: {error.problem}, in line {line}.") from None
    except yaml.YAMLError:
        raise ConfigurationError(
            f"{name} is not YAML: it holds characters that YAML does not allow."
        ) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{name} holds no values: at its top is a {type(found).__name__}, not a mapping."
        )
    values: Values = _as_json(found)
    return values


def _as_json(value: Any) -> Any:
    """Return a value as helm has it: keys are texts, as are dates."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def merged(files: list[Values]) -> Values:
    """Return the values of several files; later files win, mappings are merged, and null removes a value."""
    result: Values = {}
    for values in files:
        result = _merge(result, values)
    return _without_nulls(result)


def _merge(base: Values, over: Values) -> Values:
    result = dict(base)
    for key, value in over.items():
        former = result.get(key)
        result[key] = _merge(former, value) if isinstance(former, dict) and isinstance(value, dict) else value
    return result


def _without_nulls(values: Values) -> Values:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def sections(values: Values) -> list[Path]:
    """Return the paths of all sections for a chart of BinderHub; the empty path is the whole file."""
    return [()] if _is_binderhub(values) else list(_sections_below(values, ()))


def _sections_below(values: Values, path: Path) -> Iterator[Path]:
    for key, value in values.items():
        if not isinstance(value, dict):
            continue
        here = (*path, key)
        if key in NAMES or _is_binderhub(value):
            yield here
        elif len(here) < _DEPTH:
            yield from _sections_below(value, here)


def _is_binderhub(values: Values) -> bool:
    if _OURS & values.keys():
        return False
    config = values.get("config")
    return bool(_DISTINCTIVE & values.keys() or (isinstance(config, dict) and _CLASSES & config.keys()))


def choose(values: Values, section: str | None) -> Path:
    """Return the path of the section to translate. Raises a ConfigurationError that names the choices."""
    if section is not None:
        path = tuple(filter(None, section.split(".")))
        if not isinstance(section_at(values, path), dict):
            raise ConfigurationError(f"There is no section {section}.")
        return path
    found = sections(values)
    if not found:
        raise ConfigurationError(
            "There are no values of binderhub-service or BinderHub. If they stand under a name of their own, choose it "
            "with --section."
        )
    if len(found) > 1:
        names = ", ".join(".".join(path) for path in found)
        raise ConfigurationError(f"There are several sections: {names}. Choose one with --section.")
    return found[0]


def section_at(values: Values, path: Path) -> Any:
    """Return the value at a path; None if there is none."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of everything that is not a mapping with items; a list counts as one value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value
