"""Karpathy's splits of COCO, Flickr30k and Flickr8k: ``karpathy:dataset_flickr8k.json?images=DIR&split=test``.

One JSON file (Karpathy & Fei-Fei 2015) has every picture with ``filename``, ``split`` and ``sentences``, each with its ``raw`` text; COCO's
pictures also have ``filepath``, the folder below DIR. ``split=train,restval`` takes several.
"""

from __future__ import annotations

import json
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError


class KarpathySource(Source):
    """Without ``images`` the pictures stand beside the file; without ``split`` all are taken."""

    def __init__(self, path: str, *, images: str | None = None, split: str | None = None):
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{path}: no such file.")
        self.root = Path(images).expanduser() if images else file.parent
        wanted = set(split.split(",")) if split else None
        try:
            said = json.loads(file.read_text(encoding="utf-8"))["images"]
            there = {each.get("split") for each in said}
            self.samples = [
                (str(Path(each.get("filepath", "")) / each["filename"]), tuple(s["raw"].strip() for s in each["sentences"]))
                for each in said
                if wanted is None or each["split"] in wanted
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not Karpathy's layout (images with filename, split, sentences): {error!r}.") from error
        if wanted and not wanted <= there:
            raise UserError(f"{path}: has no split {sorted(wanted - there)[0]!r}; its splits: {', '.join(sorted(map(str, there)))}.")
        pictures.check_first(self.samples[0][0] if self.samples else None, self.root, path)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        name, captions = self.samples[index]
        return Sample(name, pictures.read(name, self.root), captions)
