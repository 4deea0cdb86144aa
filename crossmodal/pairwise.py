"""Losses over all pairs of a batch, without the batch × batch matrix: memory O(N × tile), forward and backward.

With rows x_i, columns y_j and l_ij = exp(t) · x_i · y_j + b, two sums need every pair:

- ``log_sum_exp``: R_i = log Σ_j exp l_ij and C_j = log Σ_i exp l_ij (InfoNCE's denominators);
- ``softplus``: Σ_ij log(1 + exp l_ij) (the sigmoid loss, were every pair a negative).

What a loss subtracts for its positives needs a sum over few pairs only, which ``Positives`` gives in
O(N · D). Rows are taken ``tile`` at a time against all columns; the backward pass computes each tile
again from R and C (as FlashAttention does, Dao et al. 2022, section 3.1). A batch that fits into one
tile keeps it instead.

Under W processes all hold the same gathered x and y, each works on its own N / W rows, and what is
returned is the whole. Of the gradients, a process's own rows and the scalars' are whole: what
``distributed.gather`` passes on. All sums are made in fp32 (fp64 for fp64 inputs), autocast or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal import distributed

#: Elements of a tile: 16 MiB in fp32, in several copies. Larger ones are not faster.
TILE = 2**22


class LogSumExps(NamedTuple):
    """See ``log_sum_exp``."""

    rows: Tensor  # R [N]
    columns: Tensor  # C [N]
    own: Tensor  # l_ii [N]
    row_hits: Tensor  # bool [N], without gradient: no column is nearer to the row than its own
    column_hits: Tensor  # bool [N]


def log_sum_exp(x: Tensor, y: Tensor, log_scale: Tensor, without_self: bool = False) -> LogSumExps:
    """Row and column log-sum-exps of l_ij = exp(t) · x_i · y_j, for x and y [N, D] and t [1].

    The largest entry is subtracted before ``exp``, so scale 100 does not overflow. ``without_self`` leaves l_ii out,
    for losses that compare a batch with itself; hits then mean nothing.
    """
    with torch.autocast(x.device.type, enabled=False):
        return LogSumExps(*_LogSumExp.apply(*_fp32(x, y, log_scale), without_self))


def softplus(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Σ_ij log(1 + exp l_ij) of l_ij = exp(t) · x_i · y_j + b, for x and y [N, D], t and b [1]; returns []."""
    with torch.autocast(x.device.type, enabled=False):
        return _Softplus.apply(*_fp32(x, y, log_scale, bias))


class Positives:
    """Which pairs of a batch belong together: own pairs, and those with an equal picture or an equal text.

    P_i = {j: image_id_j = image_id_i or text_id_j = text_id_i}, a symmetric relation.

    Args:
        image_id, text_id: int64 [N]; equal numbers mark equal pictures or texts. None: each pair is its own.
    """

    def __init__(self, n: int, image_id: Tensor | None = None, text_id: Tensor | None = None):
        self.groups: list[tuple[int, Tensor]] = []  # (+1 or -1, group of each pair [N])
        if image_id is None or text_id is None:
            self.count: Tensor | int = 1
            return
        image, text = (torch.unique(i, return_inverse=True)[1] for i in (image_id, text_id))
        both = torch.unique(torch.stack((image, text)), dim=1, return_inverse=True)[1]
        if int(image.max()) + 1 < n or int(text.max()) + 1 < n:
            self.groups = [(1, image), (1, text), (-1, both)]  # |A ∪ B| = |A| + |B| − |A ∩ B|
        ones = torch.ones(n, 1, device=image.device)
        self.count = self.sum(ones)[:, 0] if self.groups else 1  # [N]

    @property
    def several(self) -> bool:
        """Whether any pair has positives beside its own."""
        return bool(self.groups)

    def sum(self, y: Tensor) -> Tensor:
        """[N, D] → Σ_{j ∈ P_i} y_j, [N, D]."""
        if not self.groups:
            return y
        return torch.stack([sign * torch.zeros_like(y).index_add(0, group, y)[group] for sign, group in self.groups]).sum(0)


def _fp32(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)).contiguous() for t in tensors]


