"""Pictures that a table or a list only names: files beside it, or addresses."""

from __future__ import annotations

from pathlib import Path

from crossmodal.data import remote
from crossmodal.errors import UserError

LARGEST = 200_000_000  # bytes of one picture from an address


def read(reference: str | Path, root: Path) -> bytes:
    """The encoded picture that ``reference`` names: a path, relative to ``root``, or an address.

    Errors: ``OSError`` for what cannot be read, so that one picture is left out and the others go on.
    """
    try:
        return remote.read(reference, LARGEST) if remote.is_remote(reference) else (root / reference).read_bytes()
    except ValueError as error:  # a name that no file can have
        raise OSError(f"{reference!r}: {error}") from error


def check_first(reference: str | None, root: Path, who: str) -> None:
    """Tell a wrong folder at once, not after an epoch of warnings. Errors: ``UserError``."""
    if reference and not remote.is_remote(reference) and not _is_file(root / reference):
        raise UserError(f"{who}: names the picture {reference!r}, but {root / reference} does not exist; paths are relative to {root}.")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:
        return False
