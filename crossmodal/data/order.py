"""Which sample stands in which row of which step: a function of seed and step alone.

Epochs are shuffled one after another into one endless sequence, and step s takes the next ``batch_size`` of it, so every sample is seen
exactly once an epoch, no partial batch is dropped, and a resumed run goes on at the very next sample. Each of W processes makes its own
contiguous share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossmodal import distributed
from crossmodal.chance import seed_of
from crossmodal.data.sources.base import Source


class Order:
    """The endless sequence of sample indices: epoch after epoch, each shuffled by (seed, epoch).

    Where samples lie in runs (``Source.runs``, shards that are fetched), an epoch is ``lanes`` sequences that take turns: the runs
    are shuffled, cut into equal lanes, and samples are shuffled within their lane, no further than about a run's length. So a batch
    mixes samples of many runs, few runs are open at a time, and neighbours in a lane may go to the same process.
    """

    LANES = 8

    def __init__(self, length: int, seed: int, runs: np.ndarray | None = None):
        self.length, self.seed, self.runs = length, seed, runs
        self.lanes = 1 if self.runs is None else min(self.LANES, len(self.runs))
        #: How long before its turn a sample is announced, in positions; 0: not at all.
        self.ahead = 0 if self.runs is None else self.lanes * max(1, self.length // len(self.runs) // 2)
        self._epoch, self._permutation = -1, torch.empty(0)

    def __getitem__(self, position: int) -> int:
        epoch, within = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            self._epoch, self._permutation = epoch, self._shuffled(generator)
        return int(self._permutation[within])

    def _shuffled(self, chance: torch.Generator) -> Tensor:
        """[N]: every index once."""
        if self.runs is None:
            return torch.randperm(self.length, generator=chance)
        ends = torch.as_tensor(self.runs)
        runs = torch.arange(self.length).tensor_split(ends[:-1])
        sequence = torch.cat([runs[n] for n in torch.randperm(len(runs), generator=chance)])
        mixed = torch.empty_like(sequence)
        share = [len(range(lane, self.length, self.lanes)) for lane in range(self.lanes)]
        for lane, part in enumerate(sequence.split(share)):
            place = torch.arange(len(part)) + torch.rand(len(part), generator=chance, dtype=torch.float64) * self.length / len(runs)
            mixed[lane :: self.lanes] = part[place.argsort()]
        return mixed


@dataclass(frozen=True)
class Ticket:
    """One row of one step."""

    step: int
    row: int  # in the global batch
    epoch: int
    index: int  # in the source
    soon: int | None = None  # a sample that a later step will ask for


class Steps:
    """The batch sampler: for each step from ``start`` on, this process's tickets."""

    def __init__(self, source: Source, seed: int, batch_size: int, start: int, stop: int):
        self.order, self.later = (Order(len(source), seed, source.runs) for _ in range(2))  # the second may be an epoch ahead
        self.batch_size, self.start, self.stop = batch_size, start, stop
        rows = batch_size // distributed.world_size()
        self.rows = range(distributed.rank() * rows, (distributed.rank() + 1) * rows)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for step in range(self.start, self.stop):
            yield [self._ticket(step, row) for row in self.rows]

    def _ticket(self, step: int, row: int) -> Ticket:
        # A process's rows, which stand together, are those of the same lanes, so that it reads few shards.
        turns = math.gcd(self.batch_size, self.order.lanes)
        position = step * self.batch_size + row % (self.batch_size // turns) * turns + row // (self.batch_size // turns)
        soon = self.later[position + self.order.ahead] if self.order.ahead else None
        return Ticket(step, row, position // self.order.length, self.order[position], soon)

    def __len__(self) -> int:
        return self.stop - self.start
