"""The door: ``crossmodal train | zeroshot | retrieve | embed | index | search | report | recipes``.

Puts the pieces together and knows no objective, tower or format by name. A user's mistake is one
sentence on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crossmodal import __version__, files, recipe, resources
from crossmodal.allocator import keep_freed_memory
from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.embed import Embeddings
    from crossmodal.model import Model


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status (0 well, 2 a user's mistake, 130 interrupted)."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest  # argparse takes no KEY=VALUE after an option
    keep_freed_memory()
    try:
        options.run(options)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every process finds the same mistake; one speaks
            print(f"crossmodal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; --resume goes on from the newest checkpoint (train.checkpoint_every says how often one is written)"
        print(f"crossmodal: interrupted{hint if options.run is _train else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing more to say
        return 141
    except OSError as error:
        if not error.filename:  # not of a file: ours to mend, so with its traceback
            raise
        print(f"crossmodal: {error.filename}: {(error.strerror or str(error)).lower()}.", file=sys.stderr)
        return 2
    finally:
        _leave()
    return 0


def _leave() -> None:
    """Take the process group down in good order, where torch was imported at all."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crossmodal", description="Train paired image and text encoders, and put them to use.")
    parser.add_argument("--version", action="version", version=f"crossmodal {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, about: str, parent=commands) -> argparse.ArgumentParser:
        added = parent.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    def uses_model(added: argparse.ArgumentParser) -> None:
        added.add_argument("model", metavar="MODEL", help="a run folder, a checkpoint, open_clip:NAME/TAG or hf:ID")
        added.add_argument("--data", metavar="SOURCE", help="pairs.csv, folder:DIR, shards.tar, wds:{0..9}.tar, emoji:openmoji …")
        added.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="loader processes")
        added.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best there is)")

    train = command("train", _train, "Train as a recipe says: a YAML file, or the name of a packaged recipe.")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name from: crossmodal recipes list")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.train=my.csv optim.lr=1e-3")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder")
    train.add_argument("--overwrite", action="store_true", help="throw an existing run folder away first")

    zeroshot = command("zeroshot", _zeroshot, "Score zero-shot classification on a source with classes.")
    uses_model(zeroshot)
    zeroshot.add_argument("--benchmark", metavar="NAME", help="a packaged benchmark or a YAML file, instead of --data")
    zeroshot.add_argument("--templates", nargs="+", metavar="T", help="prompts with {}, or a file of them (default: the model's own)")
    zeroshot.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON")

    retrieve = command("retrieve", _retrieve, "Score retrieval on pairs: recall@k both ways, with every caption.")
    uses_model(retrieve)
    retrieve.add_argument("-k", type=int, nargs="+", default=[1, 5, 10], metavar="K", help="default: 1 5 10")
    retrieve.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures as JSON")

    embed = command("embed", _embed, "Encode a source's pictures and captions into a folder; goes on where it broke off.")
    uses_model(embed)
    embed.add_argument("-o", "--out", type=Path, required=True, metavar="EMB", help="the folder to write")

    index = command("index", None, "Build a searchable index.").add_subparsers(required=True, metavar="COMMAND")
    build = command("build", _index_build, "Index the pictures of an embeddings folder.", index)
    build.add_argument("embeddings", type=Path, metavar="EMB", help="a folder that crossmodal embed wrote")
    build.add_argument("-o", "--out", type=Path, required=True, metavar="IDX", help="the folder to write")
    build.add_argument(
        "--kind", default="Flat", metavar="FACTORY", help="faiss factory string: Flat is exact (default), HNSW32, IVF1024,Flat …"
    )

    search = command("search", _search, "Find pictures by words, or by a picture with --image.")
    search.add_argument("index", type=Path, metavar="IDX", help="a folder that crossmodal index build wrote")
    search.add_argument("text", nargs="?", metavar="TEXT", help="what to look for")
    search.add_argument("--image", type=Path, metavar="FILE", help="look for pictures like this one")
    search.add_argument("-k", type=int, default=10, metavar="K", help="how many (default 10)")
    search.add_argument("--grid", type=Path, metavar="OUT.png", help="write the hits as one picture")
    search.add_argument("--model", metavar="MODEL", help="default: the one the index was built with")
    search.add_argument("--device", default=None)
    search.add_argument("--output", type=Path, metavar="FILE.json", help="write the hits as JSON")

    report = command("report", _report, "Write a run folder's report.html anew.")
    report.add_argument("run_folder", type=Path, metavar="RUN")

    recipes = command("recipes", None, "Look at recipes, copy one, check one.").add_subparsers(required=True, metavar="COMMAND")
    command("list", _recipes_list, "The packaged recipes, with their first line.", recipes)
    for name, run, about in (
        ("show", _recipes_show, "Print a recipe as it is written."),
        ("validate", _recipes_validate, "Check a recipe, overrides included."),
    ):
        added = command(name, run, about, recipes)
        added.add_argument("recipe", metavar="RECIPE")
        added.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    copy = command("copy", _recipes_copy, "Copy a packaged recipe, to change it.", recipes)
    copy.add_argument("recipe", metavar="RECIPE")
    copy.add_argument("to", type=Path, metavar="FILE.yaml")
    command("schema", lambda o: print(recipe.dump_schema()), "Print the recipes' JSON Schema, for editors.", recipes)
    return parser


