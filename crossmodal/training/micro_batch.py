"""How many pairs go through the towers at once: ``data.micro_batch: auto`` finds it by trying.

A forward and backward pass at 4, 8, 16 … pairs, as long as the next size, extrapolated from the last two peaks, fits
into what is free: on a CPU running out is not an error that could be caught, but a kill.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from crossmodal import distributed
from crossmodal.batch import Batch
from crossmodal.chance import random_state, set_random_state
from crossmodal.errors import UserError
from crossmodal.training.gradcache import unmoved_statistics
from crossmodal.training.task import Task

try:
    import resource
except ImportError:  # not a Unix
    resource = None

SHARE = 0.8  # of what is free: the optimiser's state and the loader's batches come later


def choose(wanted: int | str | None, task: Task, sample: Callable[[int], Batch], local: int, accelerator: Accelerator) -> int:
    """Pairs in a micro-batch, 1 … ``local``; the same on every process.

    Args:
        wanted: ``data.micro_batch`` of the recipe.
        sample: makes a batch of so many pairs.
        local: pairs of the global batch on this process.
    """
    if wanted != "auto":
        return min(wanted or local, local)
    state = random_state()
    found = _find(task.train(), sample, local, accelerator)
    set_random_state(state)
    task.zero_grad(set_to_none=True)
    return min(distributed.all_objects(found))


def _find(task: Task, sample: Callable[[int], Batch], local: int, accelerator: Accelerator) -> int:
    limit = used_memory() + SHARE * _free(accelerator.device)
    good, before, size = 0, 0.0, min(4, local)
    while True:
        try:
            peak = _try(task, sample(size), accelerator)
        except torch.OutOfMemoryError:  # on a GPU it can be caught
            torch.cuda.empty_cache()
            break
        good = size
        if size == local:
            break
        each = max(peak - before, 0.0) / (size / 2) if before else 0.0
        before, size = peak, min(2 * size, local)
        if peak + each * (size - good) > limit:
            break
    if not good:
        raise UserError("data.micro_batch is auto, but not even 4 pairs fit into the memory of this machine.")
    return good


def _try(task: Task, batch: Batch, accelerator: Accelerator) -> float:
    """Peak memory of a forward and backward pass, in bytes."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with unmoved_statistics(task), accelerator.autocast():
        projections, scalars, sums = task(batch.to(accelerator.device))
    parts = [v.float().sum() for own in (*projections.values(), *scalars.values()) for v in own.values() if v.requires_grad]
    parts += [total for own in sums.values() for total, _ in own.values()]
    sum(parts).backward()
    return used_memory()


def used_memory() -> float:
    """Bytes at the peak so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory()


def peak_memory() -> float:
    """The most memory this process has held, in bytes."""
    if resource is None:
        return psutil.Process().memory_info().rss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free(device: torch.device) -> float:
    """Bytes that one more process could take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, current = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # a container's own
    if limit.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(current.read_text()))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
