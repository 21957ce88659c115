"""Values files on their way in and out: the section that is translated, and the text of the new file."""

from collections.abc import Iterable
from dataclasses import dataclass

from rabbit2docker.migration import binderhub
from rabbit2docker.migration.translation import Translation
from rabbit2docker.migration.values_files import Path, Values, choose, merged, parse, section_at

DEPENDENCY = "rabbit2docker"
"""Name of the new section in a parent's values."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One section and its translation."""

    section: Path
    """Path of the old section; empty for a whole file."""
    translation: Translation

    @property
    def values(self) -> Values:
        """The new values, at the place of the old ones in their parent's."""
        found = self.translation.values
        for key in reversed((*self.section[:-1], DEPENDENCY) if self.section else ()):
            found = {key: found}
        return found

    def text(self) -> str:
        """Return the new values as YAML."""
        import yaml

        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=120)


def migrate(
    files: Iterable[tuple[str, str]], section: str | None, *, image: str, amqp_secret: str
) -> Migration:
    """Translate a section of values in one or several files, given as name and text. Raises ConfigurationErrors."""
    old = merged([parse(text, name) for name, text in files])
    path = choose(old, section)
    found = section_at(old, path) or {}
    migration = Migration(path, binderhub.translate(found, image=image, amqp_secret=amqp_secret))
    _of_the_hub(migration, section_at(old, (*path[:-1], "jupyterhub")) if path else None)
    return migration


def _of_the_hub(migration: Migration, hub: object) -> None:
    """Say what changes in the section of the JupyterHub that has the service."""
    values = migration.translation.values
    name = values["hubService"].get("jupyterhub", {}).get("serviceName", "binder")
    port = values["hubService"].get("service", {}).get("port", 8585)
    where = (
        ".".join((*migration.section[:-1], "jupyterhub"))
        if isinstance(hub, dict)
        else "the JupyterHub's values"
    )
    migration.translation.change(
        f"hub.services.{name}.url in {where}" if name else where,
        f"becomes http://hub-RELEASE-rabbit2docker:{port}, or http://hub-rabbit2docker:{port} for a release of this name.",
    )
