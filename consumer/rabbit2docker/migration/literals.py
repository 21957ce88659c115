"""Python code in `extraConfig`: assignments of plain values are settings like any other, the rest cannot be translated."""

import ast
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Snippet:
    """The effects of a piece of configuration code, as far as it can be read without running it."""

    literals: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Values by class and name of the setting."""
    computed: list[str] = field(default_factory=list)
    """Settings that the code computes, such as `BinderHub.hub_url`."""
    is_more: bool = False
    """Whether it does anything else."""


def read(code: str) -> Snippet:
    """Return what the code sets; code that is no Python does something else."""
    snippet = Snippet()
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        snippet.is_more = True
        return snippet
    for statement in body:
        _read_statement(statement, snippet)
    return snippet


def _read_statement(statement: ast.stmt, snippet: Snippet) -> None:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    setting = _setting(targets[0]) if len(targets) == 1 else None
    if not isinstance(statement, ast.Assign) or setting is None:
        inner = [found for node in ast.walk(statement) if (found := _assigned(node))]
        snippet.computed += [".".join(found) for found in inner]
        snippet.is_more |= not inner and not isinstance(statement, ast.Import | ast.ImportFrom)
        return
    try:
        snippet.literals[setting] = ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        snippet.computed.append(".".join(setting))


def _assigned(node: ast.AST) -> tuple[str, str] | None:
    """Return the setting that a node inside of other code changes, such as `c.BinderHub.x.update(…)`."""
    return _setting(node) if isinstance(node, ast.Attribute) else None


def _setting(node: ast.expr | ast.AST) -> tuple[str, str] | None:
    """Return class and name of `c.Class.name`."""
    match node:
        case ast.Attribute(attr=name, value=ast.Attribute(attr=group, value=ast.Name(id="c"))):
            return group, name
        case _:
            return None
