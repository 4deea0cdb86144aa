"""Parquet files: ``pairs.parquet``, ``parquet:DIR/{00000..00009}.parquet?image=jpg&caption=text``.

Columns as in ``hf``: pictures are bytes, HF's Image, paths (relative to the first file's folder) or addresses. The files are laid
out once for random access in the datasets library's cache, and stay on the disk.
"""

from __future__ import annotations

from pathlib import Path

from crossmodal.data.sources.hf import HubSource, quiet_without_a_terminal
from crossmodal.data.sources.webdataset import braces
from crossmodal.errors import UserError

ENDINGS = (".parquet",)


class ParquetSource(HubSource):
    """One table in one or several files."""

    def __init__(self, path: str, *, image: str | None = None, caption: str | None = None, label: str = "label"):
        import pyarrow
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError

        quiet_without_a_terminal()
        files = [Path(p).expanduser() for p in braces(path)]
        if missing := [f for f in files if not f.is_file()]:
            raise UserError(f"{missing[0]}: no such file.")
        self.root = files[0].parent
        try:
            dataset = Dataset.from_parquet([str(f) for f in files])
        except (pyarrow.ArrowException, DatasetGenerationError, OSError, ValueError) as error:
            raise UserError(f"{path}: not readable parquet: {str(error.__cause__ or error).splitlines()[0]}") from error
        self._take(dataset, path, image, caption, label)
