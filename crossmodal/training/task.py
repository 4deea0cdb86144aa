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
        steps: how many training takes.
    """

    def __init__(self, model: Model, objectives: dict[str, Objective], weights: dict[str, float], steps: int = 0):
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
        for objective in objectives.values():
            objective.attach(model, steps)

    @property
    def batch_scope(self) -> bool:
        """Whether any objective compares pairs with one another."""
        return any(type(o).project is not Objective.project for o in self.objectives.values())

    def forward(self, batch: Batch, projections_only: bool = False) -> tuple[dict, dict, dict]:
        """One (micro-)batch → the fields of ``Outputs``, as plain mappings that DDP can look through."""
        encoded = self.model.encode(batch, self.needs)
        shared = {"logit_scale": self.model.logit_scale, "logit_bias": self.model.logit_bias}
        projections, scalars, sums = {}, {}, {}
        for name, objective in self.objectives.items():
            projections[name] = objective.project(encoded)
            # + 0: an output of the forward must not be the parameter itself
            scalars[name] = {k: v + 0 for k, v in shared.items() if k in objective.needs} | objective.scalars()
            sums[name] = {} if projections_only else objective.pair_terms(self.model, batch, encoded)
        return projections, scalars, sums

    def loss(self, outputs: Outputs) -> tuple[Tensor, Terms]:
        """(weighted sum to call backward on, unweighted terms of the whole global batch), where a process has one micro-batch."""
        loss, terms = self.batch_loss(outputs.projections, outputs.scalars)
        counts = self.total_counts([{n: {t: c for t, (_, c) in own.items()} for n, own in outputs.sums.items()}])
        pairs, pair_terms = self.pair_loss(outputs.sums, counts)
        return loss + pairs, terms | pair_terms

    def batch_loss(self, projections: dict[str, dict[str, Tensor]], scalars: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Terms]:
        """(weighted sum, unweighted terms) of the terms over all pairs: this process's projections are gathered first."""
        total, terms = torch.zeros((), device=self.model.logit_scale.device), {}
        for name, own in projections.items():
            gathered = {k: distributed.gather(v) for k, v in own.items()}
            for term, value in self.objectives[name].batch_terms(gathered, scalars[name]).items():
                terms[term] = value.detach()
                total = total + self.weights[name] * value
        return total, terms

    def pair_loss(self, sums: dict[str, dict[str, tuple]], counts: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Terms]:
        """(weighted sum, unweighted terms) of a (micro-)batch's pair terms, as its share of the whole batch's.

        The value is that of all processes; the gradient is this process's own times their number, because DDP averages.
        """
        total, terms = torch.zeros((), device=self.model.logit_scale.device), {}
        for name, own in sums.items():
            for term, (part, _) in own.items():
                share = part / counts[name][term]
                terms[term] = distributed.all_sum(share.detach())
                scaled = share * distributed.world_size()
                total = total + self.weights[name] * (scaled - scaled.detach() + terms[term])
        return total, terms

    def pair_counts(self, batch: Batch) -> dict[str, dict[str, Tensor]] | None:
        """Every objective's counts for a micro-batch, or None where one of them is known by computing its terms only."""
        counts = {}
        for name, objective in self.objectives.items():
            known = {} if type(objective).pair_terms is Objective.pair_terms else objective.pair_counts(batch)
            if known is None:
                return None
            counts[name] = known
        return counts

    def total_counts(self, micro: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
        """Counts added over micro-batches and processes."""
        device = self.model.logit_scale.device
        number = lambda count: torch.as_tensor(count).to(device, torch.float32)
        total = lambda name, term: distributed.all_sum(torch.stack([number(m[name][term]) for m in micro]).sum())
        return {name: {term: total(name, term) for term in own} for name, own in micro[0].items()}

    @property
    def figures(self) -> dict[str, Tensor]:
        """What the objectives track beside their losses, since the last step."""
        return {k: v for o in self.objectives.values() for k, v in o.figures.items()}

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
        if objective.whole_batch and recipe.data.micro_batch:
            raise UserError(f"objectives.{name} needs the whole batch at once as it is set here; leave data.micro_batch out.")
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
    return Task(model, objectives, weights, recipe.train.steps)
