"""Rows of delimited text, each with as many fields as the header."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from crossmodal.errors import UserError

csv.field_size_limit(100_000_000)  # a caption may be long; what unpacks to more is no caption
ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are no text


def opened(table: Path) -> TextIO:
    """The table as text; bytes that are not UTF-8 stay in it as halves of characters, which ``is_text`` tells."""
    return table.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def is_text(*fields: object) -> bool:
    """Whether those that are texts were UTF-8 when they were ``opened``."""
    return not any(isinstance(field, str) and not field.isascii() and ESCAPED.search(field) for field in fields)


def not_text(table: Path, lines: list[int], others: bool) -> Counter[str]:
    """What is said of rows that were passed over because they are not UTF-8. Errors: ``UserError`` where there are no others."""
    if lines and not others:
        raise UserError(f"{table}, line {lines[0]}: not UTF-8 text.")
    return Counter({f"rows that are not UTF-8 text (the first in line {lines[0]})": len(lines)} if lines else ())


def read_table(table: Path, lines: Iterable[str]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """(columns, then (line number, {column: field}) of every row). The header's most frequent one of comma, semicolon, bar, tab delimits.

    Errors: ``UserError`` with the line, for a row that has more or fewer fields, for a quotation mark that is never closed, and for a
    header that is not UTF-8.
    """
    lines = iter(lines)
    header = next(lines, "")
    if not is_text(header):
        raise UserError(f"{table}, line 1: not UTF-8 text.")
    delimiter = max(",\t;|", key=header.count)
    columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    if not columns:
        raise UserError(f"{table}: is empty; its first line names the columns.")
    return columns, _rows(table, lines, columns, delimiter)


def _rows(table: Path, lines: Iterator[str], columns: list[str], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    at = 2
    try:
        for row in reader:
            if row and len(row) != len(columns):
                fields = f"{len(row)} field{'s' if len(row) > 1 else ''}, where the header has {len(columns)}"
                raise UserError(f"{table}, line {at}: has {fields}; a text that holds {delimiter!r} stands in quotation marks.")
            if row:
                yield at, dict(zip(columns, row, strict=True))
            at = reader.line_num + 2
    except csv.Error as error:
        raise UserError(f"{table}, line {at}: {error}; is a quotation mark never closed, or not doubled inside a text?") from error
