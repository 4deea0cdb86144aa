"""Any source → tar shards or a parquet file, which every other trainer reads too."""

from __future__ import annotations

import io
import itertools
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from crossmodal import files
from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError

#: How encoded pictures begin, and the ending that goes with it.
BEGINNINGS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))


def convert(source: Source, out: Path, shard: int = 10_000) -> tuple[int, list[tuple[str, str]]]:
    """Write every sample of a source: ``out`` ending in .parquet is one file, a folder gets ``00000.tar …`` of ``shard`` samples each.

    Pictures are copied as they are encoded. Returns how many were written, and (key, why) of samples that cannot be read or are no
    known picture. Errors: ``UserError`` where ``out`` is something else or holds files already.
    """
    broken: list[tuple[str, str]] = []
    names = [each[0] for each in source.classes or ()]
    samples = _samples(source, broken)
    if out.suffix == ".parquet":
        return _parquet(samples, out, names), broken
    if out.suffix:
        raise UserError(f"{out}: write a folder, for tar shards, or a file that ends in .parquet.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not an empty folder; choose another.")
    count, first = 0, next(samples, None)
    if not first:
        raise UserError("the source gives no sample that can be written.")
    while first:
        with files.whole_file(out / f"{count // shard:05d}.tar") as temporary:
            count += _tar(temporary, itertools.chain([first], itertools.islice(samples, shard - 1)), count, names)
        first = next(samples, None)
    return count, broken


def _samples(source: Source, broken: list[tuple[str, str]]) -> Iterator[tuple[Sample, str]]:
    """(sample, the ending of its picture), those that can be written."""
    for index in tqdm(range(len(source)), unit="sample", desc="convert", disable=not sys.stderr.isatty()):
        try:
            sample = source[index]
        except OSError as error:
            broken.append((f"sample {index}", str(error)))
            continue
        ending = kind(sample.image)
        if ending:
            yield sample, ending
        else:
            broken.append((sample.key, "no picture format is recognised"))


def _written(key: str) -> str:
    """A key that can stand in UTF-8: names of files may hold bytes that do not."""
    return key.encode("utf-8", "replace").decode()


def kind(data: bytes) -> str | None:
    """The usual ending of an encoded picture's format, from its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for beginning, ending in BEGINNINGS if data.startswith(beginning)), None)


def _tar(file: Path, group: Iterable[tuple[Sample, str]], start: int, names: list[str]) -> int:
    """One shard; returns its samples. Labels are classes' names, where these are told apart by them, since a tar has nowhere else to keep
    the names."""
    named, place = len(set(names)) == len(names), start
    with tarfile.open(file, "w") as tar:
        for place, (sample, ending) in enumerate(group, start):
            about = {"key": _written(sample.key), "captions": list(sample.captions)}
            if sample.label is not None:
                about["label"] = names[sample.label] if named and names and isinstance(sample.label, int) else sample.label
            for name, data in ((ending, sample.image), ("json", json.dumps(about, ensure_ascii=False).encode())):
                member = tarfile.TarInfo(f"{place:09d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return place + 1 - start


def _parquet(samples: Iterator[tuple[Sample, str]], out: Path, names: list[str], group: int = 500) -> int:
    """One file in row groups of ``group``; columns image (HF's: bytes and path), captions, and label, with the classes' names as the
    datasets library keeps them."""
    from datasets import ClassLabel, Features, Image, List, Value

    if out.exists():
        raise UserError(f"{out}: exists already; choose another.")
    one = ClassLabel(names=names) if names and len(set(names)) == len(names) else Value("int64")
    rows = ({"image": {"bytes": s.image, "path": _written(s.key)}, "captions": list(s.captions), "label": s.label} for s, _ in samples)
    first, count = list(itertools.islice(rows, group)), 0
    if not first:
        raise UserError("the source gives no sample that can be written.")
    several = any(isinstance(row["label"], tuple) for row in first)
    schema = Features({"image": Image(), "captions": List(Value("string")), "label": List(one) if several else one}).arrow_schema
    with files.whole_file(out) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        while first:
            writer.write_table(pyarrow.Table.from_pylist(first, schema=schema))
            count, first = count + len(first), list(itertools.islice(rows, group))
    return count
