"""A folder of pictures with one table of their captions, as HF's ImageFolder has it: ``metadata:DIR``, ``DIR/metadata.csv`` or ``.jsonl``.

The table has ``file_name`` (relative to DIR) and ``text``, ``caption`` or ``captions``; a line that repeats a file adds a caption to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from crossmodal.data.sources.base import Listed
from crossmodal.data.tables import is_text, not_text, opened, read_table
from crossmodal.errors import UserError

FOLDERS = ("metadata.csv", "metadata.jsonl")
CAPTIONS = ("text", "caption", "captions", "title")


class MetadataSource(Listed):
    """``caption`` names the column of captions where it is called otherwise."""

    def __init__(self, path: str, *, caption: str | None = None):
        self.root = Path(path).expanduser()
        table = next((self.root / name for name in FOLDERS if (self.root / name).is_file()), None)
        if table is None:
            raise UserError(f"{path}: holds neither {' nor '.join(FOLDERS)}.")
        captions: dict[str, list[str]] = {}
        other = []
        for number, row in _rows(table):
            column = caption or next((name for name in CAPTIONS if name in row), None)
            if "file_name" not in row or column not in row:
                wanted = caption or "or ".join(f"{name!r} " for name in CAPTIONS[:2]).strip()
                raise UserError(f"{table}, line {number}: lacks file_name or {wanted} (it has: {', '.join(map(str, row))}).")
            said = row[column] if isinstance(row[column], list) else [row[column]]
            if not is_text(row["file_name"], *said):
                other.append(number)
                continue
            captions.setdefault(str(row["file_name"]), []).extend(c.strip() for c in said if isinstance(c, str) and c.strip())
        self.keep((name, name, tuple(said)) for name, said in captions.items())
        self.left_out |= not_text(table, other, bool(captions))
        self.check_first(str(table))


def _rows(table: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV or of lines of JSON. Errors: ``UserError`` with the line."""
    with opened(table) as lines:
        if table.suffix == ".csv":
            yield from read_table(table, lines)[1]
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{table}, line {number}: is no JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise UserError(f"{table}, line {number}: is no mapping.")
                yield number, row
