"""An objective outside the package: a triplet loss with a learnable slope, and a pair term beside it."""

import torch
from torch import nn

from crossmodal.objectives.base import Objective


class Triplet(Objective):
    """Hinge on the hardest wrong text of the batch (VSE++), and the mean text length as a pair term."""

    needs = ("image:embed", "text:embed", "text:pooled")

    def __init__(self, *, margin: float = 0.2, start: float | None = None):
        super().__init__()
        self.margin = margin
        self.slope = nn.Parameter(torch.ones(1))
        self.init = {"logit_scale": start} if start else {}

    def scalars(self):
        return {"slope": self.slope + 0}

    def project(self, encoded):
        return {"image": encoded["image:embed"], "text": encoded["text:embed"]}

    def batch_terms(self, gathered, scalars):
        scores = gathered["image"] @ gathered["text"].T  # [N, N]
        wrong = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -1).max(1).values
        return {"triplet": (scalars["slope"] * (self.margin + wrong - scores.diagonal())).relu().mean()}

    def pair_terms(self, model, batch, encoded):
        pooled = encoded["text:pooled"]
        return {"length": (pooled.square().mean(1).sum(), torch.tensor(len(pooled)))}
