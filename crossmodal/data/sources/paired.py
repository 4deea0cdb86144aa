"""A folder of pictures with a text file of the same name each: ``paired:DIR``, ``DIR/a.jpg`` and ``DIR/a.txt`` (a caption a line)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.data.sources.folder import PICTURES
from crossmodal.errors import UserError

BESIDE = (".txt",)


class PairedSource(Source):
    """Pictures anywhere below DIR, in the order of their paths; those without a text file are no samples."""

    def __init__(self, path: str):
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise UserError(f"{path}: no such folder.")
        found = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in PICTURES)
        self.files = [file for file in found if file.with_suffix(".txt").is_file()]
        lone = len(found) - len(self.files)
        self.left_out = +Counter({"pictures without a text": lone})
        if not self.files:
            raise UserError(f"{path}: holds no picture with its text; a.jpg goes with a.txt.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        lines = file.with_suffix(".txt").read_bytes().decode("utf-8", errors="replace").splitlines()
        captions = tuple(line.strip() for line in lines if line.strip())
        return Sample(str(file.relative_to(self.root)), file.read_bytes(), captions)
