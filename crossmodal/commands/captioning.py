"""Captions of pictures, and how good they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossmodal import files
from crossmodal.commands import common
from crossmodal.errors import UserError


def caption(options: argparse.Namespace) -> None:
    if bool(options.pictures) == bool(options.data):
        raise UserError("say what to caption: picture files, or --data SOURCE.")
    for file in options.pictures:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file.")
    scoring = {"--copy-from": options.copy_from, "--report": options.report}
    for name in [n for n, given in scoring.items() if given and not options.data]:
        raise UserError(f"{name} goes with --data SOURCE.")
    model = common.load(options.model, options.device)
    search = {n: getattr(options, n) for n in ("method", "beams", "top_p", "temperature", "max_length", "seed")}
    if options.pictures:
        for file in options.pictures:
            print(f"{file}\t{model.caption([file], **search)[0]}")
        return
    from crossmodal import captions, report
    from crossmodal.embed import encode

    source = common.open(options)
    rows, said, written, broken = captions.caption(model, source, options.workers, **search)
    common.speak_of_broken(broken)
    if options.report:
        report.write_captions(options.report, f"{options.data}, captioned by {options.model}", source, rows, said, written)
        print(f"report: {options.report}")
    figures, baseline = captions.score(said, written), None
    if options.copy_from:
        from crossmodal.data.sources import open_source

        others = open_source(options.copy_from)
        near = encode(model, others, texts=False, workers=options.workers, title="the pictures to copy from")
        kept = encode(model, source, texts=False, workers=options.workers)
        baseline = captions.score(captions.copied(kept, near, others), written)
    keyed = [{"row": row, "caption": text} for row, text in zip(rows, said, strict=True)]
    more = {"pictures": len(said), "search": search, "tokeniser": captions.TOKENISER, "baseline": baseline, "captions": keyed}
    if options.output:
        record = {"dataset": options.data, "model": options.model, "task": "image_captioning", "metrics": figures, "broken": broken, **more}
        files.write_json(options.output, record)
        print(f"figures: {options.output}")
    print(f"{len(said):,} pictures, {100 * figures['distinct']:.1f} % distinct captions; metrics on: {captions.TOKENISER}")
    for title, each in (("model", figures), ("copied from the nearest picture", baseline)):
        if each:
            told = (
                f"{name} {each[name]:.3f} ({each[f'{name} interval'][0]:.3f}–{each[f'{name} interval'][1]:.3f})"
                for name in ("CIDEr", "BLEU-4")
            )
            print(f"{title}: {', '.join(told)}")
