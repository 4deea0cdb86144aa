"""CLIP's objective: symmetric InfoNCE with a learnable temperature."""

from __future__ import annotations

import math

from torch import Tensor

from crossmodal import pairwise
from crossmodal.batch import Terms
from crossmodal.objectives.base import ImageTextObjective


class Contrastive(ImageTextObjective):
    """Symmetric InfoNCE (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3), in O(N × tile) memory.

    With unit-length embeddings x_i of pictures and y_j of texts, the logit scale s = exp(t), and P_i the
    texts that belong to picture i (its own; where a batch holds the same picture or the same text
    several times, those of all of them: ``pairwise.Positives``)::

        l_ij = s · x_i · y_j
        loss = ½ · mean_i 1/|P_i| Σ_{j ∈ P_i} −log softmax_j(l_ij)  +  ½ · mean_j 1/|P_j| Σ_{i ∈ P_j} −log softmax_i(l_ij)

    which is CLIP's loss where every pair is its own (Khosla et al. 2020, equation 2, for several positives).
    Natural logarithms: chance is ln N nats, for N pairs in the global batch. The scale starts at
    1/0.07 and the model clamps it to 100 after each step.
    """

    needs = ("image:embed", "text:embed", "image:id", "text:id", "logit_scale")
    init = {"logit_scale": 1 / 0.07}

    def batch_terms(self, gathered: dict[str, Tensor], scalars: dict[str, Tensor]) -> Terms:
        image, text, log_scale = gathered["image"], gathered["text"], scalars["logit_scale"]  # [N, D], [N, D], [1]
        sums = pairwise.log_sum_exp(image, text, log_scale)
        positives = pairwise.Positives(len(image), gathered.get("image_id"), gathered.get("text_id"))
        right = 2 * sums.own  # [N]
        if positives.several:
            right = log_scale.exp() * ((image * positives.sum(text) + text * positives.sum(image)).sum(1) / positives.count)
        self.figures = {
            "image_to_text_in_batch": sums.row_hits.float().mean(),
            "text_to_image_in_batch": sums.column_hits.float().mean(),
        }
        return {"contrastive": (sums.rows + sums.columns - right).mean() / 2}

    def chance(self, pairs: int) -> dict[str, float]:
        return {"contrastive": math.log(pairs)}
