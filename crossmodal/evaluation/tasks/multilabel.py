"""Zero-shot classification of pictures that show several classes: mean average precision."""

from __future__ import annotations

import torch

from crossmodal import intervals
from crossmodal.errors import UserError
from crossmodal.evaluation.tasks import base
from crossmodal.evaluation.tasks.base import Answer, Case, Task
from crossmodal.zeroshot.metrics import average_precision


class MultiLabel(Task):
    """mean_average_precision over the classes, every picture scored for every class (labels are lists of numbers)."""

    metric = "mean_average_precision"
    tracked = ("mean_average_precision",)

    def answer(self, case: Case) -> Answer:
        classifier = base.classifier(case)
        classes = classifier.names
        pictures = case.pictures()
        truth = torch.zeros(len(pictures), len(classes), dtype=torch.long)
        for n, (key, label) in enumerate(zip(pictures.keys, pictures.labels, strict=True)):
            several = (label,) if isinstance(label, int) else label
            if several is None or not all(isinstance(x, int) and 0 <= x < len(classes) for x in several):
                raise UserError(f"{key}: its labels are {label}, but there are {len(classes)} classes, 0 to {len(classes) - 1}.")
            truth[n, list(several)] = 1
        scores = classifier.scores(pictures.image)
        each = average_precision(scores, truth)
        name, has = self.metric, truth.any(0)

        def drawn(i) -> float:  # classes that no drawn picture shows say nothing of the spread
            shown = truth[i].any(0) | ~has
            return average_precision(scores[i], truth[i])[shown].mean().item()

        return Answer(
            metrics={name: each.mean().item()},
            intervals={name: intervals.bootstrap(drawn, len(truth), 200)},
            about={
                "classes": len(classes),
                "templates": classifier.templates,
                "per_class": [
                    {"class": c, "average_precision": p, "pictures": n}
                    for c, p, n in zip(classifier.names, each.tolist(), truth.sum(0).tolist(), strict=True)
                ],
            },
            prompts=classifier.prompts,
            broken=pictures.broken,
            pictures=len(pictures),
        )
