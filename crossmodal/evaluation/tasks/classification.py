"""Zero-shot classification: one class a picture; accuracy, recall of every class, calibration, what is taken for what."""

from __future__ import annotations

import torch
from torch import Tensor

from crossmodal import intervals, probe
from crossmodal.embed import Embeddings
from crossmodal.evaluation.tasks import base
from crossmodal.evaluation.tasks.base import Answer, Case, Task, shared
from crossmodal.zeroshot import labels, metrics
from crossmodal.zeroshot.classifier import ZeroShotClassifier

SHOWN = 20  # confusion pairs that a result lists
FITTED = 10_000_000  # scores that the temperature is fitted on, at most


class Classification(Task):
    """acc1, acc5, mean_per_class_recall, and the expected calibration error of the softmax at the model's logit scale."""

    tracked = ("mean_per_class_recall", "ece")

    def __init__(self, *, block: int = 4096):
        self.block = block

    def answer(self, case: Case) -> Answer:
        """Errors: ``UserError`` for data without classes, or with a label that is none of them."""
        classes, classifier = case.classes or case.source.classes, base.classifier(case)
        pictures = case.pictures()
        number, matched = labels.match(case.source.classes if case.classes else None, classes, case.ids)
        if case.source.classes and not case.classes:
            matched = "the data's own classes"
        y = labels.numbers(pictures, number)
        answer = self._score(classifier, pictures, y)
        answer.about |= {"classes": len(classes), "templates": [] if case.descriptions else classifier.templates, "labels_by": matched}
        if case.descriptions:
            answer.about["descriptions"] = sum(map(len, classifier.prompts))
        answer.prompts = classifier.prompts
        answer.warnings += _doubts(answer, y, len(classes), case.chance)
        return answer

    def _score(self, classifier: ZeroShotClassifier, pictures: Embeddings, y: Tensor) -> Answer:
        model, count = classifier.model, len(classifier.names)
        scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
        every = max(1, len(y) * count // FITTED)
        rank, best, sure, alone, kept = [], [], [], [], []
        for start in range(0, len(y), self.block):
            scores = classifier.scores(pictures.image[start : start + self.block])
            logits = scale * scores
            rank.append(metrics.ranks(scores, y[start : start + self.block]))
            best.append(scores.argmax(1))
            sure.append(logits.softmax(1).max(1).values)
            alone.append((logits.max(1).values + bias).sigmoid())
            kept.append(logits[(-start) % every :: every])
        rank, best, sure, alone, kept = (torch.cat(x) for x in (rank, best, sure, alone, kept))
        hit = rank == 0
        recall, size = metrics.per_class(hit, y, count)
        answer = Answer(
            metrics={}, pictures=len(y), broken=pictures.broken, shares={"acc1": ("classification", 1), "acc5": ("classification", 5)}
        )
        columns = (pictures.keys, pictures.rows, y, best, rank, sure)
        answer.rows = [
            {"way": "classification", "key": key, "row": row, "label": a, "predicted": b, "rank": r, "confidence": c}
            for key, row, a, b, r, c in zip(*(x if isinstance(x, list) else x.tolist() for x in columns), strict=True)
        ]
        shared(answer)
        answer.metrics["mean_per_class_recall"] = recall[size > 0].mean().item()
        answer.intervals["mean_per_class_recall"] = intervals.class_mean(hit.numpy(), y.numpy())
        temperature, fitted = _temperature(kept, y[::every])
        calibration = {"ece": (sure, hit), "ece_fitted_temperature": (fitted, hit[::every])}
        if bias:  # trained to say of each pair by itself whether it belongs together (SigLIP)
            calibration["sigmoid_ece"] = (alone, hit)
        for name, (p, h) in calibration.items():
            answer.metrics[name] = metrics.calibration_error(p, h)
            answer.intervals[name] = intervals.bootstrap(lambda i, p=p, h=h: metrics.calibration_error(p[i], h[i]), len(p), 200)
        answer.metrics["fitted_temperature"] = temperature
        names = classifier.names
        pairs = torch.stack([y, best], 1)[~hit]
        pairs, often = pairs.unique(dim=0, return_counts=True) if len(pairs) else (pairs, torch.empty(0, dtype=torch.long))
        top = often.argsort(descending=True, stable=True)[:SHOWN].tolist()
        answer.about |= {
            "confusions": [{"class": names[pairs[i, 0]], "taken_for": names[pairs[i, 1]], "pictures": often[i].item()} for i in top],
            "per_class": [
                {"class": n, "recall": r, "pictures": s} for n, r, s in zip(names, recall.tolist(), size.tolist(), strict=True) if s
            ],
            "calibration": [{"confidence": c, "accuracy": a, "pictures": n} for c, a, n in metrics.bin_means(sure, hit)],
            "names": names,
        }
        return answer


def _temperature(logits: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """(T fitted on all, confidences [N] with T fitted on the other half: every second picture, and those between)."""
    sure = torch.empty(len(y))
    for own in (0, 1):
        if len(y) > 1:
            sure[own::2] = (logits[own::2] / metrics.fit_temperature(logits[1 - own :: 2], y[1 - own :: 2])).softmax(1).max(1).values
        else:
            sure[own::2] = logits[own::2].softmax(1).max(1).values
    return metrics.fit_temperature(logits, y), sure


def _doubts(answer: Answer, y: Tensor, classes: int, chance: float | None) -> list[str]:
    """Warnings of figures that look like guessing, and of labels that look like another order of the classes."""
    out = []
    chance = chance if chance is not None else 1 / classes
    low, _ = answer.intervals["acc1"]
    if low <= chance:
        out.append(f"top-1 {100 * answer.metrics['acc1']:.1f} % is not surely above chance ({100 * chance:.2f} %)")
    best = torch.tensor([row["predicted"] for row in answer.rows])
    fit, rest = probe.halves(y)  # of every class
    table = torch.zeros(classes, classes, dtype=torch.long) if classes <= 5000 else None
    if table is None or not len(rest) or len(y.unique()) < 0.9 * classes:  # of a few classes, renaming would tell the clusters apart
        return out
    table.index_put_((best[fit], y[fit]), torch.ones(len(fit), dtype=torch.long), accumulate=True)
    renamed = table.argmax(1)  # by one half of the pictures, what each predicted class mostly is
    known = table.sum(1)[best[rest]] > 0
    with_new = (renamed[best[rest]] == y[rest]) & known
    before = (best[rest] == y[rest]).double().mean().item()
    low, _ = intervals.share(with_new.numpy())
    if low > 2 * max(before, chance):
        out.append(
            f"the labels look like those of another class order: renaming each predicted class by what it mostly is on one half of the "
            f"pictures scores {100 * with_new.double().mean():.1f} % on the other, and their own names {100 * before:.1f} %"
        )
    return out
