"""Recall@k of paired data, both ways, with every caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal.embed import Embeddings
from crossmodal.errors import UserError


def recall(pairs: Embeddings, ks: Sequence[int] = (1, 5, 10), block: int = 1024) -> dict[str, float]:
    """Shares found among the first k, under CLIP_benchmark's names.

    ``image_retrieval_recall@k`` (text→image): every caption asks for its picture among all N.
    ``text_retrieval_recall@k`` (image→text): every picture that has captions asks; found if any of its own
    is among the first k of all M. (With five captions a picture, only these count all of them.)
    Ties: what has the same score and stands earlier in the data comes first, as in a stable sort.
    Computed in blocks of ``block`` queries.
    """
    if not len(pairs.text):
        raise UserError("this source has no captions, so there is nothing to retrieve.")
    to_image = _text_to_image(pairs, block)
    to_text = _image_to_text(pairs, block)
    figures = {f"image_retrieval_recall@{k}": (to_image < k).double().mean().item() for k in ks}
    figures |= {f"text_retrieval_recall@{k}": (to_text < k).double().mean().item() for k in ks}
    return figures


def _before(scores: Tensor, own: Tensor, at: Tensor) -> Tensor:
    """[Q, C] scores; each query's target with score ``own`` [Q] at column ``at`` [Q] → how many come before it."""
    earlier = torch.arange(scores.shape[1]) < at[:, None]
    return ((scores > own[:, None]) | ((scores == own[:, None]) & earlier)).sum(1)


def _text_to_image(pairs: Embeddings, block: int) -> Tensor:
    """[M]: the rank of every caption's picture."""
    out = []
    for text, owner in zip(pairs.text.split(block), pairs.owner.split(block), strict=True):
        scores = text @ pairs.image.T  # [block, N]
        out.append(_before(scores, scores.gather(1, owner[:, None])[:, 0], owner))
    return torch.cat(out)


def _image_to_text(pairs: Embeddings, block: int) -> Tensor:
    """[pictures with captions]: the rank of the best-placed of a picture's own captions."""
    out = []
    has = torch.zeros(len(pairs), dtype=torch.bool)
    has[pairs.owner] = True
    asking = has.nonzero()[:, 0]
    for rows in asking.split(block):
        scores = pairs.image[rows] @ pairs.text.T  # [block, M]
        mine = pairs.owner[None, :] == rows[:, None]
        best, at = scores.masked_fill(~mine, -torch.inf).max(1)  # the first of equal ones
        out.append(_before(scores, best, at))
    return torch.cat(out)
