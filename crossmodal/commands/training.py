"""Training, its report, and recipes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crossmodal import files, recipe, resources
from crossmodal.commands import common
from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.embed import Embeddings
    from crossmodal.model import Model


def train(options: argparse.Namespace) -> None:
    said = recipe.read(options.recipe, options.overrides)
    from crossmodal import distributed, report
    from crossmodal.data.sources import open_source
    from crossmodal.evaluation import benchmark, evaluator
    from crossmodal.training.loop import fit

    if options.resume and options.overwrite:
        raise UserError("--resume goes on with a run and --overwrite throws it away; give one of them.")
    source = open_source(said.data.val) if said.data.val else None
    last: dict = {}  # the last evaluation's embeddings serve the report's examples

    def evaluate(model: Model) -> dict[str, float]:
        figures, last["pictures"] = _figures(model, source, said) if source else ({}, None)
        for name in said.eval.benchmarks:
            entry = benchmark.find(name)
            scored, _ = evaluator.track(model, entry, said.data.workers)
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
    """What a validation source can be scored on: classes where it has them, else its captions. While a teacher trains beside the
    model, what its pictures' nearest neighbours say of their classes as well."""
    from crossmodal import probe
    from crossmodal.evaluation import benchmark, evaluator

    task, options = ("classification", {}) if source.classes else ("retrieval", {"collapsed": False})
    entry = benchmark.Benchmark(source=said.data.val, task=task, options=options, templates=said.eval.templates)
    figures, pictures = evaluator.track(model, entry, said.data.workers, source)
    for name, tower in model.teachers.items() if source.classes else ():
        figures[f"{name}_teacher_knn"] = probe.knn_left_out(*probe.features(tower, source, model.eval_view(), said.data.workers))
    return figures, pictures


def report(options: argparse.Namespace) -> None:
    from crossmodal import report

    run = options.run_folder
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: is no run folder (it has no recipe.yaml).")
    said = recipe.read(run / "recipe.yaml")
    shown = []
    if said.data.val and (run / "model").is_dir():
        from crossmodal.data.sources import open_source

        source, model = open_source(said.data.val), common.load(str(run), None)
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
