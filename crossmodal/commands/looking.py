"""Data before training: what a source holds, and another format for it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from crossmodal.commands import common
from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.data.sources.base import Source


def data_inspect(options: argparse.Namespace) -> None:
    from crossmodal.data import inspect
    from crossmodal.retrieval.search import grid, thumbnail

    source, context = common.open(options), options.context_length
    found = inspect.look(source, inspect.token_counter(options.tokenizer), options.batch_size)
    whole = found.samples - sum(map(len, found.broken.values()))
    print(
        f"{options.data}: {found.samples:,} samples, {found.bytes / 2**20:,.0f} MiB, {found.captions:,} captions, {found.classes:,} classes"
    )
    print(f"pictures    {whole:,} whole; " + ", ".join(f"{n:,} {ending}" for ending, n in found.formats.most_common()))
    if found.sides:
        sides = sorted(min(side) for side in found.sides)
        print(f"            shorter side {sides[0]} to {sides[-1]} pixels, median {inspect.quantile(sides, 0.5)}")
    for cause, keys in sorted(found.broken.items(), key=lambda item: -len(item[1])):
        print(f"broken      {len(keys):,} × {cause}: {', '.join(keys[: inspect.SHOWN])}{' …' if len(keys) > inspect.SHOWN else ''}")
    if found.repeated_pictures:
        shown = ", ".join(f"{a} is {b}" for a, b in found.repeated_pictures[: inspect.SHOWN])
        print(f"repeated    {len(found.repeated_pictures):,} pictures are the same file as an earlier one: {shown}")
    if found.captions:
        half, most = (inspect.quantile(found.words, q) for q in (0.5, 0.99))
        each = found.captions / max(1, found.samples)
        print(f"captions    {each:.1f} a picture, median {half} words, 99 % up to {most}, longest {found.words[-1]:,}")
        print(f"            {found.repeated_captions:,} repeat an earlier one; {found.without_caption:,} pictures have none")
        print(f"in a batch  of {options.batch_size:,}, about {found.in_batch:.1f} rows share their caption with another row")
    if found.tokens:
        cut = sum(n > context for n in found.tokens) / len(found.tokens)
        half = inspect.quantile(found.tokens, 0.5)
        print(f"tokens      median {half}, longest {found.tokens[-1]:,} ({options.tokenizer}); {100 * cut:.1f} % are cut at {context}")
    shards = getattr(source, "shards", None)
    if shards:
        print(f"shards      {len(shards):,}, indexed: any number of processes and workers shares them evenly")
    if options.grid:
        rows = [round(n * (len(source) - 1) / 9) for n in range(10)]
        shown = []
        for row in dict.fromkeys(rows):
            shown.append((thumbnail(source, row), _said(source, row)))
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        grid(options.data, shown).save(options.grid)
        print(f"grid: {options.grid}")


def _said(source: Source, row: int) -> str:
    try:
        sample = source[row]
    except OSError:
        return f"sample {row}: cannot be read"
    return sample.captions[0] if sample.captions else sample.key


def data_convert(options: argparse.Namespace) -> None:
    from crossmodal.data.convert import convert
    from crossmodal.data.sources import open_source

    if options.shard < 1:
        raise UserError(f"--shard is {options.shard}; a tar takes 1 sample or more.")
    count, broken = convert(open_source(options.source), options.out, options.shard)
    common.speak_of_broken(broken)
    print(f"data: {options.out} ({count:,} samples)")
