"""The cross-entropy of words against a large vocabulary, without ever holding all their scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24  # scores held at once


class _Words(torch.autograd.Function):
    """Gradients are computed on the way, block by block: the scores of a block are needed once, and gone."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        ctx.dtypes = hidden.dtype, weight.dtype
        rows, device = max(1, BLOCK // len(weight)), hidden.device.type
        if torch.is_autocast_enabled(device):  # once, and not for every block
            hidden, weight = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, weight))
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        to_hidden: list[Tensor] = []
        to_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs_weight else None
        for x, y in zip(hidden.split(rows), target.split(rows), strict=True):
            scores = F.linear(x, weight).to(wide)  # [R, V]
            log_sum = scores.logsumexp(1, keepdim=True)
            total += (log_sum - scores.gather(1, y[:, None])).sum()
            if needs_hidden or needs_weight:
                slope = scores.sub_(log_sum).exp_()  # p, then p − 1 at the word that was said
                slope.scatter_add_(1, y[:, None], slope.new_full((len(y), 1), -1.0))
                slope = slope.to(weight.dtype)
                if needs_hidden:
                    to_hidden.append(slope @ weight)
                if needs_weight:
                    to_weight += slope.T @ x
        ctx.save_for_backward(torch.cat(to_hidden) if needs_hidden else None, to_weight)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        scaled = (None if x is None else (x * gradient).to(dtype) for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return *scaled, None


def cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """− Σ log softmax(hidden @ weight.T)[target], over N words, as one number in fp32 or wider.

    Args:
        hidden: [N, W] states.
        weight: [V, W] a row for each word of the vocabulary.
        target: int64 [N] the words that were said.

    Same value and gradients as ``F.cross_entropy(F.linear(hidden, weight), target, reduction="sum")``, whose N × V scores, their
    softmax and its gradient take gigabytes; here it is ``BLOCK`` scores at a time (the idea of Wijmans et al. 2024,
    https://arxiv.org/abs/2411.09009, in plain tensor operations). Gradients are once differentiable.
    """
    return _Words.apply(hidden, weight, target)
