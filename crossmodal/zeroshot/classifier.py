"""A classifier made of words: one embedding a class, from its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal.embed import Embeddings
from crossmodal.model import Model
from crossmodal.zeroshot import labels
from crossmodal.zeroshot.metrics import classification, ranks
from crossmodal.zeroshot.prompts import ClassNames, prompts


class ZeroShotClassifier:
    """Class names and templates as a linear classifier (Radford et al. 2021, section 3.1.4).

    Each prompt is embedded at unit length; a class is the mean of its prompts, again at unit length.

    Args:
        model: the dual encoder.
        classes: C names, or tuples of several names for one class.
        templates: with ``{}`` for the name; None: those the model was trained with.
        descriptions: {class name: sentences}, to be used instead of templates.
    """

    def __init__(
        self,
        model: Model,
        classes: Sequence[ClassNames],
        templates: Sequence[str] | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ):
        self.model = model
        self.names = [c if isinstance(c, str) else c[0] for c in classes]
        self.templates = list(templates or model.templates)
        self.prompts = prompts(classes, self.templates, descriptions)
        self.weights = ensemble(model.encode_text([p for several in self.prompts for p in several]), self.prompts)  # [C, D]

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


def score(classifier: ZeroShotClassifier, pictures: Embeddings, block: int = 4096) -> dict[str, float]:
    """acc1, acc5 and mean_per_class_recall of a classifier on embedded pictures, computed in blocks.

    Errors: ``UserError`` for a label outside the classes.
    """
    count = len(classifier.names)
    y = labels.numbers(pictures, range(count))
    rank = torch.cat([ranks(classifier.scores(x), own) for x, own in zip(pictures.image.split(block), y.split(block), strict=True)])
    return classification(rank, y, count)


def ensemble(flat: Tensor, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Unit-length prompts [P, D], class after class → [C, D]: each class's mean, at unit length."""
    owner = torch.tensor([i for i, several in enumerate(prompts) for _ in several])
    sums = torch.zeros(len(prompts), flat.shape[1]).index_add_(0, owner, flat)
    counts = torch.tensor([len(several) for several in prompts]).unsqueeze(1)
    return F.normalize(sums / counts, dim=-1)
