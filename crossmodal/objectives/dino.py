"""Self-distillation: a student's small and large crops agree with what a moving average of itself makes of the large ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal import distributed
from crossmodal.batch import Batch, Encoded, ViewSpec
from crossmodal.objectives.base import Objective
from crossmodal.teacher import Teacher

if TYPE_CHECKING:
    from crossmodal.model import Model

AUGMENT = (("flip", True), ("jitter", (0.4, 0.4, 0.2, 0.1)), ("jitter_p", 0.8), ("grey", 0.2), ("blur", (0.1, 2.0)), ("blur_p", 0.5))


class Head(nn.Module):
    """Pooled features [B, W] → logits [B, K]: three layers, a bottleneck of 256 of unit length, prototypes of unit length."""

    def __init__(self, width: int, hidden: int, out: int, bottleneck: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(out, bottleneck))

    def forward(self, pooled: Tensor, learn_prototypes: bool = True) -> Tensor:
        x = self.layers(pooled)
        x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        # Times 0: a parameter without gradient would be waited for under DDP.
        prototypes = self.prototypes if learn_prototypes else self.prototypes.detach() + 0 * self.prototypes
        return F.linear(x, F.normalize(prototypes, dim=-1).to(x.dtype))


class DINO(Objective):
    """Self-distillation with no labels (Caron et al. 2021, https://arxiv.org/abs/2104.14294, algorithm 1 and appendix C).

    Student s and teacher t see two large crops, the student ``local_crops`` small ones as well. With temperatures τ and a centre c::

        P_t(g) = softmax( (t(g) − c) / τ_t ),   log P_s(v) = log softmax( s(v) / τ_s )
        loss = mean over pictures and over pairs (large crop g, other crop v ≠ g) of −Σ_k P_t(g)_k · log P_s(v)_k

    Nats. The teacher is the student's moving average, its momentum rising along a cosine; the centre is a running mean of the
    teacher's logits over the whole global batch. Two ways of collapse are tracked: ``dino_entropy``, the mean entropy of its outputs
    (ln K: uniform, everything the same), and ``dino_entropy_of_mean``, that of their mean (0: one prototype takes all).
    Small crops need a tower that takes pictures of other sizes (for timm's ViT ``kwargs: {dynamic_img_size: true}``).

    Args:
        local_crops, local_size: how many small crops, and their side in pixels.
        hidden, out: widths of the head; ``out`` is K.
        student_temperature, teacher_temperature: τ_s and τ_t.
        warm_temperature, warmup: where τ_t starts, and the steps in which it rises to its value.
        momentum, final_momentum: the teacher's at the start and at the end.
        centre_momentum: of the running centre.
        freeze_prototypes: steps before the prototypes are learnt.
    """

    def __init__(
        self,
        *,
        local_crops: int = 8,
        local_size: int = 96,
        hidden: int = 2048,
        out: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warm_temperature: float = 0.04,
        warmup: int = 0,
        momentum: float = 0.996,
        final_momentum: float = 1.0,
        centre_momentum: float = 0.9,
        freeze_prototypes: int = 0,
    ):
        super().__init__()
        large = ViewSpec("image", (("crop", (0.4, 1.0)), *AUGMENT))
        small = ViewSpec("image", (("image_size", local_size), ("crop", (0.05, 0.4)), *AUGMENT))
        self.large = ("dino.large_0", "dino.large_1")
        self.small = tuple(f"dino.small_{n}" for n in range(local_crops))
        self.views = dict.fromkeys(self.large, large) | dict.fromkeys(self.small, small)
        self.needs = tuple(f"{view}:{field}" for view in self.views for field in ("pooled", "pixels")[: 2 if view in self.large else 1])
        self.hidden, self.out = hidden, out
        self.student_temperature, self.final_temperature, self.warm_temperature = student_temperature, teacher_temperature, warm_temperature
        self.momentum, self.final_momentum, self.centre_momentum = momentum, final_momentum, centre_momentum
        self.warmup, self.freeze_prototypes = warmup, freeze_prototypes
        self.register_buffer("centre", torch.zeros(out))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._seen: list[Tensor] = []  # of this step: sums of the teacher's logits and outputs, [2, K], and entropy and rows

    def attach(self, model: Model, steps: int) -> None:
        self.steps = steps
        self.head = Head(model.image.width, self.hidden, self.out)
        self.teacher, self.teacher_head = Teacher(model.image), Teacher(self.head)
        model.teachers["dino"] = self.teacher.module

    @property
    def teacher_temperature(self) -> float:
        """τ_t of the coming step."""
        share = min(1.0, self.step.item() / self.warmup) if self.warmup else 1.0
        return self.warm_temperature + share * (self.final_temperature - self.warm_temperature)

    def pair_terms(self, model: Model, batch: Batch, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        learn = self.step.item() >= self.freeze_prototypes
        student = {v: F.log_softmax(self.head(encoded[f"{v}:pooled"], learn) / self.student_temperature, -1) for v in self.views}
        total = 0.0
        for view in self.large:
            logits = self.teacher_head(self.teacher(encoded[f"{view}:pixels"])["pooled"])  # [B, K]
            target = F.softmax((logits - self.centre) / self.teacher_temperature, -1)
            total = total - sum((target * student[other]).sum() for other in self.views if other != view)
            if torch.is_grad_enabled():  # once a step, not in gradient caching's first pass
                entropy = -(target * target.clamp_min(1e-30).log()).sum()
                self._seen.append(torch.cat((logits.sum(0), target.sum(0), torch.stack((entropy, entropy.new_tensor(len(target)))))))
        return {"dino": (total, self.pair_counts(batch)["dino"])}

    def pair_counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"dino": torch.tensor(len(batch) * len(self.large) * (len(self.views) - 1))}

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        seen = distributed.all_sum(torch.stack(self._seen).sum(0))
        self._seen.clear()
        rows = seen[-1]
        logits, outputs = seen[: self.out] / rows, seen[self.out : 2 * self.out] / rows
        self.centre.lerp_(logits.to(self.centre.dtype), 1 - self.centre_momentum)
        left = (math.cos(math.pi * min(1.0, step / max(1, self.steps))) + 1) / 2
        momentum = self.final_momentum - (self.final_momentum - self.momentum) * left
        self.teacher.follow(model.image, momentum)
        self.teacher_head.follow(self.head, momentum)
        self.step.fill_(step)
        self.figures = {
            "dino_entropy": seen[-2] / rows,
            "dino_entropy_of_mean": -(outputs * outputs.clamp_min(1e-30).log()).sum(),
        }
