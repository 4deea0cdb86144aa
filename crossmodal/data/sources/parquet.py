"""Parquet files: ``pairs.parquet``, ``parquet:DIR/{00000..00009}.parquet?image=jpg&caption=text``.

Columns as in ``hf``: pictures are bytes, HF's Image, paths (relative to the first file's folder) or addresses. The files are laid
out once for random access in the datasets library's cache, and stay on the disk. Files at addresses (``https://``, ``s3://``,
``hf://datasets/ID/…``) are fetched one by one as their turn comes; how many rows they hold is read from their footers.
"""

from __future__ import annotations

import io
from pathlib import Path

from crossmodal.data import remote
from crossmodal.data.paths import local
from crossmodal.data.sources.base import Shards, Source, here_or_in_turn
from crossmodal.data.sources.hf import HubSource, quiet_without_a_terminal
from crossmodal.errors import UserError

ENDINGS = (".parquet",)
FOLDERS = ("*.parquet",)
FOOTER = 1 << 16  # bytes that hold most footers


class ParquetSource(HubSource):
    """One table in one or several files, laid out for random access in the folder ``room`` (None: the library's cache)."""

    def __init__(self, path: str, room: Path | None = None, *, image: str | None = None, caption: str | None = None, label: str = "label"):
        import pyarrow
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError

        quiet_without_a_terminal()
        files = local(path, ".parquet")
        self.root = files[0].parent
        try:
            dataset = Dataset.from_parquet([str(f) for f in files], cache_dir=str(room) if room else None)
        except (pyarrow.ArrowException, DatasetGenerationError, OSError, ValueError) as error:
            raise UserError(f"{path}: not readable parquet: {str(error.__cause__ or error).splitlines()[0]}") from error
        self._take(dataset, path, image, caption, label)

    @classmethod
    def open(cls, path: str, **options: str) -> Source:
        return here_or_in_turn(cls, path, **options)

    @classmethod
    def in_turn(cls, who: str, addresses: list[str], **options: str) -> Shards:
        """Tables that are fetched as their turn comes. Errors: ``UserError``."""
        return Shards("parquet", who, addresses, lambda file: cls(str(file), file.parent, **options), rows)


def rows(address: str) -> int:
    """How many rows a parquet file holds, by its footer. Errors: ``OSError``."""
    import pyarrow
    from pyarrow.parquet import read_metadata

    end = remote.tail(address, FOOTER)
    length = int.from_bytes(end[-8:-4], "little") + 8  # the footer, its length, and the mark
    if end[-4:] != b"PAR1":
        raise OSError(f"{address}: is not parquet")
    if length > len(end):
        end = remote.tail(address, length)
    try:
        return read_metadata(io.BytesIO(b"PAR1" + end[-length:])).num_rows
    except pyarrow.ArrowException as error:
        raise OSError(f"{address}: is not parquet: {error}") from error
