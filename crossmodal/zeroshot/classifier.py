"""A classifier made of words: one embedding a class, from its prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal.model import Model
from crossmodal.zeroshot.prompts import ClassNames, fill


class ZeroShotClassifier:
    """Class names and templates as a linear classifier (Radford et al. 2021, section 3.1.4).

    Each prompt is embedded at unit length; a class is the mean of its prompts, again at unit length.

    Args:
        model: the dual encoder.
        classes: C names, or tuples of several names for one class.
        templates: with ``{}`` for the name; None: those the model was trained with.
    """

    def __init__(self, model: Model, classes: Sequence[ClassNames], templates: Sequence[str] | None = None):
        self.model = model
        self.names = [c if isinstance(c, str) else c[0] for c in classes]
        self.templates = list(templates or model.templates)
        prompts = [fill(c, self.templates) for c in classes]
        flat = model.encode_text([p for several in prompts for p in several])  # [P, D]
        owner = torch.tensor([i for i, several in enumerate(prompts) for _ in several])
        sums = torch.zeros(len(classes), flat.shape[1]).index_add_(0, owner, flat)
        counts = torch.tensor([len(several) for several in prompts]).unsqueeze(1)
        self.weights = F.normalize(sums / counts, dim=-1)  # [C, D]

    def scores(self, image: Tensor) -> Tensor:
        """Unit-length pictures [N, D] → cosine similarities [N, C]."""
        return image @ self.weights.T

    def predict(self, images, k: int = 5) -> list[list[tuple[str, float]]]:
        """Pictures (as ``Model.encode_image`` takes them) → for each the k likeliest classes with their
        softmax probabilities at the model's logit scale."""
        logits = self.scores(self.model.encode_image(images)) * self.model.logit_scale.exp().item()
        probability, index = logits.softmax(-1).topk(min(k, len(self.names)))
        return [
            [(self.names[i], p) for i, p in zip(row, values, strict=True)]
            for row, values in zip(index.tolist(), probability.tolist(), strict=True)
        ]
