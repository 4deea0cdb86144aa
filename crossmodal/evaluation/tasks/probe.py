"""What the image tower has learnt, by labels: k-NN, a linear probe and few-shot probes on its pooled features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crossmodal import probe
from crossmodal.errors import UserError
from crossmodal.evaluation.tasks.base import Answer, Case, Task, shared


class Probe(Task):
    """knn, linear_probe and, for each number of ``shots`` a class, few_shot_S. Half of each class to fit on, half to score."""

    metric = "linear_probe"

    def __init__(self, *, k: int = 10, shots: Sequence[int] = ()):
        self.k, self.shots = k, shots

    def answer(self, case: Case) -> Answer:
        x, keys, labels = case.features()
        if not all(isinstance(label, int) for label in labels):
            lost = next(key for key, label in zip(keys, labels, strict=True) if not isinstance(label, int))
            raise UserError(f"{lost}: has no label, so there is nothing to probe for.")
        y = torch.tensor(labels)
        fit, rest = probe.halves(y)
        ways = {"knn": probe.knn_predictions(x[fit], y[fit], x[rest], self.k)}
        ways["linear_probe"] = probe.linear_predictions(x[fit], y[fit], x[rest])
        for shots in self.shots:
            some = fit[probe.first(y[fit], shots)]
            ways[f"few_shot_{shots}"] = probe.linear_predictions(x[some], y[some], x[rest])
        answer = Answer(metrics={}, pictures=len(y), about={"classes": int(y.max()) + 1, "fitted_on": len(fit), "scored_on": len(rest)})
        for way, said in ways.items():
            answer.shares[way] = (way, 1)
            answer.rows += [
                {"way": way, "key": keys[n], "label": y[n].item(), "predicted": p, "rank": int(p != y[n].item())}
                for n, p in zip(rest.tolist(), said.tolist(), strict=True)
            ]
        return shared(answer)
