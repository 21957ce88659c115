"""The settings of a translation, checked by the settings themselves."""

from typing import Any, Final

from pydantic import BaseModel, ValidationError

from rabbit2docker.migration.translation import Translation
from rabbit2docker.migration.values_files import Values
from rabbit2docker.settings import Settings

_TRIES: Final = 100
"""Each removes a wrong value at least."""


def check(translation: Translation) -> None:
    """Leave out every setting that the service would refuse, and bring the others to the form of the chart's schema."""
    config: Values = translation.values.get("config", {})
    for name in list(config):
        checked = _checked(translation, name, _group(name), config[name])
        if checked:
            config[name] = checked
        else:
            del config[name]


def _group(name: str) -> type[BaseModel]:
    found: type[BaseModel] = Settings.model_fields[name].annotation  # type: ignore[assignment]
    return found


def _checked(translation: Translation, group: str, model: type[BaseModel], values: Values) -> Values:
    for _ in range(_TRIES):
        try:
            found = model.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = _remove(values, problem["loc"])
            translation.leave_note(f"config.{group}.{where}", f"would be refused: {problem['msg']}.")
        else:
            return found.model_dump(mode="json", exclude_unset=True)
    return {}


def _remove(values: Values, location: tuple[int | str, ...]) -> str:
    """Remove the innermost mapping's key on the way to a wrong value; return its path."""
    above: Any = values
    found: Any = values
    path: list[str] = []
    for key in location:
        if not isinstance(found, dict) or key not in found:
            break
        path.append(str(key))
        above, found = found, found[key]
    if not path:
        values.clear()
        return ""
    del above[path[-1]]
    return ".".join(path)
