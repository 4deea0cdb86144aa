"""Recall@k of paired data, both ways, with every caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal.embed import Embeddings
from crossmodal.errors import UserError


@dataclass
class Ranks:
    """How many answers stood before the first right one; 0 is a hit at once."""

    to_image: Tensor  # int64 [Q]: of each caption that asks, among the N pictures
    caption: Tensor  # int64 [Q]: which of the M captions asks
    to_text: Tensor  # int64 [P]: of each picture that has captions, among the captions
    picture: Tensor  # int64 [P]: which picture asks


def recall(pairs: Embeddings, ks: Sequence[int] = (1, 5, 10), block: int = 1024) -> dict[str, float]:
    """Shares found among the first k, under CLIP_benchmark's names: ``image_retrieval_recall@k`` and ``text_retrieval_recall@k``,
    from ``ranks`` with every caption for itself."""
    found = ranks(pairs, block=block)
    figures = {f"image_retrieval_recall@{k}": (found.to_image < k).double().mean().item() for k in ks}
    return figures | {f"text_retrieval_recall@{k}": (found.to_text < k).double().mean().item() for k in ks}


def ranks(pairs: Embeddings, collapsed: bool = False, block: int = 1024) -> Ranks:
    """Text→image: every caption asks for its picture among all N. Image→text: every picture that has captions asks; right is any of its
    own among all M. (With five captions a picture, only this counts all of them.)

    ``collapsed``: equal captions are one, which asks once and belongs to all pictures that have it; any of them is right.
    Ties: what has the same score and stands earlier in the data comes first, as in a stable sort. Computed in blocks of ``block`` queries.

    Errors: ``UserError`` for a source without captions.
    """
    if not len(pairs.text):
        raise UserError("this source has no captions, so there is nothing to retrieve.")
    first: dict[str, int] = {}
    group = [first.setdefault(text, m) for m, text in enumerate(pairs.captions)] if collapsed else range(len(pairs.captions))
    kept = torch.tensor(sorted(set(group)))  # [Q]: the captions that ask
    place = torch.zeros(len(pairs.captions), dtype=torch.long)
    place[kept] = torch.arange(len(kept))
    query = place[torch.tensor(list(group))]  # [M]: each caption's question
    has = torch.zeros(len(pairs), dtype=torch.bool)
    has[pairs.owner] = True
    asking = has.nonzero()[:, 0]
    text = pairs.text[kept]
    return Ranks(
        _best(text, pairs.image, query, pairs.owner, torch.arange(len(kept)), block),
        kept,
        _best(pairs.image, text, pairs.owner, query, asking, block),
        asking,
    )


def _best(queries: Tensor, gallery: Tensor, asks: Tensor, right: Tensor, rows: Tensor, block: int) -> Tensor:
    """For each of the queries ``rows``: how many of ``gallery`` come before the best-placed right one.

    ``asks`` and ``right`` [M] list the pairs that belong together: query ``asks[m]`` and gallery entry ``right[m]``.
    """
    order = asks.argsort(stable=True)
    asks, right = asks[order].contiguous(), right[order]
    out = []
    for chosen in rows.split(block):
        scores = queries[chosen] @ gallery.T  # [Q, G]
        low, high = torch.searchsorted(asks, chosen), torch.searchsorted(asks, chosen, right=True)
        owner = torch.repeat_interleave(torch.arange(len(chosen)), high - low)
        mine = torch.full_like(scores, -torch.inf)
        at = torch.cat([right[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        mine[owner, at] = scores[owner, at]
        best, place = mine.max(1, keepdim=True)  # the first of equal ones
        earlier = torch.arange(scores.shape[1]) < place
        out.append(((scores > best) | ((scores == best) & earlier)).sum(1))
    return torch.cat(out)
