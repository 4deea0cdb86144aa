"""Rows of delimited text, each with as many fields as the header."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from crossmodal.errors import UserError

csv.field_size_limit(100_000_000)  # a caption may be long; what unpacks to more is no caption


def read_table(table: Path, lines: Iterable[str]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """(columns, then (line number, {column: field}) of every row). The header's most frequent one of comma, semicolon, bar, tab delimits.

    Errors: ``UserError`` with the line, for a row that has more or fewer fields, and for a quotation mark that is never closed.
    """
    lines = iter(lines)
    header = next(lines, "")
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
