"""crossmodal: paired image and text encoders in one embedding space, trained and put to use.

>>> import crossmodal
>>> model = crossmodal.load("runs/mine")             # or "open_clip:NAME/TAG", "hf:ID"
>>> classifier = crossmodal.ZeroShotClassifier(model, ["a cat", "a dog"])
>>> index = crossmodal.Index.load("my.index")
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_WHERE = {
    "load": "crossmodal.loading",
    "Model": "crossmodal.model",
    "fit": "crossmodal.training.loop",
    "read": "crossmodal.recipe",
    "open_source": "crossmodal.data.sources",
    "encode": "crossmodal.embed",
    "ZeroShotClassifier": "crossmodal.zeroshot.classifier",
    "Index": "crossmodal.retrieval.index",
    "search": "crossmodal.retrieval.search",
    "grid": "crossmodal.retrieval.search",
    "thumbnail": "crossmodal.retrieval.search",
    "score": "crossmodal.zeroshot.classifier",
    "recall": "crossmodal.retrieval.recall",
    "UserError": "crossmodal.errors",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    """Public names are imported when first asked for: torch takes seconds that ``--help`` need not."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'crossmodal' has no attribute {name!r}")
