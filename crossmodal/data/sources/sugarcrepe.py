"""A picture, its caption and one with a word changed: ``sugarcrepe:FILE.json?images=DIR``.

The file is ``{"0": {"filename": "a.jpg", "caption": "…", "negative_caption": "…"}, …}`` (Hsieh et al. 2023,
https://arxiv.org/abs/2306.14610). A sample has both captions, the true one first.
"""

from __future__ import annotations

import json

from crossmodal.data.sources.base import Listed
from crossmodal.errors import UserError


class SugarCrepeSource(Listed):
    """The pictures stand in ``images``; without it, beside the file."""

    def __init__(self, path: str, *, images: str | None = None):
        file = self.list_at(path, images)
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            self.samples = [(f"{key}/0", e["filename"], (e["caption"], e["negative_caption"])) for key, e in entries.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not SugarCrepe's layout (filename, caption, negative_caption by number): {error}") from error