def _tiles(n: int) -> Iterator[slice]:
    """This process's rows of N, a tile at a time."""
    world, rank = distributed.world_size(), distributed.rank()
    first, last = n * rank // world, n * (rank + 1) // world
    step = max(1, TILE // n)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _one_tile(n: int) -> bool:
    return n * n <= TILE * distributed.world_size()


def _backward(
    x: Tensor, y: Tensor, scale: Tensor, weigh: Callable[[slice, Tensor], Tensor], bias: Tensor | float, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, t and b from ∂loss/∂l, which ``weigh(rows, l)`` makes of a tile [rows, N]."""
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    db = x.new_zeros(1)
    for rows in _tiles(len(x)):
        xs = x[rows] * scale
        p = weigh(rows, kept if kept is not None else (xs @ y.T).add_(bias))  # [rows, N]
        dx[rows] = (p @ y).mul_(scale)
        dy.addmm_(p.T, xs)
        db += p.sum()
    dy = distributed.all_sum(dy)
    # Σ_ij ∂loss/∂l_ij · (l_ij − b) is the gradient of t: each row's part of it is x_i · dx_i.
    dt, db = distributed.all_sum(torch.stack(((x * dx).sum().view(1), db)))
    return dx, dy, dt, db


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, t: Tensor, without_self: bool) -> tuple[Tensor, ...]:
        n, scale, ctx.without_self = len(x), t.exp(), without_self
        rows, columns = x.new_zeros(n), x.new_full((n,), -torch.inf)
        best, own = x.new_full((2, n), -torch.inf), x.new_zeros(n)  # largest entry of each row and column, and l_ii
        ctx.kept = None
        for at in _tiles(n):
            tile = (x[at] * scale) @ y.T  # [rows, N]
            own[at] = tile.diagonal(at.start)
            if without_self:
                tile.diagonal(at.start).fill_(-torch.inf)
            if _one_tile(n):
                ctx.kept = tile
            rows[at], best[0, at], part, top = _both_ways(tile)
            torch.logaddexp(columns, part, out=columns)
            torch.maximum(best[1], top, out=best[1])
        if distributed.world_size() > 1:
            rows, own = distributed.all_sum(torch.stack((rows, own)))  # zero but for each process's own
            everyone = distributed.gather(torch.stack((columns, best[0], best[1]))[None])  # [W, 3, N]
            columns, best = everyone[:, 0].logsumexp(0), everyone[:, 1:].amax(0)
        ctx.save_for_backward(x, y, t, rows, columns)
        hits = own >= best[0], own >= best[1]
        ctx.mark_non_differentiable(*hits)
        return rows, columns, own, *hits

    @staticmethod
    def backward(ctx, row_grad: Tensor, column_grad: Tensor, own_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, t, rows, columns = ctx.saved_tensors

        def weigh(at: slice, tile: Tensor) -> Tensor:
            if ctx.without_self:
                tile.diagonal(at.start).fill_(-torch.inf)
            p = (tile - columns).exp_().mul_(column_grad)
            p.addcmul_((tile - rows[at, None]).exp_(), row_grad[at, None])
            p.diagonal(at.start).add_(own_grad[at])
            return p

        return *_backward(x, y, t.exp(), weigh, 0.0, ctx.kept)[:3], None


def _both_ways(tile: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[rows, N] → log-sum-exp and largest entry of each row, and of each column."""
    smallest = torch.finfo(tile.dtype).min  # of a row that is all -inf
    row_top, column_top = (tile.amax(axis).clamp_min_(smallest) for axis in (1, 0))
    e = (tile - row_top[:, None]).exp_()
    rows = e.sum(1).log_() + row_top
    # The columns' sums from the same exponentials: e_ij · exp(top_i − c) = exp(l_ij − c). What has underflowed there is
    # below 1e-38, so a sum of more than 1e-25 has all its digits; else the columns are summed by themselves.
    c = row_top.max()
    sums = (row_top - c).exp_() @ e  # [N]
    if sums.min() > 1e-25:
        return rows, row_top, sums.log_() + c, column_top
    return rows, row_top, (tile - column_top).exp_().sum(0).log_() + column_top, column_top


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> Tensor:
        scale, total, ctx.kept = t.exp(), x.new_zeros(()), None
        for at in _tiles(len(x)):
            tile = ((x[at] * scale) @ y.T).add_(b)
            total += F.softplus(tile).sum()
            if _one_tile(len(x)):
                ctx.kept = tile
        ctx.save_for_backward(x, y, t, b)
        return distributed.all_sum(total)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        x, y, t, b = ctx.saved_tensors
        return _backward(x, y, t.exp(), lambda _, tile: tile.sigmoid().mul_(grad), b, ctx.kept)
