"""Parameters, gradients and optimiser state shared out over processes (FSDP2, ``train.shard: true``).

The wrapping is ours, not accelerate's, which ignores FSDP on CPUs: each of the towers' blocks is a group of its own
that is gathered when it is needed, and the rest is the root's. Zhao et al. 2023, https://arxiv.org/abs/2304.11277.
Outside of a forward a parameter is then a ``DTensor``; ``whole`` and ``like`` translate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from crossmodal import distributed
from crossmodal.errors import UserError
from crossmodal.training.task import Task


def shard(task: Task, accelerator: Accelerator) -> Task:
    """Share the task out, in place; what ``accelerator.prepare`` is for a task that every process holds whole."""
    if distributed.world_size() == 1:
        raise UserError("train.shard shares the model out over processes, but there is one; start more with accelerate launch.")
    for parameter in task.parameters():
        parameter.data = parameter.data.contiguous()  # channels last cannot be shared out
    mesh = init_device_mesh(accelerator.device.type, (distributed.world_size(),))
    for block in task.model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    forward = task.forward

    def autocast(*arguments, **options):
        with accelerator.autocast():
            return forward(*arguments, **options)

    task.forward = autocast
    return task


@contextmanager
def gathered(task: Task) -> Iterator[None]:
    """Within, the root's own parameters are whole, so that the model can be asked without going through the task."""
    if not isinstance(task, FSDPModule):
        yield
        return
    groups = [m for m in task.modules() if isinstance(m, FSDPModule)]
    for group in groups:
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()


@contextmanager
def unsynced(wrapped: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Within, gradients are added up on each process and not yet over processes."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
        return
    with accelerator.no_sync(wrapped) if distributed.world_size() > 1 else nullcontext():
        yield


def whole(value: Tensor) -> Tensor:
    """A shared-out tensor put together (every process must ask); any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor shared out as ``own`` is, in its memory layout."""
    if isinstance(own, DTensor):
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return torch.empty_like(own, dtype=value.dtype).copy_(value)
