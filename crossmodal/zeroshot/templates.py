"""Which templates serve a data set best, by its validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal.data.sources.base import Source
from crossmodal.embed import encode
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.zeroshot import labels
from crossmodal.zeroshot.classifier import ensemble
from crossmodal.zeroshot.prompts import prompts


@dataclass
class Ranking:
    """Templates by top-1 accuracy, each alone and the best ones together."""

    alone: list[tuple[str, float]]  # every template, the best first
    chosen: list[str]  # those that help each other, in the order in which they were taken
    together: float  # the top-1 accuracy of ``chosen`` as an ensemble


def rank(model: Model, source: Source, templates: Sequence[str], most: int = 8, workers: int = 0) -> Ranking:
    """Score each template alone, then take one after another while the ensemble gets better, ``most`` at the most.

    The accuracies choose, so they flatter: quote that of other pictures. Errors: ``UserError`` for a source without classes.
    """
    if not source.classes:
        raise UserError("ranking templates needs a source with classes (a folder for each class has).")
    templates = list(dict.fromkeys(templates))
    pictures = encode(model, source, texts=False, workers=workers)
    y = labels.numbers(pictures, range(len(source.classes)))
    flat = [prompts(source.classes, [template]) for template in templates]
    vectors = model.encode_text([p for each in flat for several in each for p in several])
    sizes = [sum(map(len, each)) for each in flat]
    weights = torch.stack([ensemble(v, each) for v, each in zip(vectors.split(sizes), flat, strict=True)])  # [T, C, D]
    alone = [_accuracy(pictures.image, w, y) for w in weights]
    order = sorted(range(len(templates)), key=lambda t: -alone[t])
    chosen, together = [order[0]], alone[order[0]]
    while len(chosen) < min(most, len(templates)):
        tried = {t: _accuracy(pictures.image, weights[[*chosen, t]].sum(0), y) for t in order if t not in chosen}
        best = max(tried, key=tried.get)
        if tried[best] <= together:
            break
        chosen, together = [*chosen, best], tried[best]
    return Ranking([(templates[t], alone[t]) for t in order], [templates[t] for t in chosen], together)


def _accuracy(image: Tensor, weights: Tensor, y: Tensor, block: int = 4096) -> float:
    weights = F.normalize(weights, dim=-1)
    hits = sum(((x @ weights.T).argmax(1) == own).sum().item() for x, own in zip(image.split(block), y.split(block), strict=True))
    return hits / len(y)
