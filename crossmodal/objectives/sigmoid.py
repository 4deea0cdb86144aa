"""SigLIP's objective: every pair judged by itself, right or wrong."""

from __future__ import annotations

from torch import Tensor

from crossmodal import pairwise
from crossmodal.batch import Terms
from crossmodal.objectives.base import ImageTextObjective


class Sigmoid(ImageTextObjective):
    """Pairwise sigmoid loss (Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1), in O(N × tile) memory.

    With unit-length embeddings x_i of pictures and y_j of texts, logit scale s = exp(t), bias b, and z_ij = 1
    where text j belongs to picture i (``pairwise.Positives``), else −1::

        l_ij = s · x_i · y_j + b
        loss = −1/N Σ_ij log σ(z_ij · l_ij)  =  1/N ( Σ_ij log(1 + exp l_ij) − Σ_{z_ij = 1} l_ij )

    Nats a pair, for N pairs in the global batch. Scale and bias are learnt; they start at 10 and −10, so that the
    many negatives do not weigh at first.
    """

    needs = ("image:embed", "text:embed", "image:id", "text:id", "logit_scale", "logit_bias")
    init = {"logit_scale": 10.0, "logit_bias": -10.0}

    def batch_terms(self, gathered: dict[str, Tensor], scalars: dict[str, Tensor]) -> Terms:
        image, text = gathered["image"], gathered["text"]  # [N, D]
        log_scale, bias = scalars["logit_scale"], scalars["logit_bias"]  # [1]
        positives = pairwise.Positives(len(image), gathered.get("image_id"), gathered.get("text_id"))
        right = log_scale.exp() * (image * positives.sum(text)).sum(1) + bias * positives.count  # [N]
        return {"sigmoid": pairwise.softplus(image, text, log_scale, bias) / len(image) - right.mean()}
