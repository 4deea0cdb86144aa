"""Tar shards in webdataset and img2dataset layout: ``wds:shards/{00000..00099}.tar``, ``pairs.tar``.

Members ``KEY.jpg`` (or jpeg, png, webp, gif, bmp, tif, tiff) with ``KEY.txt`` (a caption), ``KEY.cls`` (a class's number) or ``KEY.json``
(``caption``; ``captions``, a list; ``label``, a number or a word, or a list of numbers).
Each tar is indexed once (key, offset, length) and then read at random, so that shuffling is global and a run resumes where it was.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError

ALIASES = ("wds",)
ENDINGS = (".tar",)
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("json", "txt", "cls", "npy")


def braces(spec: str) -> list[str]:
    """``a/{00..02}.tar`` → its paths; ``{x,y}`` alternatives too. A spec without braces is itself."""
    parts = []
    for piece in re.split(r"(\{[^{}]*\})", spec):
        if not piece.startswith("{"):
            parts.append([piece])
        elif span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
            low, high = span.groups()
            parts.append([str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)])
        else:
            parts.append(piece[1:-1].split(","))
    return ["".join(p) for p in itertools.product(*parts)]


class TarSource(Source):
    """Picture–text pairs in local tar files. Labels that are words name the classes; for labels that are numbers,
    ``classes`` is a text file of class names, one a line, in their order."""

    def __init__(self, path: str, *, classes: str | None = None):
        self.shards = [Path(p).expanduser() for p in braces(path)]
        missing = [str(s) for s in self.shards if not s.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(f"{missing[0]}{more}: no such file.")
        self.samples: list[tuple[int, str, dict[str, tuple[int, int]]]] = []  # shard, key, {extension: (offset, size)}
        for number, shard in enumerate(self.shards):
            self.samples += [(number, key, members) for key, members in _index(shard).items()]
        self._open: dict[tuple[int, int], int] = {}  # (process, shard) → file descriptor: never shared over a fork
        if not self.samples:
            raise UserError(f"{path}: holds no picture with its text (KEY.jpg or .png or .webp beside KEY.txt or .json).")
        if classes:
            file = Path(classes).expanduser()
            if not file.is_file():
                raise UserError(f"{classes}: no such file of class names.")
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            names = self._label_names()
        self.numbers = {name: number for number, name in enumerate(names)}
        self.classes = [(name.replace("_", " "),) for name in names] or None

    def _label_names(self) -> list[str]:
        """Where labels are words, they are the classes: every one that occurs, sorted."""
        if not isinstance(self._about(0).get("label"), str):
            return []
        labels = (self._about(i).get("label") for i in range(len(self.samples)))
        return sorted({label for label in labels if isinstance(label, str)})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        shard, key, members = self.samples[index]
        image = next(self._read(shard, *members[e]) for e in PICTURES if e in members)
        about = self._about(index)
        several = about.get("captions") if isinstance(about.get("captions"), list) else [about.get("caption")]
        captions = [c.strip() for c in several if isinstance(c, str) and c.strip()]
        label = about.get("label")
        label = self.numbers.get(label) if isinstance(label, str) else tuple(label) if isinstance(label, list) else label
        if "txt" in members and not captions:
            captions = [self._read(shard, *members["txt"]).decode("utf-8", errors="replace").strip()]
        if "cls" in members and label is None:
            label = int(self._read(shard, *members["cls"]))
        if self.classes and not captions and label in range(len(self.classes)):
            captions = list(self.classes[label])
        return Sample(key, image, tuple(c for c in captions if c), label)

    def _about(self, index: int) -> dict:
        """What a sample's JSON says; nothing where there is none or it is not a mapping."""
        shard, _, members = self.samples[index]
        try:
            about = json.loads(self._read(shard, *members["json"])) if "json" in members else {}
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        at = (os.getpid(), shard)
        if at not in self._open:
            self._open[at] = os.open(self.shards[shard], os.O_RDONLY)
        return os.pread(self._open[at], size, offset)


def _index(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, size)}} of a tar's complete pairs, in the tar's order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue  # a link could point out of the tar
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name!r} is cut off")
                stem, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                found.setdefault(f"{stem}/{key}" if stem else key, {})[extension.lower()] = (member.offset_data, member.size)
        with shard.open("rb") as raw:  # a tar ends in blocks of zeros; tarfile does not ask for them
            raw.seek(max(0, size - tarfile.BLOCKSIZE))
            if any(raw.read()):
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard}: not a whole tar file ({error}) after {len(found)} samples; copy or download it again.") from error
    pictures, texts = set(PICTURES), set(TEXTS)
    return {k: m for k, m in found.items() if m.keys() & pictures and m.keys() & texts}
