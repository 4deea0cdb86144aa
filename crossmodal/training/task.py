"""Model + objectives: the one module that is trained, with one forward a (micro-)batch.

Whatever has parameters runs inside ``Task.forward`` and comes out as outputs, logit scale and bias
included: a parameter used outside the wrapped forward is never reduced across processes. The batch
loss is then computed on the gathered outputs, outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossmodal import distributed, registry
from crossmodal.batch import Batch, Terms, ViewSpec
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.objectives.base import Objective
from crossmodal.recipe import Recipe


@dataclass
class Outputs:
    """What one forward yields; each mapping is {objective: {name: …}}."""

    projections: dict[str, dict[str, Tensor]]  # [B, D]
    scalars: dict[str, dict[str, Tensor]]  # [1]
    sums: dict[str, dict[str, tuple[Tensor, Tensor]]]  # (sum [], count [])


class Task(nn.Module):
    """A model and the objectives it is trained on.

    Args:
        model: the dual encoder.
        objectives: by recipe name.
        weights: each objective's weight.
    """

    def __init__(self, model: Model, objectives: dict[str, Objective], weights: dict[str, float]):
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict({n.replace(".", "_"): o for n, o in objectives.items()})
        self.weights = {n.replace(".", "_"): w for n, w in weights.items()}
        self.views: dict[str, ViewSpec] = {}
        for name, objective in objectives.items():
            for view, spec in objective.views.items():
                if self.views.setdefault(view, spec) != spec:
                    raise UserError(f"objectives.{name}: wants the view {view!r} otherwise than another objective; name it {name}.{view}.")
        self.needs = sorted({need for o in objectives.values() for need in o.needs})
        used = {need.partition(":")[0] for need in self.needs}
        self.views = {n: v for n, v in self.views.items() if n in used}
        model.require(self.needs, {n: v.kind for n, v in self.views.items()})

    def forward(self, batch: Batch) -> tuple[dict, dict, dict]:
        """One (micro-)batch → the fields of ``Outputs``, as plain mappings that DDP can look through."""
        encoded = self.model.encode(batch, self.needs)
        shared = {"logit_scale": self.model.logit_scale, "logit_bias": self.model.logit_bias}
        projections, scalars, sums = {}, {}, {}
        for name, objective in self.objectives.items():
            projections[name] = objective.project(encoded)
            # + 0: an output of the forward must not be the parameter itself
            scalars[name] = {k: v + 0 for k, v in shared.items() if k in objective.needs} | objective.scalars()
            sums[name] = objective.pair_terms(self.model, batch, encoded)
        return projections, scalars, sums

    def loss(self, outputs: Outputs) -> tuple[Tensor, Terms]:
        """(weighted sum to call backward on, unweighted terms of the whole global batch).

        Batch terms come from the rows of all processes. Pair terms are sums over all processes divided
        by the count over all; a process's own sum is multiplied by their number, because DDP averages.
        """
        total = torch.zeros((), device=self.model.logit_scale.device)
        terms: Terms = {}
        for name, objective in self.objectives.items():
            gathered = {k: distributed.gather(v) for k, v in outputs.projections[name].items()}
            for term, value in objective.batch_terms(gathered, outputs.scalars[name]).items():
                terms[term] = value.detach()
                total = total + self.weights[name] * value
            for term, (part, count) in outputs.sums[name].items():
                everyone = distributed.all_sum(count.detach().to(part.dtype))
                total = total + self.weights[name] * part * distributed.world_size() / everyone
                terms[term] = distributed.all_sum(part.detach()) / everyone
        return total, terms

    def after_step(self, step: int) -> None:
        """What follows an optimiser step: the clamp of the logit scale, the objectives' own."""
        self.model.clamp()
        for objective in self.objectives.values():
            objective.after_step(self.model, step)


def build(recipe: Recipe) -> Task:
    """The task a recipe describes. Errors: ``UserError`` for what cannot be built."""
    weights, objectives = {}, {}
    for name, options in recipe.objectives.items():
        weights[name] = options.get("weight", 1.0)
        cls = registry.find("objectives", name, "Objective")
        objectives[name] = cls(**{k: v for k, v in options.items() if k != "weight"})
    init: dict[str, float] = {}
    for name, objective in objectives.items():
        for scalar, value in objective.init.items():
            if init.setdefault(scalar, value) != value:
                raise UserError(
                    f"objectives.{name}: wants {scalar} to start at {value:g}, another at {init[scalar]:g}; they cannot share a model."
                )
    model = Model(
        recipe.model,
        recipe.data.image_size,
        **{f"init_{k}": v for k, v in init.items()},
        templates=recipe.eval.templates,
    )
    return Task(model, objectives, weights)
