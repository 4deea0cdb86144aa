"""CLIP's objective: symmetric InfoNCE with a learnable temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal.batch import Encoded, Terms
from crossmodal.objectives.base import Objective


class Contrastive(Objective):
    """Symmetric InfoNCE (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3).

    With unit-length embeddings x_i of pictures and y_j of texts and the logit scale s = exp(t)::

        l_ij = s · x_i · y_j
        loss = ½ · mean_i( −log softmax_j(l_ij)[i] ) + ½ · mean_j( −log softmax_i(l_ij)[j] )

    Natural logarithms: chance is ln N nats, for N pairs in the global batch. The scale starts at
    1/0.07 and the model clamps it to 100 after each step. Softmax subtracts the maximum, so that
    scale 100 does not overflow. Other pairs of the batch count as negatives, also where they happen
    to show the same thing.
    """

    needs = ("image:embed", "text:embed", "logit_scale")
    init = {"logit_scale": 1 / 0.07}

    def project(self, encoded: Encoded) -> dict[str, Tensor]:
        return {"image": encoded["image:embed"], "text": encoded["text:embed"]}

    def batch_terms(self, gathered: dict[str, Tensor], scalars: dict[str, Tensor]) -> Terms:
        image, text = gathered["image"].float(), gathered["text"].float()  # [N, D]
        logits = scalars["logit_scale"].exp() * image @ text.T  # [N, N], rows are pictures
        target = torch.arange(len(logits), device=logits.device)
        return {"contrastive": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2}
