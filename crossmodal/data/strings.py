"""Many texts in two arrays: a tenth of a list's memory, and none of it copied when worker processes read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class Strings(Sequence[str]):
    """An immutable list of str. (Reading a Python list in a forked worker touches its reference counts, which copies page after page.)"""

    def __init__(self, texts: Iterable[str]):
        parts, ends, end = [], [0], 0
        for text in texts:
            data = text.encode("utf-8", "surrogateescape")
            parts.append(data)
            end += len(data)
            ends.append(end)
        self._data = b"".join(parts)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._data[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


class Groups(Sequence[tuple[str, ...]]):
    """An immutable list of tuples of str: every picture's captions."""

    def __init__(self, groups: Iterable[Sequence[str]]):
        starts = [0]

        def flat() -> Iterable[str]:
            for group in groups:
                starts.append(starts[-1] + len(group))
                yield from group

        self._texts = Strings(flat())
        self._starts = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return tuple(self._texts[n] for n in range(self._starts[index], self._starts[index + 1]))
