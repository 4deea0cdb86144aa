"""What the commands do: one function each, which takes the parsed options and puts the pieces together.

Knows no objective, tower or format by name. Heavy imports stand inside, so that ``crossmodal --help`` is quick.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crossmodal import files, recipe, resources
from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.embed import Embeddings
    from crossmodal.model import Model


def train(options: argparse.Namespace) -> None:
    said = recipe.read(options.recipe, options.overrides)
    from crossmodal import distributed, report
    from crossmodal.data.sources import open_source
    from crossmodal.training.loop import fit

    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run and --overwrite throws it away; give one of them.")
    source = open_source(said.data.val) if said.data.val else None
    last: dict = {}  # the last evaluation's embeddings serve the report's examples

    def evaluate(model: Model) -> dict[str, float]:
        figures, last["pictures"] = _figures(model, source, said) if source else ({}, None)
        for name in said.eval.benchmarks:
            from crossmodal.zeroshot import benchmark

            entry = benchmark.find(name)
            scored = _class_figures(model, open_source(entry.source), entry.templates, said.data.workers)[0]
            figures |= {f"{Path(name).stem}/{k}": v for k, v in scored.items()}
        last["model"] = model
        return figures

    has_evaluation = source is not None or said.eval.benchmarks
    out = fit(said, evaluate=evaluate if has_evaluation else None, resume=options.resume, overwrite=options.overwrite)
    if distributed.is_main():
        shown = report.examples(last["model"], source, last["pictures"]) if source else []
        page = report.write(out, shown)
        print(f"model: {out / 'model'}\nreport: {page}")
    distributed.barrier()


def _figures(model: Model, source, said: recipe.Recipe) -> tuple[dict[str, float], Embeddings]:
    """What a validation source can be scored on: classes where it has them, else its captions."""
    from crossmodal.embed import encode
    from crossmodal.retrieval.recall import recall

    if source.classes:
        return _class_figures(model, source, said.eval.templates, said.data.workers)
    pairs = encode(model, source, workers=said.data.workers, title="evaluate")
    return recall(pairs), pairs


def _class_figures(model: Model, source, templates, workers: int) -> tuple[dict[str, float], Embeddings]:
    """Zero-shot figures and, while a teacher trains beside the model, what its pictures' nearest neighbours say of their classes."""
    from crossmodal import probe
    from crossmodal.zeroshot.benchmark import score_source

    figures, pictures = score_source(model, source, templates, workers)
    for name, tower in model.teachers.items():
        figures[f"{name}_teacher_knn"] = probe.knn_left_out(*probe.features(tower, source, model.eval_view(), workers))
    return figures, pictures


def _load(ref: str, device: str | None) -> Model:
    import torch

    from crossmodal.loading import load

    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return load(ref, device or best)
    except (RuntimeError, AssertionError) as error:
        if device is None or isinstance(error, UserError):
            raise
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def _open(options: argparse.Namespace):
    from crossmodal.data.sources import open_source

    if not options.data:
        raise UserError("say what data to use, with --data SOURCE.")
    return open_source(options.data)


def _write_figures(options: argparse.Namespace, task: str, data: str, metrics: dict[str, float], **more) -> None:
    if options.output:
        files.write_json(options.output, {"dataset": data, "model": options.model, "task": task, "metrics": metrics, **more})
        print(f"figures: {options.output}")


def _speak_of_broken(broken: list[tuple[str, str]]) -> None:
    for key, why in broken[:5]:
        print(f"crossmodal: {key} was left out: {why}", file=sys.stderr)
    if len(broken) > 5:
        print(f"crossmodal: … and {len(broken) - 5} more pictures were left out", file=sys.stderr)


def zeroshot(options: argparse.Namespace) -> None:
    from crossmodal.data.sources import open_source
    from crossmodal.zeroshot import benchmark
    from crossmodal.zeroshot.prompts import read_templates

    templates = read_templates(options.templates) if options.templates else None
    data = options.data
    if options.benchmark:
        if data:
            raise UserError("--benchmark names its own data; give it or --data, not both.")
        entry = benchmark.find(options.benchmark)
        data, templates = entry.source, templates or entry.templates
        source = open_source(data)
    else:
        source = _open(options)
    model = _load(options.model, options.device)
    figures, pictures = benchmark.score_source(model, source, templates, options.workers)
    _speak_of_broken(pictures.broken)
    more = {
        "pictures": len(pictures),
        "classes": len(source.classes),
        "templates": list(templates or model.templates),
        "broken": pictures.broken,
    }
    _write_figures(options, "zeroshot_classification", data, figures, **more)
    seconds = model.training_record.get("seconds")
    trained = f", {seconds:.0f} s of training" if seconds is not None else ""
    print(f"mean per-class recall {figures['mean_per_class_recall']:.1%} over {len(pictures):,} pictures".replace("%", " %"))
    print(f"zero-shot top-1 {100 * figures['acc1']:.1f} % top-5 {100 * figures['acc5']:.1f} % ({len(source.classes):,} classes{trained})")


