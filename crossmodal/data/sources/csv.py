"""Tables of pairs: ``pairs.csv``, ``pairs.tsv``, ``csv:FILE?image=filepath&caption=title``.

The delimiter is sniffed from the header. Pictures are paths, relative to the table's own folder, or http addresses. Rows
that name the same picture are one sample with several captions.
"""

from __future__ import annotations

import csv
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError, nearest

ENDINGS = (".csv", ".tsv")
ALIASES = ("tsv",)


class CsvSource(Source):
    """A table with a column of picture paths and one of captions."""

    def __init__(self, path: str, *, image: str = "filepath", caption: str = "title"):
        table = Path(path).expanduser()
        if not table.is_file():
            raise UserError(f"{path}: no such file.")
        captions: dict[str, list[str]] = {}
        try:
            with table.open(encoding="utf-8-sig", newline="") as lines:
                header = lines.readline()
                delimiter = max(",\t;|", key=header.count)
                columns = next(csv.reader([header], delimiter=delimiter), [])
                for column in (image, caption):
                    if column not in columns:
                        option = "image" if column == image else "caption"
                        raise UserError(
                            f"{path}: has no column {column!r} (its columns: {', '.join(columns) or 'none'}); {nearest(column, columns)} "
                            f"Name it with csv:{path}?{option}=COLUMN."
                        )
                for row in csv.DictReader(lines, columns, delimiter=delimiter):
                    if row[image]:
                        captions.setdefault(row[image], []).append((row[caption] or "").strip())
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from error
        except csv.Error as error:
            raise UserError(f"{path}: not a readable table: {error}.") from error
        self.root = table.parent
        self.rows = [(name, tuple(c for c in said if c)) for name, said in captions.items()]
        self.rows = [(name, said) for name, said in self.rows if said]
        pictures.check_first(self.rows[0][0] if self.rows else None, self.root, path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        name, said = self.rows[index]
        return Sample(name, pictures.read(name, self.root), said)
