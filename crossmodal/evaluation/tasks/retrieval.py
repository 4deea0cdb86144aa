"""Retrieval of pairs: recall@k both ways, every caption for itself (strict) and equal captions as one (collapsed)."""

from __future__ import annotations

from collections.abc import Sequence

from crossmodal.errors import UserError
from crossmodal.evaluation.tasks.base import Answer, Case, Task, shared
from crossmodal.retrieval.recall import ranks

WAYS = ("text→image", "image→text")


class Retrieval(Task):
    """image_retrieval_recall@k (text→image) and text_retrieval_recall@k; with ``_collapsed`` where captions repeat."""

    metric = "image_retrieval_recall@5"
    reads_captions = True

    def __init__(self, *, k: Sequence[int] = (1, 5, 10), collapsed: bool = True):
        if min(k) < 1:
            raise UserError("k takes numbers from 1 on.")
        self.k, self.collapsed = k, collapsed

    def answer(self, case: Case) -> Answer:
        pairs = case.pictures()
        answer = Answer(metrics={}, broken=pairs.broken, pictures=len(pairs))
        repeated = self.collapsed and len(set(pairs.captions)) < len(pairs.captions)
        for collapsed in (False, True) if repeated else (False,):
            found, mark = ranks(pairs, collapsed), "_collapsed" if collapsed else ""
            ways = [f"{way}{mark}" for way in WAYS]
            asked = [(m, pairs.owner[m].item()) for m in found.caption.tolist()]
            answer.rows += [
                {"way": ways[0], "key": pairs.keys[n], "row": pairs.rows[n], "caption": pairs.captions[m], "rank": rank}
                for (m, n), rank in zip(asked, found.to_image.tolist(), strict=True)
            ]
            answer.rows += [
                {"way": ways[1], "key": pairs.keys[n], "row": pairs.rows[n], "rank": rank}
                for n, rank in zip(found.picture.tolist(), found.to_text.tolist(), strict=True)
            ]
            for way, name in zip(ways, ("image", "text"), strict=True):
                answer.shares |= {f"{name}_retrieval_recall@{k}{mark}": (way, k) for k in self.k}
        answer.about = {
            "captions": len(pairs.captions),
            "distinct_captions": len(set(pairs.captions)),
            "ties": "the earlier in the data first",
        }
        return shared(answer)
