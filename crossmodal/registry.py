"""File name = registry name = recipe key.

``objectives/simclr.py`` is reached as ``simclr``; nothing is registered by hand. A file may declare
further names (``ALIASES = ("wds",)``) or file endings it opens (``ENDINGS = (".tar",)``) as plain
tuples at its top. A dotted path (``mypackage.losses.triplet``) reaches a module outside the package.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path

from crossmodal.errors import UserError, nearest

ROOT = Path(__file__).parent


@cache
def names(kind: str) -> tuple[str, ...]:
    """The file names in a folder of the package (``kind``: "objectives", "towers", "data.sources")."""
    folder = ROOT.joinpath(*kind.split("."))
    return tuple(sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "base")))


@cache
def declared(kind: str, constant: str) -> dict[str, str]:
    """What the files of a folder declare under ``constant``: {alias or ending: file name}.

    Read from the source text, so that asking does not import transformers and friends.
    """
    found = {}
    for name in names(kind):
        tree = ast.parse(ROOT.joinpath(*kind.split("."), f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == constant:
                found.update({value: name for value in ast.literal_eval(node.value)})
    return found


def find(kind: str, name: str, base: str) -> type:
    """The one subclass of the folder's ``base`` class (named, defined in its ``base.py``) in the file ``name``.

    Errors: ``UserError`` for a name without a file, or a dotted path that cannot be imported.
    """
    if "." in name:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name!r} cannot be imported as a module: {error}.") from error
    else:
        file = declared(kind, "ALIASES").get(name, name)
        if file not in names(kind):
            known = {*names(kind), *declared(kind, "ALIASES")}
            raise UserError(f"there is no {kind.split('.')[-1].rstrip('s')} called {name!r}; {nearest(name, known)}")
        module = importlib.import_module(f"crossmodal.{kind}.{file}")
    parent = getattr(importlib.import_module(f"crossmodal.{kind}.base"), base)
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, parent) and c.__module__ == module.__name__]
    if len(classes) != 1:
        raise UserError(f"{module.__name__} should define one {base}, but defines {len(classes)}.")
    return classes[0]


def options(cls: type) -> dict[str, inspect.Parameter]:
    """The keyword options that a class's constructor takes, and its ``open`` where it has one (keyword-only parameters)."""
    makers = [cls.__init__, *([cls.open] if hasattr(cls, "open") else [])]
    return {n: p for maker in makers for n, p in inspect.signature(maker).parameters.items() if p.kind is p.KEYWORD_ONLY}
