"""Two pictures and two captions that are told apart by word order alone: ``winoground:FILE.jsonl?images=DIR``.

A line is ``{"id": 0, "image_0": "a.png", "caption_0": "…", "image_1": "b.png", "caption_1": "…"}`` (Thrush et al. 2022,
https://arxiv.org/abs/2204.03162); picture n belongs to caption n. Each picture is a sample, ``ID/0`` and ``ID/1``.
"""

from __future__ import annotations

import json
from pathlib import Path

from crossmodal.data.sources.base import Listed
from crossmodal.errors import UserError

KEYS = ("id", "image_0", "caption_0", "image_1", "caption_1")


class WinogroundSource(Listed):
    """The pictures stand in ``images``; without it, beside the file, named as it names them (``.png`` where no ending is said)."""

    def __init__(self, path: str, *, images: str | None = None):
        file = self.list_at(path, images)
        self.samples = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                said = [row[k] for k in KEYS]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not an instance ({', '.join(KEYS)}): {error}") from error
            for n in (0, 1):
                picture = said[1 + 2 * n]
                self.samples.append((f"{said[0]}/{n}", picture if Path(picture).suffix else f"{picture}.png", (said[2 + 2 * n],)))
