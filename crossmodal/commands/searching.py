"""Embeddings, indexes and searches."""

from __future__ import annotations

import argparse
import sys

from crossmodal import files
from crossmodal.commands import common
from crossmodal.errors import UserError


def embed(options: argparse.Namespace) -> None:
    from crossmodal import embed

    source = common.open(options)
    model = common.load(options.model, options.device)
    embed.write(model, options.model, source, options.data, options.out, workers=options.workers)
    pairs, about = embed.read(options.out)
    common.speak_of_broken(about["broken"])
    print(f"embeddings: {options.out} ({len(pairs):,} pictures, {len(pairs.captions):,} captions, width {pairs.image.shape[1]})")


def index_build(options: argparse.Namespace) -> None:
    from crossmodal import embed
    from crossmodal.retrieval.index import Index

    pictures, about = embed.read(options.embeddings)
    kept = {k: about[k] for k in ("model", "source", "fingerprint")}
    Index.build(pictures, kept, options.kind).save(options.out)
    print(f"index: {options.out} ({len(pictures):,} pictures, {options.kind})")


def search(options: argparse.Namespace) -> None:
    from crossmodal.data.sources import open_source
    from crossmodal.embed import fingerprint
    from crossmodal.retrieval import search
    from crossmodal.retrieval.index import Index

    if (options.text is None) == (options.image is None):
        raise UserError("say what to look for: a TEXT, or --image FILE.")
    if options.image and not options.image.is_file():
        raise UserError(f"{options.image}: no such file.")
    if options.k < 1:
        raise UserError("-k takes a number from 1 on.")
    index = Index.load(options.index)
    model = common.load(options.model or index.about["model"], options.device)
    if fingerprint(model) != index.about["fingerprint"]:
        print("crossmodal: the index was built with other weights than this model's; the hits mean little.", file=sys.stderr)
    query = options.text if options.text is not None else options.image
    hits = search.search(index, model, query, options.k)
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.key}  {' | '.join(hit.captions[:3])}")
    if options.grid:
        source = open_source(index.about["source"])
        shown = [(search.thumbnail(source, h.row), f"{h.score:.2f} {h.captions[0] if h.captions else h.key}") for h in hits]
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        search.grid(str(query), shown).save(options.grid)
        print(f"grid: {options.grid}")
    if options.output:
        files.write_json(options.output, {"query": str(query), "hits": [vars(h) for h in hits]})
