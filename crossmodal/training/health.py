"""Whether training goes well: what is tracked beside the loss, and what is said when it does not."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from crossmodal.batch import Terms
from crossmodal.training.micro_batch import used_memory
from crossmodal.training.sharding import whole
from crossmodal.training.task import Task

WINDOW = 100  # steps: a loss at chance for so long is not warming up any more
NEAR = 0.01  # of the chance level


class Health:
    """Looks at every step's terms; speaks once."""

    def __init__(self, task: Task, pairs: int):
        self.chance = {t: v for o in task.objectives.values() for t, v in o.chance(pairs).items()}
        self.recent: dict[str, deque[float]] = {term: deque(maxlen=WINDOW) for term in self.chance}
        self.pairs = pairs

    def plateau(self, terms: dict[str, float]) -> str | None:
        """A sentence for a term that has stayed at its chance level for ``WINDOW`` steps; once for each term."""
        for term, recent in list(self.recent.items()):
            recent.append(terms[term])
            level = self.chance[term]
            if len(recent) == WINDOW and all(abs(v - level) < NEAR * level for v in recent):
                del self.recent[term]
                named = f" = ln({self.pairs})" if math.isclose(level, math.log(self.pairs)) else ""
                return (
                    f"{term} has stayed at {level:.3f}{named}, chance, for {WINDOW} steps: nothing is learnt. "
                    "A lower optim.lr, a longer optim.warmup or pairs that belong together usually help."
                )
        return None


def gradient_norm(task: Task) -> Tensor:
    """The 2-norm of all gradients, []."""
    return torch.nn.utils.get_total_norm([p.grad for p in task.parameters() if p.grad is not None])


def memory() -> float:
    """Peak memory in GiB: of the GPU where there is one, else of this process."""
    return used_memory() / 2**30


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """Tensors [] or [1] as numbers, brought from the device all at once."""
    if not values:
        return {}
    return dict(zip(values, torch.stack([whole(v.detach()).float().reshape(()) for v in values.values()]).tolist(), strict=True))


def what_is_not_finite(terms: Terms, keys: tuple[str, ...]) -> str:
    """Which term, and in which samples' batch."""
    values = ", ".join(f"{k} {v:.4g}" for k, v in numbers(terms).items())
    return f"{values}; the batch begins with {', '.join(keys[:3])}"
