"""One text that stands for many files: ``a/{00..02}.tar``, ``{x,y}.tar``, ``a/*.tar``."""

from __future__ import annotations

import glob
import itertools
import re
import sys
from pathlib import Path

from crossmodal import distributed
from crossmodal.data import remote
from crossmodal.errors import UserError


def braces(spec: str) -> list[str]:
    """``a/{00..02}.tar`` → its paths; ``{x,y}`` alternatives too. A spec without braces is itself."""
    parts = []
    for piece in re.split(r"(\{[^{}]*\})", spec):
        if not piece.startswith("{"):
            parts.append([piece])
        elif span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
            low, high = span.groups()
            if int(low) > int(high):
                raise UserError(f"{spec}: {piece} counts down; write {{{high}..{low}}}.")
            parts.append([str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)])
        else:
            parts.append(piece[1:-1].split(","))
    return ["".join(p) for p in itertools.product(*parts)]


def expanded(spec: str) -> list[str]:
    """The paths or addresses that a spec stands for, whether they exist or not; what ``*`` stands for is looked up, and sorted.

    Errors: ``UserError`` where it stands for nothing.
    """
    found: list[str] = []
    for each in braces(spec):
        names = _matching(each) if "*" in each else [each]
        if not names:
            raise UserError(f"{each}: no file is called like this.")
        found += names
    return found


def _matching(pattern: str) -> list[str]:
    if not remote.is_remote(pattern):
        return sorted(glob.glob(str(Path(pattern).expanduser())))  # noqa: PTH207 (Path.glob wants a folder to start from)
    try:
        return remote.listed(pattern)
    except OSError as error:
        raise UserError(f"{error}.") from error


def local(spec: str, ending: str) -> list[Path]:
    """The files that a spec stands for, a folder for all with an ending. Where it stands for several, some may be missing, which is said.

    Errors: ``UserError`` where one named alone, or all of several, are missing.
    """
    folder = Path(spec).expanduser()
    spec = f"{folder}/*{ending}" if folder.is_dir() else spec
    files = [Path(each).expanduser() for each in expanded(spec)]
    there = [file for file in files if file.is_file()]
    pass_over(spec, [str(file) for file in files if not file.is_file()], bool(there))
    return there


def pass_over(who: str, missing: list[str], others: bool) -> None:
    """Say which of a source's files are missing. Errors: ``UserError`` where there are no others."""
    if not missing:
        return
    more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
    if not others:
        raise UserError(f"{missing[0]}{more}: no such file.")
    if distributed.is_main():
        print(f"crossmodal: {who}: {missing[0]}{more} does not exist; the others are used.", file=sys.stderr)
