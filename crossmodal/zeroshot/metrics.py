"""Figures of a classification, from scores and labels."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """[N, C] scores and [N] labels → [N]: how many classes stand before the right one (0 is a hit).

    Ties: a class with the same score stands before if its number is smaller, as in a stable sort.
    """
    own = scores.gather(1, labels[:, None])  # [N, 1]
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def classification(rank: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Top-1, top-5 (shares) and mean per-class recall over the classes that occur, under CLIP_benchmark's names."""
    hits = (rank == 0).double()
    count = torch.bincount(labels, minlength=classes)
    per_class = torch.zeros(classes, dtype=torch.double).index_add_(0, labels, hits)
    seen = count > 0
    return {
        "acc1": hits.mean().item(),
        "acc5": (rank < 5).double().mean().item(),
        "mean_per_class_recall": (per_class[seen] / count[seen]).mean().item(),
    }
