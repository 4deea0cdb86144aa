"""What a source is: pictures with captions or classes, by index.

One format a file. A spec is ``FORMAT:PATH``, or a path whose ending says the format; options follow
a question mark: ``csv:pairs.csv?image=file&caption=text``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from crossmodal import distributed, files
from crossmodal.batch import Sample
from crossmodal.data import pictures, remote
from crossmodal.data.paths import expanded, pass_over
from crossmodal.errors import UserError

GLIMPSED = 64  # samples


class Source:
    """Indexable samples. Subclasses take the path first and options as keyword-only strings."""

    #: The names of each class (the first is the one shown), or None where there are no classes.
    classes: list[tuple[str, ...]] | None = None
    #: Class prompts that the data set brings along, or None.
    templates: list[str] | None = None
    #: Where reading at random is dear: the ends of the runs of samples that lie together, [R]. Training then shuffles the runs,
    #: and samples among near ones. None: any sample is as near as any other.
    runs: np.ndarray | None = None
    #: What was passed over in opening, and how often, as {"rows without a caption": 10}.
    left_out: dict[str, int] = {}
    #: Whether a question mark in its path is its own to read, because its parts have options.
    takes_queries = False

    @classmethod
    def open(cls, path: str, **options: str) -> Source:
        """The source that a path and its options mean: this class, or another that serves them better."""
        return cls(path, **options)

    def soon(self, index: int) -> None:
        """Told of a sample a while before it is asked for."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``, its picture still encoded. May raise ``OSError`` for an unreadable file."""
        raise NotImplementedError

    def glimpse(self) -> str:
        """A digest of a few samples, spaced evenly, by which a resumed run tells whether its data are still those."""
        length, seen = len(self), hashlib.blake2b(digest_size=12)
        for index in sorted({n * (length - 1) // (GLIMPSED - 1) for n in range(GLIMPSED)}) if self.runs is None else ():
            try:
                sample = self.identity(index)
                seen.update(repr((index, sample.key, sample.captions, len(sample.image))).encode("utf-8", "replace"))
            except OSError:
                seen.update(repr((index, None)).encode())
        seen.update(repr(None if self.runs is None else self.runs.tolist()).encode())
        return seen.hexdigest()

    def identity(self, index: int) -> Sample:
        """What names the sample at ``index`` in a fingerprint: itself, or whatever is cheaper to have and differs when it does."""
        return self[index]


class Listed(Source):
    """Pictures that a file lists, with their captions."""

    #: The folder that the pictures' paths are relative to.
    root: Path
    #: For every sample its key, its picture (a path below ``root`` or an http address) and its captions.
    samples: list[tuple[str, str, tuple[str, ...]]]

    def list_at(self, path: str, images: str | None) -> Path:
        """The list's file; the pictures stand in the folder ``images``, or beside it. Errors: ``UserError`` where there is no file."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{path}: no such file.")
        self.root = Path(images).expanduser() if images else file.parent
        return file

    def keep(self, found: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
        """Take those as samples that have a caption; the others are counted."""
        found = list(found)
        self.samples = [each for each in found if each[2]]
        lone = len(found) - len(self.samples)
        self.left_out = +Counter({"pictures without a caption": lone})

    def check_first(self, who: str) -> None:
        """Tell a wrong folder at once, not after an epoch of warnings. Errors: ``UserError``."""
        pictures.check_first(self.samples[0][1] if self.samples else None, self.root, who)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        key, picture, captions = self.samples[index]
        return Sample(key, pictures.read(picture, self.root), captions)


class Shards(Source):
    """One source in many files that stand elsewhere; each is fetched when its turn comes, and stays while there is room.

    Args:
        kind: the format, under which a file's count is kept.
        who: names the source in messages.
        addresses: the files, in their order.
        opens: a fetched file → its samples.
        count: how many samples an address holds, by what stands beside it; None where only reading it tells. It is then fetched
            once for that, and the number kept.
    """

    OPEN = 64  # shards that a process has open at once

    def __init__(self, kind: str, who: str, addresses: list[str], opens: Callable[[Path], Source], count: Callable[[str], int | None]):
        self.kind, self.kept, self.opens, self._count = kind, remote.Kept(), opens, count
        self._said: set[int] = set()
        self._open: dict[tuple[int, int], Source] = {}  # (process, shard): files are not shared over a fork
        self.shards, counts, missing = [], [], []
        quiet = not (distributed.is_main() and sys.stderr.isatty())
        stamps = self.kept.stamps(addresses)
        for address in tqdm(addresses, unit="shard", desc="count samples", disable=quiet, leave=False):
            try:
                counts.append(self._held(address, stamps[address]))
                self.shards.append(address)
            except FileNotFoundError:
                missing.append(address)
            except OSError as error:
                raise UserError(f"{error}.") from error
        pass_over(who, missing, bool(self.shards))
        self.runs = np.cumsum(counts, dtype=np.int64)

    def _held(self, address: str, stamp: str | None) -> int:
        """How many samples; what was noted or fetched of a file that has changed since is forgotten."""
        note = self.kept.note(address, self.kind)
        known = files.read_json(note) if note.is_file() else None
        if known and (stamp is None or known["stamp"] in (stamp, None)):
            return known["samples"]
        if known:
            self.kept.forget(address)
        held = self._count(address)
        if held is None or held < 0:
            held = len(self._opened(address))
        files.write_json(note, {"address": address, "samples": held, "stamp": stamp})
        return held

    def _opened(self, address: str) -> Source:
        """Errors: ``UserError`` with the address, and a fetched file that is none of this format does not stay."""
        file = self._file(address)
        try:
            return self.opens(file)
        except UserError as error:
            if remote.is_remote(address):
                self.kept.forget(address)
            raise UserError(str(error).replace(str(file), address)) from error

    def _file(self, address: str) -> Path:
        return self.kept.path(address) if remote.is_remote(address) else Path(address)

    def _compare(self, number: int, holds: int) -> None:
        """A shard that holds more than it was counted for is said, once: this run's order cannot be changed any more."""
        expected = int(self.runs[number]) - (int(self.runs[number - 1]) if number else 0)
        if holds != expected:
            self.kept.note(self.shards[number], self.kind).unlink(missing_ok=True)
        if holds > expected and number not in self._said:
            self._said.add(number)
            text = f"holds {holds:,} samples where {expected:,} were promised; the others are seen when it is counted anew."
            print(f"crossmodal: {self.shards[number]} {text}", file=sys.stderr)

    def _place(self, index: int) -> tuple[int, int]:
        """(a sample's shard, its index there)."""
        number = int(np.searchsorted(self.runs, index, side="right"))
        return number, index - (int(self.runs[number - 1]) if number else 0)

    def soon(self, index: int) -> None:
        address = self.shards[self._place(index)[0]]
        if remote.is_remote(address):
            self.kept.ahead(address)

    def __len__(self) -> int:
        return int(self.runs[-1]) if len(self.runs) else 0

    def __getitem__(self, index: int) -> Sample:
        number, within = self._place(index)
        address, at = self.shards[number], (os.getpid(), number)
        for again in (True, False):
            try:
                if at not in self._open:
                    if len(self._open) >= self.OPEN:
                        del self._open[next(iter(self._open))]
                    self._open[at] = self._opened(address)
                    self._compare(number, len(self._open[at]))
                shard = self._open[at]
                if within >= len(shard):
                    raise OSError(f"{address}: holds {len(shard):,} samples, where {within + 1:,} or more were expected")
                sample = shard[within]
                break
            except FileNotFoundError:  # another process has just made room
                self._open.pop(at, None)
                if not again:
                    raise
            except UserError as error:
                raise OSError(str(error)) from error  # this shard's samples are broken; the others are not
        key = f"{Path(address).stem}/{sample.key}" if sample.key == str(within) else sample.key
        # A shard's own numbering of classes is no other's: it counts where it is the whole source's.
        return replace(sample, key=key, label=None if shard.classes and shard.classes != self.classes else sample.label)


def here_or_in_turn(cls: type[Source], path: str, **options: str) -> Source:
    """The files that a path stands for, read where they are, or one by one as their turn comes (``cls.in_turn``) where some are remote."""
    addresses = expanded(path)
    return cls.in_turn(path, addresses, **options) if any(map(remote.is_remote, addresses)) else cls(path, **options)


class First(Source):
    """The first ``limit`` samples of another source."""

    def __init__(self, source: Source, limit: int):
        self.source, self.limit = source, limit
        self.classes, self.templates = source.classes, source.templates
        self.runs = None if source.runs is None else np.unique(np.minimum(source.runs, limit))

    def soon(self, index: int) -> None:
        self.source.soon(index)

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def identity(self, index: int) -> Sample:
        return self.source.identity(index)
