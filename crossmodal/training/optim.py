"""AdamW, what is decayed, and the learning rate at a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from crossmodal.errors import UserError
from crossmodal.recipe import OptimPart
from crossmodal.training.task import Task


def groups(task: Task, optim: OptimPart) -> list[dict]:
    """Parameter groups: by learning-rate scale of their tower, and with or without decay.

    Norms, biases, logit scale and logit bias (all that has fewer than two dimensions) are not decayed.
    """
    scales = {"image": task.model.part.image.lr_scale, "text": task.model.part.text.lr_scale}
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for half, scale in scales.items():
        _sort(getattr(task.model, half).parameters(), scale, optim.weight_decay, found)
    _sort(task.parameters(), 1.0, optim.weight_decay, found)
    if not found:
        raise UserError("model: nothing is left to train; every tower is frozen and no objective has parameters.")
    return [
        {"params": parameters, "weight_decay": decay, "lr": optim.lr * scale, "lr_scale": scale}
        for (scale, decay), parameters in sorted(found.items())
    ]


def _sort(parameters, scale: float, decay: float, found: dict) -> None:
    taken = {id(p) for several in found.values() for p in several}
    for parameter in parameters:
        if parameter.requires_grad and id(parameter) not in taken:
            found.setdefault((scale, decay if parameter.ndim > 1 else 0.0), []).append(parameter)


def build(task: Task, optim: OptimPart) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the task's groups."""
    # Fused: one pass over memory, five times as fast a step on a CPU.
    return torch.optim.AdamW(groups(task, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def rate(step: int, optim: OptimPart, steps: int) -> float:
    """The learning rate of step ``step`` (from 0): linear warm-up, then half a cosine down to 0."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, steps - optim.warmup)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its multiple of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
