"""A teacher: the exponential moving average of a student's weights, never trained by a gradient."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """A copy of ``student`` whose weights follow it: θ_t ← m θ_t + (1 − m) θ_s (Tarvainen & Valpola 2017).

    It stays in evaluation mode: no dropout, no drop path.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        for module in self.module.modules():
            vars(module).pop("forward", None)  # gradient checkpointing put there what runs the student's layers
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """One step towards the student; running statistics are taken over as they are."""
        for own, other in zip(self.module.parameters(), student.parameters(), strict=True):
            own.lerp_(other.to(own.dtype), 1 - momentum)
        for own, other in zip(self.module.buffers(), student.buffers(), strict=True):
            own.copy_(other)

    def forward(self, *inputs):
        with torch.no_grad():
            return self.module(*inputs)
