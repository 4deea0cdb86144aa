"""Captions of pictures against what people wrote: CIDEr and BLEU-4, by kept libraries."""

from __future__ import annotations

from crossmodal import captions
from crossmodal.evaluation.tasks.base import Answer, Case, Task


class Captioning(Task):
    """CIDEr, BLEU-4 and the share of distinct captions, of a model that has a decoder."""

    metric = "CIDEr"
    tracked = ("CIDEr", "BLEU-4")

    def answer(self, case: Case) -> Answer:
        rows, said, written, broken = captions.caption(case.model, case.source, **case.search)
        figures = captions.score(said, written)
        return Answer(
            metrics={k: v for k, v in figures.items() if not k.endswith(" interval")},
            intervals={k.removesuffix(" interval"): tuple(v) for k, v in figures.items() if k.endswith(" interval")},
            rows=[{"way": "caption", "row": row, "caption": text} for row, text in zip(rows, said, strict=True)],
            about={"tokeniser": captions.TOKENISER},
            broken=broken,
            pictures=len(said),
        )
