"""Karpathy's splits of COCO, Flickr30k and Flickr8k: ``karpathy:dataset_flickr8k.json?images=DIR&split=test``.

One JSON file (Karpathy & Fei-Fei 2015) has every picture with ``filename``, ``split`` and ``sentences``, each with its ``raw`` text; COCO's
pictures also have ``filepath``, the folder below DIR. ``split=train,restval`` takes several.
"""

from __future__ import annotations

import json
from pathlib import Path

from crossmodal.data.sources.base import Listed
from crossmodal.errors import UserError, in_short


class KarpathySource(Listed):
    """Without ``images`` the pictures stand beside the file; without ``split`` all are taken."""

    def __init__(self, path: str, *, images: str | None = None, split: str | None = None):
        file = self.list_at(path, images)
        wanted = set(split.split(",")) if split else None
        try:
            said = json.loads(file.read_text(encoding="utf-8"))["images"]
            there = {each.get("split") for each in said}
            names = [
                (str(Path(each.get("filepath", "")) / each["filename"]), tuple(filter(None, (s["raw"].strip() for s in each["sentences"]))))
                for each in said
                if wanted is None or each["split"] in wanted
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not Karpathy's layout (images with filename, split, sentences): {in_short(error)}.") from error
        if wanted and not wanted <= there:
            raise UserError(f"{path}: has no split {sorted(wanted - there)[0]!r}; its splits: {', '.join(sorted(map(str, there)))}.")
        self.keep((name, name, said) for name, said in names)
        self.check_first(path)
