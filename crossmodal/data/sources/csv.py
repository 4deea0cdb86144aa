"""Tables of pairs: ``pairs.csv``, ``pairs.tsv``, ``csv:FILE?image=filepath&caption=title``.

The delimiter is sniffed from the header. Pictures are paths, relative to the table's own folder, or http addresses. Rows
that name the same picture are one sample with several captions.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.data.sources.base import Source
from crossmodal.data.strings import Groups, Strings
from crossmodal.data.tables import is_text, not_text, opened, read_table
from crossmodal.errors import UserError, nearest

ENDINGS = (".csv", ".tsv")
ALIASES = ("tsv",)


class CsvSource(Source):
    """A table with a column of picture paths and one of captions."""

    def __init__(self, path: str, *, image: str = "filepath", caption: str = "title"):
        table = Path(path).expanduser()
        if not table.is_file():
            raise UserError(f"{path}: no such file.")
        captions: dict[str, str | list[str]] = {}  # most have one, which needs no list
        lone, other = 0, []
        with opened(table) as lines:
            columns, rows = read_table(table, lines)
            _check(path, image, caption, columns)
            for number, row in rows:
                said = row[caption].strip() if row[image] else ""
                if not said:
                    lone += 1
                elif not is_text(row[image], said):
                    other.append(number)
                else:
                    before = captions.get(row[image], [])
                    captions[row[image]] = [*([before] if isinstance(before, str) else before), said] if before else said
        self.left_out = +Counter({"rows without a caption": lone}) | not_text(table, other, bool(captions))
        self.root = table.parent
        self.names = Strings(captions)
        self.captions = Groups([said] if isinstance(said, str) else said for said in captions.values())
        pictures.check_first(self.names[0] if len(self.names) else None, self.root, path)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        return Sample(name, pictures.read(name, self.root), self.captions[index])


def _check(path: str, image: str, caption: str, columns: list[str]) -> None:
    for column, option in ((image, "image"), (caption, "caption")):
        if column not in columns:
            raise UserError(
                f"{path}: has no column {column!r} (its columns: {', '.join(columns)}); {nearest(column, columns)} "
                f"Name it with csv:{path}?{option}=COLUMN."
            )