def _train(options: argparse.Namespace) -> None:
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
            from crossmodal.zeroshot.benchmark import score_named

            figures |= {f"{Path(name).stem}/{k}": v for k, v in score_named(model, name, said.data.workers).items()}
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
    from crossmodal.zeroshot.benchmark import score_source

    if source.classes:
        return score_source(model, source, said.eval.templates, said.data.workers)
    pairs = encode(model, source, workers=said.data.workers, title="evaluate")
    return recall(pairs), pairs


def _load(ref: str, device: str | None) -> Model:
    import torch

    from crossmodal.model import load

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


def _zeroshot(options: argparse.Namespace) -> None:
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


def _retrieve(options: argparse.Namespace) -> None:
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


def _embed(options: argparse.Namespace) -> None:
    from crossmodal import embed

    source = _open(options)
    model = _load(options.model, options.device)
    embed.write(model, options.model, source, options.data, options.out, workers=options.workers)
    pairs, about = embed.read(options.out)
    _speak_of_broken(about["broken"])
    print(f"embeddings: {options.out} ({len(pairs):,} pictures, {len(pairs.captions):,} captions, width {pairs.image.shape[1]})")


def _index_build(options: argparse.Namespace) -> None:
    from crossmodal import embed
    from crossmodal.retrieval.index import Index

    pictures, about = embed.read(options.embeddings)
    kept = {k: about[k] for k in ("model", "source", "fingerprint")}
    Index.build(pictures, kept, options.kind).save(options.out)
    print(f"index: {options.out} ({len(pictures):,} pictures, {options.kind})")


def _search(options: argparse.Namespace) -> None:
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


def _report(options: argparse.Namespace) -> None:
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


def _recipes_list(options: argparse.Namespace) -> None:
    for name in resources.listed("recipes"):
        first = resources.resource("recipes", name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<14} {first.lstrip('# ')}")


def _recipes_show(options: argparse.Namespace) -> None:
    if options.overrides:
        recipe.read(options.recipe, options.overrides)
    print(resources.resource("recipes", options.recipe).read_text(encoding="utf-8"), end="")


def _recipes_validate(options: argparse.Namespace) -> None:
    said = recipe.read(options.recipe, options.overrides)
    print(f"{options.recipe}: a valid recipe ({' + '.join(said.objectives)}, {said.train.steps:,} steps of {said.data.batch_size:,} pairs)")
    if not said.data.train:
        print("data.train is not set yet; say what to train on, such as data.train=my.csv")


def _recipes_copy(options: argparse.Namespace) -> None:
    if options.to.exists():
        raise UserError(f"{options.to}: exists already; choose another name.")
    files.write_text(options.to, resources.resource("recipes", options.recipe).read_text(encoding="utf-8"))
    print(f"{options.to}: train it with crossmodal train {options.to}")
