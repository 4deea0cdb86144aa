"""Batch-norm whose statistics are those of the whole global batch, over all processes; also on CPUs.

``torch.nn.SyncBatchNorm`` runs on GPUs only. This one all-reduces sums and sums of squares, with gradient, so that W processes
compute what one would on the whole batch. It cannot look across micro-batches, so recipes that ask for both are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossmodal import distributed


class _AllSum(torch.autograd.Function):
    """The sum over processes. Every process's loss depends on every process's part, so gradients are summed as well."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return distributed.all_sum(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return distributed.all_sum(grad.contiguous())


class SyncedBatchNorm(_BatchNorm):
    """Batch-norm (Ioffe & Szegedy 2015) over all processes: [B, C, …] → [B, C, …]. Made by ``convert``."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.full((1,), x.numel() / x.shape[1], dtype=wide.dtype, device=x.device)
        total = _AllSum.apply(torch.cat((wide.sum(axes), count)))
        mean, count = total[:-1] / total[-1].detach(), total[-1].detach()
        shape = (1, -1, *[1] * (x.ndim - 2))
        away = wide - mean.view(shape)
        variance = _AllSum.apply(away.square().sum(axes)) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance.detach() * count / (count - 1)).to(self.running_var.dtype), share)
        out = away * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


class _WithActivation(SyncedBatchNorm):
    """timm's batch-norm that has its activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def convert(module: nn.Module) -> None:
    """Make every batch-norm inside a synced one, in place; names, weights and running statistics stay."""
    for inner in module.modules():
        if isinstance(inner, _BatchNorm):
            inner.__class__ = _WithActivation if hasattr(inner, "act") and hasattr(inner, "drop") else SyncedBatchNorm
