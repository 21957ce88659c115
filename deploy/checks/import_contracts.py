"""Import contracts of our own, for import-linter: they name whole packages, and need no list of what else there is.

`library`: which packages may import a library. `standalone`: everything that a package may import.
import-linter's own contracts cannot say either: `protected` fails for a library that is imported nowhere, such as a
database driver that is loaded by its name, and `forbidden` needs a list of everything that is not allowed.
"""

import sys
from collections.abc import Iterable
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def _is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class _DirectImportsContract(Contract):
    """A contract about single imports, reported with their lines."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Find the imports that are not allowed."""
        illegal = [
            (importer, imported)
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not self.allows(importer, imported)
        ]
        lines = []
        for importer, imported in illegal:
            details = graph.get_import_details(importer=importer, imported=imported)
            numbers = ", ".join(str(detail["line_number"]) for detail in details)
            lines.append(f"- {importer} -> {imported} (l.{numbers})")
        return ContractCheck(kept=not lines, metadata={"lines": lines})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the imports that are not allowed."""
        for line in check.metadata["lines"]:
            output.print_error(line, bold=False)
        output.new_line()

    def allows(self, importer: str, imported: str) -> bool:
        """Return whether one module may import another."""
        raise NotImplementedError


class LibraryContract(_DirectImportsContract):
    """Only `importers`, and what is in them, may import `libraries`."""

    type_name = "library"

    libraries: Any = fields.ListField(subfield=fields.StringField())
    importers: Any = fields.ListField(subfield=fields.StringField())

    def allows(self, importer: str, imported: str) -> bool:
        """Return whether the import is of something else, or by one of the importers."""
        return not _is_in(imported, self.libraries) or _is_in(importer, self.importers)


class StandaloneContract(_DirectImportsContract):
    """A `package` may import itself, the standard library, and what is `allowed`."""

    type_name = "standalone"

    package: Any = fields.StringField()
    allowed: Any = fields.ListField(subfield=fields.StringField(), required=False)

    def allows(self, importer: str, imported: str) -> bool:
        """Return whether the import is by another package, or of something allowed."""
        if not _is_in(importer, [self.package]) or imported.partition(".")[0] in sys.stdlib_module_names:
            return True
        return _is_in(imported, [self.package, *(self.allowed or [])])
