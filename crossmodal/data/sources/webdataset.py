"""Tar shards in webdataset and img2dataset layout: ``wds:shards/{00000..00099}.tar``, ``pairs.tar``.

Members ``KEY.jpg`` (or jpeg, png, webp, gif, bmp, tif, tiff) with ``KEY.txt`` (a caption), ``KEY.cls`` (a class's number) or ``KEY.json``
(``caption``; ``captions``, a list; ``label``, a number or a word, or a list of numbers).
Each tar is indexed once (key, offset, length) and then read at random, so that shuffling is global and a run resumes where it was.
Tars at addresses (``wds:https://host/{00000..00099}.tar``, ``s3://``, ``hf://`` …) are fetched one by one as their turn comes.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from functools import cache
from io import FileIO
from pathlib import Path

import numpy as np

from crossmodal.batch import Sample
from crossmodal.data import remote, tars
from crossmodal.data.paths import local
from crossmodal.data.sources.base import Shards, Source, here_or_in_turn
from crossmodal.data.strings import Strings
from crossmodal.errors import UserError

ALIASES = ("wds",)
ENDINGS = (".tar",)
FOLDERS = ("*.tar",)
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("json", "txt", "cls", "npy")
KINDS = {extension: number for number, extension in enumerate(PICTURES + TEXTS)}


class TarSource(Source):
    """Picture–text pairs in local tar files. Labels that are words name the classes; for labels that are numbers,
    ``classes`` is a text file of class names, one a line, in their order. ``caption`` is where captions stand in a sample's
    JSON, a text or a list: ``?caption=alt``, ``?caption=translations.ja``; samples that have nothing there have no caption."""

    def __init__(self, path: str, *, classes: str | None = None, caption: str | None = None):
        self.shards, self.caption = local(path, ".tar"), caption
        self._index()
        self._open: dict[tuple[int, int], FileIO] = {}  # (process, shard): a file is never shared over a fork
        if not len(self.keys):
            raise UserError(f"{path}: holds no picture with its text (KEY.jpg or .png or .webp beside KEY.txt or .json).")
        names = _names(classes) if classes else self._label_names()
        self.numbers = {name: number for number, name in enumerate(names)}
        self.classes = shown(names)

    @classmethod
    def open(cls, path: str, **options: str) -> Source:
        return here_or_in_turn(cls, path, **options)

    @classmethod
    def in_turn(cls, who: str, addresses: list[str], **options: str) -> Shards:
        """Tars that are fetched as their turn comes. Errors: ``UserError``."""
        source = Shards("tar", who, addresses, lambda file: cls(str(file), **options), promised)
        source.classes = shown(_names(options["classes"])) if "classes" in options else None
        return source

    def _label_names(self) -> list[str]:
        """Where labels are words, they are the classes: every one that occurs, sorted."""
        if not isinstance(self._about(0).get("label"), str):
            return []
        labels = (self._about(i).get("label") for i in range(len(self)))
        return sorted({label for label in labels if isinstance(label, str)})

    def _index(self) -> None:
        """Keys, and for every sample its shard and where its files stand, in arrays."""
        pictures, texts = set(PICTURES), set(TEXTS)
        keys: list[str] = []
        without: Counter[str] = Counter()
        cut: list[str] = []
        shard_of, starts, kinds, places = array("i"), array("q", [0]), array("b"), array("q")
        for number, shard in enumerate(self.shards):
            found: list[tuple[str, dict[str, tuple[int, int]]]] = []
            newest: dict[str, dict[str, tuple[int, int]]] = {}  # of each key: one that comes again begins another sample
            try:
                for name, offset, size in tars.members(shard):
                    folder, _, file = name.rpartition("/")
                    key, _, extension = file.partition(".")
                    extension = extension.lower()
                    if extension in KINDS:
                        key = f"{folder}/{key}" if folder else key
                        if key not in newest or extension in newest[key]:
                            newest[key] = {}
                            found.append((key, newest[key]))
                        newest[key][extension] = (offset, size)
            except UserError:
                if len(self.shards) == 1:
                    raise
                cut.append(shard.name)
                found = found[:-1]  # of the last one, something may be missing
            for key, members in found:
                if not members.keys() & texts:
                    without["pictures without a text"] += 1
                elif not members.keys() & pictures:
                    without["texts without a picture"] += 1
                else:
                    keys.append(key)
                    shard_of.append(number)
                    for extension, place in members.items():
                        kinds.append(KINDS[extension])
                        places.extend(place)
                    starts.append(len(kinds))
        if cut:
            more = f" and {len(cut) - 1:,} more" if len(cut) > 1 else ""
            without[f"ends of shards that are not whole ({cut[0]}{more}; download them again)"] = len(cut)
        self.keys, self.left_out = Strings(keys), dict(without)
        self._shard, self._starts = np.frombuffer(shard_of, np.int32), np.frombuffer(starts, np.int64)
        self._kinds, self._places = np.frombuffer(kinds, np.int8), np.frombuffer(places, np.int64).reshape(-1, 2)

    def _members(self, index: int) -> tuple[int, dict[str, tuple[int, int]]]:
        """(a sample's shard, {extension: (offset, size)})."""
        rows = range(self._starts[index], self._starts[index + 1])
        names = PICTURES + TEXTS
        return int(self._shard[index]), {names[self._kinds[r]]: (int(self._places[r, 0]), int(self._places[r, 1])) for r in rows}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        key, (shard, members) = self.keys[index], self._members(index)
        image = next(self._read(shard, *members[e]) for e in PICTURES if e in members)
        about = self._about(index)
        said = _at(about, self.caption) if self.caption else about.get("captions") or about.get("caption")
        several = said if isinstance(said, list) else [said]
        captions = [c.strip() for c in several if isinstance(c, str) and c.strip()]
        label = about.get("label")
        label = self.numbers.get(label) if isinstance(label, str) else tuple(label) if isinstance(label, list) else label
        if "txt" in members and not captions and not self.caption:
            captions = [self._read(shard, *members["txt"]).decode("utf-8", errors="replace").strip()]
        if "cls" in members and label is None:
            number = self._read(shard, *members["cls"]).strip()
            label = int(number) if number.isdigit() else None
        if self.classes and not captions and label in range(len(self.classes)):
            captions = list(self.classes[label])
        return Sample(key, image, tuple(c for c in captions if c), label)

    def _about(self, index: int) -> dict:
        """What a sample's JSON says; nothing where there is none or it is not a mapping."""
        shard, members = self._members(index)
        try:
            about = json.loads(self._read(shard, *members["json"]).decode("utf-8", "replace")) if "json" in members else {}
        except (ValueError, RecursionError):
            return {}
        return about if isinstance(about, dict) else {}

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        at = (os.getpid(), shard)
        if at not in self._open:
            self._open[at] = self.shards[shard].open("rb", buffering=0)
        return os.pread(self._open[at].fileno(), size, offset)


def _at(about: dict, place: str) -> object:
    """What stands in nested mappings at ``a.b.c``; a key that holds points itself is found too. None where nothing does."""
    if place in about or "." not in place:
        return about.get(place)
    head, _, rest = place.partition(".")
    inside = about.get(head)
    return _at(inside, rest) if isinstance(inside, dict) else None


def shown(names: list[str]) -> list[tuple[str, ...]] | None:
    """Classes as people read them."""
    return [(name.replace("_", " "),) for name in names] or None


def _names(classes: str) -> list[str]:
    file = Path(classes).expanduser()
    if not file.is_file():
        raise UserError(f"{classes}: no such file of class names.")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def promised(address: str) -> int | None:
    """How many samples a shard holds, by what writers leave beside it: img2dataset's ``00000_stats.json``, or ``sizes.json``."""
    folder, _, name = address.rpartition("/")
    try:
        return int(json.loads(_beside(f"{folder}/{name.partition('.')[0]}_stats.json"))["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return int(json.loads(_beside(f"{folder}/sizes.json"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def _beside(address: str) -> bytes:
    return remote.read(address, 100_000_000)
