"""A data set as CLIP_benchmark lays it out: ``clip_benchmark:DIR``, with ``DIR/test/0.tar …`` and, for classes, ``DIR/classnames.txt``.

Samples are ``KEY.jpg|png|webp`` with ``KEY.cls`` (a class's number), ``KEY.npy`` (0 or 1 for each class, where a picture shows several) or
``KEY.txt`` (captions, one a line). ``DIR/zeroshot_classification_templates.txt`` holds its templates, with ``{c}`` for the name.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossmodal.batch import Sample
from crossmodal.data.sources.webdataset import TarSource
from crossmodal.errors import UserError


class ClipBenchmarkSource(TarSource):
    """The tars of one split, numbered from 0 on (``nshards.txt`` says how many)."""

    def __init__(self, path: str, *, split: str = "test"):
        root = Path(path).expanduser()
        shards = root / split / "nshards.txt"
        if not shards.is_file():
            raise UserError(f"{shards}: no such file; the layout of CLIP_benchmark has one, beside 0.tar, 1.tar …")
        last = int(shards.read_text(encoding="utf-8")) - 1
        names = root / "classnames.txt"
        super().__init__(f"{root / split}/{{0..{last}}}.tar", classes=str(names) if names.is_file() else None)
        templates = root / "zeroshot_classification_templates.txt"
        if templates.is_file():
            lines = templates.read_text(encoding="utf-8").splitlines()
            self.templates = [line.strip().replace("{c}", "{}") for line in lines if line.strip()]

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        shard, members = self._members(index)
        if "npy" in members:
            held = np.load(io.BytesIO(self._read(shard, *members["npy"])), allow_pickle=False)
            return replace(sample, label=tuple(held.ravel().nonzero()[0].tolist()), captions=())
        if "txt" in members:
            lines = (line.strip() for caption in sample.captions for line in caption.splitlines())
            return replace(sample, captions=tuple(line for line in lines if line))
        return sample
