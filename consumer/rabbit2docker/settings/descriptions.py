"""The descriptions of settings: the texts below them in the source, for the list of settings and for documents.

pydantic can read them as it makes each class, which takes half of the time in which the settings are imported.
"""

import ast
import inspect
from itertools import pairwise

from pydantic import BaseModel


def descriptions(group: type[BaseModel]) -> dict[str, str]:
    """Return the description of each setting of a group that has one, by name."""
    [definition] = ast.parse(inspect.getsource(group)).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for declared, text in pairwise(definition.body):
        match declared, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as words)):
                found[name] = inspect.cleandoc(words)
            case _:
                pass
    return found
