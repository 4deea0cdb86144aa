"""One step's gradient from micro-batches: exactly that of the whole global batch.

Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): a batch loss needs the projections of all
pairs at once, but not their activations. So

1. all micro-batches are projected without gradient;
2. the batch loss is computed on the gathered projections, and its gradient with respect to them is kept;
3. each micro-batch is encoded again, with gradient, and the kept gradient goes back through it.

What is random is the same both times: rows draw from their seeds, and torch's generators are put back for each
micro-batch. Pair terms are sums, so they only need their count over the whole batch before step 3. DDP reduces
once, with the last micro-batch. With one micro-batch there is one forward and nothing is cached.

Factors, for W processes whose gradients DDP averages and k micro-batches: projections' gradients × W (in
``distributed.gather``), pair sums × W / count, scalars' gradients / k (each micro-batch's forward yields them).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from crossmodal.batch import Batch, Terms
from crossmodal.chance import random_state, set_random_state
from crossmodal.training.sharding import unsynced
from crossmodal.training.task import Outputs, Task


def backward(task: Task, wrapped: nn.Module, batches: list[Batch], accelerator: Accelerator) -> tuple[Tensor, Terms]:
    """Add the gradient of the whole global batch to the parameters.

    Args:
        wrapped: ``task`` as accelerate prepared it.
        batches: this process's share of the batch, in micro-batches; as many on every process.

    Returns: (weighted loss [], unweighted terms), of the whole batch and without gradient.
    """
    if len(batches) == 1:
        loss, terms = task.loss(Outputs(*wrapped(batches[0].to(accelerator.device))))
        if loss.isfinite():
            accelerator.backward(loss)
        return loss.detach(), terms
    states, projections, scalars, counts = _first_pass(task, batches, accelerator.device)
    loss, terms = task.batch_loss(projections, scalars)
    if not loss.isfinite():
        return loss, terms
    if loss.requires_grad:
        loss.backward()
    loss = loss.detach()
    start = 0
    for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
        last = number == len(batches) - 1
        set_random_state(state)
        with nullcontext() if last else unsynced(wrapped, accelerator):
            outputs = Outputs(*wrapped(batch.to(accelerator.device)))
            rows = slice(start, start + len(batch))
            parts = [(o * c.grad[rows]).sum() for o, c in _pairs(outputs.projections, projections) if c.grad is not None]
            parts += [(o * c.grad).sum() / len(batches) for o, c in _pairs(outputs.scalars, scalars) if c.grad is not None]
            pairs, sums = task.pair_loss(outputs.sums, counts)
            accelerator.backward(sum(parts) + pairs)
        for term, value in sums.items():
            terms[term] = terms.get(term, 0) + value
        loss = loss + pairs.detach()
        start = rows.stop
    return loss, terms


@torch.no_grad()
def _first_pass(task: Task, batches: list[Batch], device: torch.device) -> tuple[list, dict, dict, dict]:
    """(each micro-batch's generator state, projections and scalars as leaves, pair counts of the whole batch)."""
    states, every, counts = [], [], []
    with unmoved_statistics(task):
        for batch in batches:
            states.append(random_state())
            known = task.pair_counts(batch)
            outputs = None
            if known is None or task.batch_scope:
                outputs = Outputs(*task(batch.to(device), projections_only=known is not None))
                every.append(outputs)
            counts.append(known if known is not None else {n: {t: c for t, (_, c) in s.items()} for n, s in outputs.sums.items()})
    if not task.batch_scope:
        return states, {}, {}, task.total_counts(counts)
    leaf = lambda x: x.detach().requires_grad_(x.is_floating_point())
    projections = {n: {k: leaf(torch.cat([o.projections[n][k] for o in every])) for k in own} for n, own in every[0].projections.items()}
    scalars = {n: {k: leaf(v) for k, v in own.items()} for n, own in every[0].scalars.items()}
    return states, projections, scalars, task.total_counts(counts)


def _pairs(outputs: dict[str, dict[str, Tensor]], cached: dict[str, dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for name, own in cached.items():
        for key, value in own.items():
            yield outputs[name][key], value


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Within, batch-norm uses its batch's statistics as in training, but its running ones stay: they count a batch once."""
    norms = {m: m.momentum for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats}
    seen = {m: m.num_batches_tracked.clone() for m in norms}
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen[norm])
