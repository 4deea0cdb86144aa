"""Processes: rank, world size and gathering. On one process everything here is the identity.

No rank enters a constructor anywhere else; who needs to know asks here.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> None:
    """Join the other processes, where ``accelerate launch`` or torchrun started several; on one process, nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState()


def world_size() -> int:
    """How many processes train together (1 without a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 … world_size - 1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


class _Gather(torch.autograd.Function):
    """All processes' rows in rank order; see ``gather`` for the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # [W * B, ...]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows] * world_size()


def gather(x: Tensor) -> Tensor:
    """[B, ...] on each of W processes → [W * B, ...] on all of them, with gradient.

    For a loss that every process computes whole, from the gathered rows. Each process's gradient
    for its own rows is then already the full one; it is multiplied by W because DDP averages
    parameter gradients over processes, where the global batch needs their sum. Needs equal B.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def all_sum(x: Tensor) -> Tensor:
    """The sum over processes of a tensor without gradient, on all of them."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_objects(value: object) -> list[object]:
    """Every process's value, in rank order. Only for our own small values (it pickles between our processes)."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()
