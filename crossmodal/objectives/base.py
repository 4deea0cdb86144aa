"""The one contract between an objective and the rest of the program.

An objective says which views the data must make for it (``views``) and what the model must encode
(``needs``), and returns loss terms. It implements the half that it is:

- **batch scope** (every pair against every other: InfoNCE, sigmoid, SimCLR): ``project`` says what each
  pair contributes; ``batch_terms`` computes the loss from the rows of the whole global batch.
- **pair scope** (a sum over pairs: captioning, masked reconstruction): ``pair_terms`` returns sum and count.

Weights stand in the recipe and are applied by the task. Options of a recipe are the constructor's
keyword-only arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from crossmodal.batch import Batch, Encoded, Terms, ViewSpec

if TYPE_CHECKING:
    from crossmodal.model import Model


class Objective(nn.Module):
    """Base of all objectives. ``B`` is a process's (micro-)batch, ``N`` the whole global batch."""

    #: What the data must make, by view name; views of an objective's own are named "OBJECTIVE.VIEW".
    views: dict[str, ViewSpec] = {"image": ViewSpec("image"), "text": ViewSpec("text")}
    #: What the model must encode ("view:field"), and "logit_scale" or "logit_bias" where they are read.
    needs: tuple[str, ...] = ()
    #: Initial values of the model's logit scale and bias that this objective asks for.
    init: dict[str, float] = {}
    #: Whether it can only be computed on a process's whole share at once (a norm over the batch), not in micro-batches.
    whole_batch: bool = False
    #: Figures to track beside the loss, left here by ``batch_terms``, ``pair_terms`` or ``after_step``; each [] without gradient.
    figures: dict[str, Tensor] = {}

    def attach(self, model: Model, steps: int) -> None:
        """Called once, with the model and the steps that training takes: the place for parameters whose shapes follow from the model."""

    def scalars(self) -> dict[str, Tensor]:
        """The objective's own learnable scalars, each [1]; they come back in ``batch_terms``."""
        return {}

    def project(self, encoded: Encoded) -> dict[str, Tensor]:
        """What each pair contributes to the batch loss: {name: [B, D]}. Empty: no batch scope."""
        return {}

    def batch_terms(self, gathered: dict[str, Tensor], scalars: dict[str, Tensor]) -> Terms:
        """Loss terms from all rows: ``gathered`` is ``project``'s outcome for the whole batch, {name: [N, D]};
        ``scalars`` holds the model's "logit_scale" (its log) and "logit_bias" where needed, and the objective's own.
        Every process computes the whole; of a gradient, its own rows count (see ``pairwise`` for sharing the work)."""
        return {}

    def chance(self, pairs: int) -> dict[str, float]:
        """What a batch term is, for ``pairs`` pairs, while the model knows nothing: a loss that stays there is named as such."""
        return {}

    def pair_terms(self, model: Model, batch: Batch, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss terms as (sum, count) over this (micro-)batch's pairs; counts are added over micro-batches and processes."""
        return {}

    def pair_counts(self, batch: Batch) -> dict[str, Tensor] | None:
        """The counts of ``pair_terms`` by themselves, where the batch tells them: micro-batches then need no first
        pass through ``pair_terms``. None: they do."""
        return None

    def after_step(self, model: Model, step: int) -> None:
        """Called once after every optimiser step: EMA teachers, running centres."""


class ImageTextObjective(Objective):
    """Base of those that compare every picture with every text.

    Args:
        duplicates: "positive" counts equal pictures and equal texts of a batch as positives; "negative" is
            the papers' way, for which only a pair's own text is right.
    """

    def __init__(self, *, duplicates: Literal["positive", "negative"] = "positive"):
        super().__init__()
        self.duplicates = duplicates

    def project(self, encoded: Encoded) -> dict[str, Tensor]:
        ids = {"image_id": encoded["image:id"], "text_id": encoded["text:id"]} if self.duplicates == "positive" else {}
        return {"image": encoded["image:embed"], "text": encoded["text:embed"], **ids}
