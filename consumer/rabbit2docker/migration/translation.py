"""A translation in progress: the old values that are left, the new ones, and everything that has to be said of both.

Each old value is taken once. Those that nothing has taken at the end are reported, so that none is lost silently.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from rabbit2docker.migration.confidential import without_secrets
from rabbit2docker.migration.values_files import Path, Values, leaves, section_at

Form = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Note:
    """A remark on a value."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A Secret that has to be created before the chart is installed."""

    name: str
    value: str
    """The value of the chart that refers to it."""
    command: str
    """A command that creates it, with words in capitals in the place of secrets."""
    sources: list[str] = field(default_factory=list)
    """The old values that hold its content."""


def split(path: str) -> Path:
    """Return the path of a value whose keys have no dots."""
    return tuple(path.split("."))


def put(values: Values, path: Path, value: Any) -> None:
    """Set a value, and make the mappings above it."""
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value


class Translation:
    """Old values on their way to new ones."""

    def __init__(self, old: Values) -> None:
        """Take the values of the other chart."""
        self._old = deepcopy(old)
        self.values: Values = {}
        self.secrets: dict[str, NewSecret] = {}
        self.left_out: list[Note] = []
        self.changed: list[Note] = []

    def peek(self, path: str) -> Any:
        """Return an old value without taking it; None if it is not there, or taken."""
        return section_at(self._old, split(path))

    def take(self, path: str) -> Any:
        """Return an old value, once; None if it is not there."""
        return self.take_at(split(path))

    def take_at(self, path: Path) -> Any:
        """Return the old value at a path whose keys may have dots."""
        above = section_at(self._old, path[:-1])
        return above.pop(path[-1], None) if isinstance(above, dict) else None

    def read(self, path: str, form: Form) -> Any:
        """Take an old value of a form; None if it is not there, or left out because it has another form."""
        value = self.take(path)
        if value is None:
            return None
        try:
            return form(value)
        except ValueError as error:
            self.leave_note(path, f"{error}.")
            return None

    def add(self, path: str, value: Any) -> None:
        """Add an old value that stands elsewhere, or that is implied."""
        keys = split(path)
        for length in range(1, len(keys)):
            if not isinstance(section_at(self._old, keys[:length]), dict | None):
                self.leave_note(".".join(keys[:length]), "it is no mapping.")
        put(self._old, keys, value)

    def copy(self, old: str, new: str, form: Form) -> None:
        """Move a value to one or several places (`a.b c.d`). One of another form, or a secret in it, is left out."""
        value = self.take(old)
        if value is None:
            return
        try:
            shaped = form(value)
        except ValueError as error:
            self.leave_note(old, f"{error}, so {new.replace(' ', ' and ')} is not set.")
            return
        self.set(new, shaped, source=old)

    def set(self, new: str, value: Any, *, source: str) -> None:
        """Set one or several new values to what comes from an old one. Secrets in it are left out."""
        clean, found = without_secrets(value, source.rpartition(".")[2])
        for path in found:
            where = f"{source}.{path}".rstrip(".")
            self.leave_note(
                where,
                f"looks like a secret, so it is not copied to {new.replace(' ', ' and ')}. Use a Secret.",
            )
        if clean is None or (found and clean in ({}, [])):
            return
        for path in new.split():
            put(self.values, split(path), deepcopy(clean))

    def own(self, new: str, value: Any) -> None:
        """Set a new value that comes from no old one."""
        put(self.values, split(new), value)

    def leave(self, path: str, reason: str) -> None:
        """Take a value that has no counterpart, with all below it."""
        if self.take(path) not in (None, {}, [], ""):
            self.leave_note(path, reason)

    def leave_note(self, path: str, reason: str) -> None:
        """Report a value that is left out."""
        self.left_out.append(Note(path, reason))

    def change(self, path: str, text: str) -> None:
        """Report a value that works in another way than before, or that has to be decided."""
        self.changed.append(Note(path, text))

    def need_secret(self, name: str, value: str, command: str, *sources: str) -> None:
        """Refer to a Secret that does not exist yet."""
        secret = self.secrets.setdefault(name, NewSecret(name, value, command))
        secret.sources.extend(sources)

    def leave_the_rest(self) -> None:
        """Report what nothing has taken."""
        for path, value in leaves(self._old):
            if value not in ({}, [], None, ""):
                self.leave_note(".".join(path), "has no counterpart that this command knows of.")
