"""What an image tower has learnt, without its projection and without words: k-NN and a linear probe on its pooled features."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from crossmodal.data.loader import evaluation_batches
from crossmodal.data.sources.base import Source
from crossmodal.data.views import EvalView
from crossmodal.errors import UserError
from crossmodal.towers.base import ImageTower

PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@torch.inference_mode()
def features(tower: ImageTower, source: Source, view: EvalView, workers: int = 0) -> tuple[Tensor, Tensor]:
    """``keyed_features`` of a source with classes, with labels [N] as numbers.

    Errors: ``UserError`` for a source without labels.
    """
    x, keys, labels = keyed_features(tower, source, view, workers)
    if None in labels:
        raise UserError(f"{keys[labels.index(None)]}: has no label, so there is nothing to probe for.")
    return x, torch.tensor(labels)


@torch.inference_mode()
def keyed_features(tower: ImageTower, source: Source, view: EvalView, workers: int = 0) -> tuple[Tensor, list[str], list]:
    """Pooled features [N, W], fp32 on the CPU, keys and labels (None where there is none); pictures that do not decode are left out."""
    was, device = tower.training, next(tower.parameters()).device
    tower.eval()
    found, keys, labels = [], [], []
    with tqdm(total=len(source), unit="picture", desc="probe", disable=not sys.stderr.isatty(), leave=False) as bar:
        for items in evaluation_batches(source, view, range(len(source)), workers=workers):
            whole = [(picture, sample) for _, picture, sample, _ in items if picture is not None]
            if whole:
                found.append(tower(torch.stack([p for p, _ in whole]).to(device))["pooled"].float().cpu())
                keys += [sample.key for _, sample in whole]
                labels += [sample.label for _, sample in whole]
            bar.update(len(items))
    tower.train(was)
    if not found:
        raise UserError(f"none of the {len(source)} pictures can be decoded.")
    return torch.cat(found), keys, labels


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [A] and [B]: of every class the first, third, … to fit on, the others to score."""
    turns: defaultdict[int, Iterator[bool]] = defaultdict(lambda: cycle((True, False)))
    fits = torch.tensor([next(turns[y]) for y in labels.tolist()])
    return fits.nonzero()[:, 0], (~fits).nonzero()[:, 0]


def first(labels: Tensor, count: int) -> Tensor:
    """Rows: the first ``count`` of every class. Errors: ``UserError`` where a class has fewer."""
    seen: defaultdict[int, int] = defaultdict(int)
    rows = []
    for row, label in enumerate(labels.tolist()):
        seen[label] += 1
        if seen[label] <= count:
            rows.append(row)
    if few := [label for label, n in seen.items() if n < count]:
        raise UserError(f"{count} shots a class: class {few[0]} has only {seen[few[0]]} pictures to fit on.")
    return torch.tensor(rows)


def knn(fit: Tensor, fit_labels: Tensor, score: Tensor, score_labels: Tensor, k: int = 10, temperature: float = 0.07) -> float:
    """The share of ``score`` [B, W] that ``knn_predictions`` from ``fit`` [A, W] names rightly."""
    return _share(knn_predictions(fit, fit_labels, score, k, temperature), score_labels)


def knn_predictions(fit: Tensor, fit_labels: Tensor, score: Tensor, k: int = 10, temperature: float = 0.07) -> Tensor:
    """[B]: for each of ``score`` [B, W] the class with most votes among the k nearest of ``fit`` [A, W] by cosine.

    A vote weighs exp(cosine / temperature), as in Wu et al. 2018 (https://arxiv.org/abs/1805.01978, section 3.4) and DINO.
    """
    return _votes(F.normalize(score, dim=1) @ F.normalize(fit, dim=1).T, fit_labels, k, temperature)


def knn_left_out(features: Tensor, labels: Tensor, k: int = 10, temperature: float = 0.07) -> float:
    """``knn`` of each picture among all the others."""
    x = F.normalize(features, dim=1)
    return _share(_votes((x @ x.T).fill_diagonal_(-torch.inf), labels, min(k, len(x) - 1), temperature), labels)


def _votes(cosine: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    near = cosine.topk(min(k, cosine.shape[1]))
    votes = torch.zeros(len(cosine), int(labels.max()) + 1).scatter_add_(1, labels[near.indices], (near.values / temperature).exp())
    return votes.argmax(1)


def linear(fit: Tensor, fit_labels: Tensor, score: Tensor, score_labels: Tensor, penalties: Sequence[float] = PENALTIES) -> float:
    """The share of ``score`` [B, W] that ``linear_predictions`` names rightly."""
    return _share(linear_predictions(fit, fit_labels, score, penalties), score_labels)


def linear_predictions(fit: Tensor, fit_labels: Tensor, score: Tensor, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """[B]: what a multinomial logistic regression on standardised features says (L-BFGS, L2 penalty λ‖W‖²/2 on the mean loss).

    λ is the best of ``penalties`` on one half of ``fit``, trained on the other; then all of ``fit`` is used. Where the halves leave
    nothing to choose by (one picture a class), it is the middle one.
    """
    mean, std = fit.mean(0), fit.std(0).clamp(min=1e-6)
    x, y = (fit - mean) / std, (score - mean) / std
    a, b = halves(fit_labels)
    said = lambda part, on, penalty: _say(*_regress(x[part], fit_labels[part], penalty), on)
    tried = {penalty: _share(said(a, x[b], penalty), fit_labels[b]) for penalty in penalties} if len(b) else {}
    best = max(tried, key=tried.get) if tried else penalties[len(penalties) // 2]
    return said(slice(None), y, best)


def _say(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return (x @ weight.T + bias).argmax(1)


def _share(said: Tensor, labels: Tensor) -> float:
    return (said == labels).double().mean().item()


@torch.enable_grad()
def _regress(x: Tensor, labels: Tensor, penalty: float, steps: int = 100) -> tuple[Tensor, Tensor]:
    count = int(labels.max()) + 1
    weight, bias = torch.zeros(count, x.shape[1], requires_grad=True), torch.zeros(count, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + 0.5 * penalty * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()
