"""Pictures that a table or a list only names: files beside it, or addresses."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from crossmodal.errors import UserError

LARGEST = 200_000_000  # bytes of one picture from an address
PATIENCE = 20  # seconds until an address that does not answer is given up
WEB = ("http://", "https://")


def read(reference: str | Path, root: Path) -> bytes:
    """The encoded picture that ``reference`` names: a path, relative to ``root``, or an http address.

    Errors: ``OSError`` for what cannot be read, so that one picture is left out and the others go on.
    """
    if isinstance(reference, str) and reference.startswith(WEB):
        try:
            with urlopen(Request(reference, headers={"User-Agent": "crossmodal"}), timeout=PATIENCE) as answer:
                data = answer.read(LARGEST + 1)
        except (URLError, ValueError) as error:
            raise OSError(f"{reference}: {error}") from error
        if len(data) > LARGEST:
            raise OSError(f"{reference}: is larger than {LARGEST:,} bytes")
        return data
    return (root / reference).read_bytes()


def check_first(reference: str | None, root: Path, who: str) -> None:
    """Tell a wrong folder at once, not after an epoch of warnings. Errors: ``UserError``."""
    if reference and not reference.startswith(WEB) and not (root / reference).is_file():
        raise UserError(f"{who}: names the picture {reference!r}, but {root / reference} does not exist; paths are relative to {root}.")
