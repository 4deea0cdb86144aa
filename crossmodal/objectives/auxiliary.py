"""The loss that an image tower has of its own, as one more term.

Some towers train with a loss beside the one that their output serves: LaViT keeps its re-used attention near real attention, big.LITTLE ViT
learns a teacher's features. Such a tower gives a field "loss" [B], one number a picture, and this objective is its mean over the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossmodal.batch import Batch, Encoded, ViewSpec
from crossmodal.errors import UserError
from crossmodal.objectives.base import Objective

if TYPE_CHECKING:
    from crossmodal.model import Model


class Auxiliary(Objective):
    """Mean over pictures of the image tower's "loss"; a tower without one is refused."""

    views = {"image": ViewSpec("image")}
    needs = ("image:loss",)

    def attach(self, model: Model, steps: int) -> None:
        if not any(p.requires_grad for p in model.image.parameters()):
            raise UserError(
                "objectives.auxiliary: model.image is frozen, so that a loss of its own trains nothing; leave one of the two out."
            )

    def pair_terms(self, model: Model, batch: Batch, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        loss = encoded["image:loss"]
        return {"auxiliary": (loss.sum(), torch.tensor(float(len(loss)), device=loss.device))}

    def pair_counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"auxiliary": torch.tensor(float(len(batch.index)))}
