"""Several sources as one: ``mix:a.csv+2*b.tar+0.5*wds:c.tar``. A weight says how often an epoch sees a source's samples.

2 shows every sample twice an epoch; 0.5 shows every second one. The order of an epoch is shuffled over all of them together.
"""

from __future__ import annotations

import bisect
import itertools
import re

import numpy as np

from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError


class MixSource(Source):
    """Parts stand one after another; keys are those of the parts, and so are options: ``mix:a.csv?caption=alt+b.tar?limit=100``."""

    takes_queries = True

    def __init__(self, path: str):
        from crossmodal.data.sources import open_source

        self.parts: list[tuple[Source, int]] = []  # source, samples it gives an epoch
        for piece in path.split("+"):
            weight, spec = re.fullmatch(r"\s*(?:([0-9.]+)\*)?(.+?)\s*", piece).groups() if piece.strip() else (None, "")
            if not spec:
                raise UserError(f"mix:{path}: a part is missing; write mix:a.csv+2*b.tar.")
            source = open_source(spec)
            try:
                count = round(float(weight or 1) * len(source))
            except ValueError:
                raise UserError(f"mix:{path}: {weight!r} is no weight; write a number, as in 2*b.tar.") from None
            if count < 1:
                raise UserError(f"mix:{path}: with the weight {weight}, {spec} gives no sample.")
            self.parts.append((source, count))
        self.ends = list(itertools.accumulate(count for _, count in self.parts))
        classes = [source.classes for source, _ in self.parts]
        self.classes = classes[0] if all(c == classes[0] for c in classes) else None
        self.runs = self._runs()

    def _runs(self) -> np.ndarray | None:
        """Where a part has runs: all parts', those of the others cut to the same length, so that the parts mix."""
        given = [source.runs for source, _ in self.parts if source.runs is not None]
        if not given:
            return None
        usual = max(1, int(np.mean(np.concatenate([np.diff(runs, prepend=0) for runs in given]))))
        ends = []
        for (source, count), stop in zip(self.parts, self.ends, strict=True):
            length = len(source)
            runs = np.arange(usual, length + usual, usual).clip(max=length) if source.runs is None else source.runs
            rounds = max(1, -(-count // length))
            whole = np.concatenate([runs + turn * length for turn in range(rounds)])
            ends.append(stop - count + (np.minimum(whole, count) if count >= length else -(-whole * count // length)))
        return np.unique(np.concatenate(ends))

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[Source, int]:
        """The part that holds a sample, and its index there: in turn while the weight is at least 1, else evenly spaced."""
        number = bisect.bisect_right(self.ends, index)
        source, count = self.parts[number]
        within = index - (self.ends[number] - count)
        return source, within % len(source) if count >= len(source) else within * len(source) // count

    def soon(self, index: int) -> None:
        source, within = self._place(index)
        source.soon(within)

    def __getitem__(self, index: int) -> Sample:
        source, within = self._place(index)
        return source[within]

    def identity(self, index: int) -> Sample:
        source, within = self._place(index)
        return source.identity(within)
