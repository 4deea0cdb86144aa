"""Figures of a classification, from scores and labels."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15  # of the expected calibration error, as in Guo et al. 2017


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
    recall, count = per_class(hits, labels, classes)
    return {
        "acc1": hits.mean().item(),
        "acc5": (rank < 5).double().mean().item(),
        "mean_per_class_recall": recall[count > 0].mean().item(),
    }


def per_class(hits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """([C] the share of a class's pictures that were hit, 0 where it has none; [C] how many it has)."""
    count = torch.bincount(labels, minlength=classes)
    found = torch.zeros(classes, dtype=torch.double).index_add_(0, labels, hits.double())
    return found / count.clamp(min=1), count


def calibration_error(confidence: Tensor, hits: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3): over bins of equal width, the
    mean distance of confidence [N] from the share of hits [N], weighted by the bins' pictures."""
    return sum(abs(c - h) * n for c, h, n in bin_means(confidence, hits, bins)) / len(confidence)


def bin_means(confidence: Tensor, hits: Tensor, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean confidence, share of hits, pictures) of every bin that has any, from low confidence to high."""
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    total = lambda x: torch.zeros(bins, dtype=torch.double).index_add_(0, place, x.double())
    sure, right = total(confidence), total(hits)
    return [(sure[b].item() / n, right[b].item() / n, n) for b, n in enumerate(count.tolist()) if n]


def fit_temperature(logits: Tensor, labels: Tensor, steps: int = 50) -> float:
    """The temperature T > 0 with the least cross-entropy of logits [N, C] / T (Guo et al. 2017, section 4.2).

    The loss is convex in 1 / T, so Newton's steps on it find the one minimum. Where the right class has the highest score throughout there
    is none: the sharper the better, and a T is returned at which the loss is nothing. T stays between 1/1000 and 1000.
    """
    inverse = 1.0
    x = logits.double() - logits.double().gather(1, labels[:, None])  # the right class at 0
    low, high = 1e-3, 1e3
    for _ in range(steps):
        p = (inverse * x).softmax(1)
        mean = (p * x).sum(1)
        slope = mean.mean().item()
        curve = ((p * x.square()).sum(1) - mean.square()).mean().item()
        low, high = (inverse, high) if slope < 0 else (low, inverse)  # the minimum lies where the slope turns
        after = inverse - slope / curve if curve > 0 else 0.0
        after = after if low < after < high else (low * high) ** 0.5
        if abs(after / inverse - 1) < 1e-7:
            break
        inverse = after
    return 1 / inverse


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """[N, C] scores and [N, C] truth (0 or 1) → [C]: a class's mean precision at each of its pictures, best score first.

    A class without pictures has 0, as in CLIP_benchmark. Ties: the earlier picture first.
    """
    order = scores.sort(dim=0, descending=True, stable=True).indices
    truth = targets.gather(0, order).double()  # [N, C]
    precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1, dtype=torch.double)[:, None]
    return (precision * truth).sum(0) / truth.sum(0).clamp(min=1)