def retrieve(options: argparse.Namespace) -> None:
    from crossmodal.embed import encode
    from crossmodal.retrieval.recall import recall

    if min(options.k) < 1:
        raise UserError("-k takes numbers from 1 on.")
    source = _open(options)
    model = _load(options.model, options.device)
    pairs = encode(model, source, workers=options.workers)
    _speak_of_broken(pairs.broken)
    figures = recall(pairs, options.k)
    _write_figures(
        options, "zeroshot_retrieval", options.data, figures, pictures=len(pairs), captions=len(pairs.captions), broken=pairs.broken
    )
    title = f"{len(pairs):,} pictures, {len(pairs.captions):,} captions"
    print(title + "".join(f"{f'R@{k}':>9}" for k in options.k))
    for way, name in (("text→image", "image_retrieval_recall"), ("image→text", "text_retrieval_recall")):
        print(f"{way:<{len(title)}}" + "".join(f"{100 * figures[f'{name}@{k}']:7.1f} %" for k in options.k))


def caption(options: argparse.Namespace) -> None:
    if bool(options.pictures) == bool(options.data):
        raise UserError("say what to caption: picture files, or --data SOURCE.")
    for file in options.pictures:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file.")
    scoring = {"--copy-from": options.copy_from, "--report": options.report}
    for name in [n for n, given in scoring.items() if given and not options.data]:
        raise UserError(f"{name} goes with --data SOURCE.")
    model = _load(options.model, options.device)
    search = {n: getattr(options, n) for n in ("method", "beams", "top_p", "temperature", "max_length", "seed")}
    if options.pictures:
        for file in options.pictures:
            print(f"{file}\t{model.caption([file], **search)[0]}")
        return
    from crossmodal import captions, report
    from crossmodal.embed import encode

    source = _open(options)
    rows, said, written, broken = captions.caption(model, source, options.workers, **search)
    _speak_of_broken(broken)
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
    _write_figures(options, "image_captioning", options.data, figures, broken=broken, **more)
    print(f"{len(said):,} pictures, {100 * figures['distinct']:.1f} % distinct captions; metrics on: {captions.TOKENISER}")
    for title, each in (("model", figures), ("copied from the nearest picture", baseline)):
        if each:
            told = (
                f"{name} {each[name]:.3f} ({each[f'{name} interval'][0]:.3f}–{each[f'{name} interval'][1]:.3f})"
                for name in ("CIDEr", "BLEU-4")
            )
            print(f"{title}: {', '.join(told)}")


def embed(options: argparse.Namespace) -> None:
    from crossmodal import embed

    source = _open(options)
    model = _load(options.model, options.device)
    embed.write(model, options.model, source, options.data, options.out, workers=options.workers)
    pairs, about = embed.read(options.out)
    _speak_of_broken(about["broken"])
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
    model = _load(options.model or index.about["model"], options.device)
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


def report(options: argparse.Namespace) -> None:
    from crossmodal import report

    run = options.run_folder
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: is no run folder (it has no recipe.yaml).")
    said = recipe.read(run / "recipe.yaml")
    shown = []
    if said.data.val and (run / "model").is_dir():
        from crossmodal.data.sources import open_source

        source, model = open_source(said.data.val), _load(str(run), None)
        shown = report.examples(model, source, _figures(model, source, said)[1])
    print(f"report: {report.write(run, shown)}")


def recipes_list(options: argparse.Namespace) -> None:
    for name in resources.listed("recipes"):
        first = resources.resource("recipes", name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<14} {first.lstrip('# ')}")


def recipes_show(options: argparse.Namespace) -> None:
    if options.overrides:
        recipe.read(options.recipe, options.overrides)
    print(resources.resource("recipes", options.recipe).read_text(encoding="utf-8"), end="")


def recipes_validate(options: argparse.Namespace) -> None:
    said = recipe.read(options.recipe, options.overrides)
    print(f"{options.recipe}: a valid recipe ({' + '.join(said.objectives)}, {said.train.steps:,} steps of {said.data.batch_size:,} pairs)")
    if not said.data.train:
        print("data.train is not set yet; say what to train on, such as data.train=my.csv")


def recipes_copy(options: argparse.Namespace) -> None:
    if options.to.exists():
        raise UserError(f"{options.to}: exists already; choose another name.")
    files.write_text(options.to, resources.resource("recipes", options.recipe).read_text(encoding="utf-8"))
    print(f"{options.to}: train it with crossmodal train {options.to}")
