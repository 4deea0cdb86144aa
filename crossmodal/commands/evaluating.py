"""Zero-shot classification, retrieval and every other benchmark; results compared and gathered; templates ranked."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crossmodal import files
from crossmodal.commands import common
from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.evaluation.benchmark import Benchmark
    from crossmodal.evaluation.evaluator import Evaluation


def zeroshot(options: argparse.Namespace) -> None:
    from crossmodal.evaluation import benchmark

    named = [*options.benchmark, *(name for suite in options.suite for name in benchmark.suite(suite))]
    if options.data and named:
        raise UserError("a benchmark names its own data; give --benchmark or --suite, or --data, not both.")
    if options.classes and named:
        raise UserError("a benchmark names its own classes; --classes goes with --data.")
    if not options.data and not named:
        raise UserError("say what data to use: --data SOURCE, --benchmark NAME or --suite NAME.")
    stems = [Path(name).stem for name in named]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise UserError(f"two benchmarks are called {twice[0]!r}; give their files different names.")
    entries = {stem: benchmark.find(name) for stem, name in zip(stems, named, strict=True)}
    if options.data:
        entries = {options.data: benchmark.Benchmark(source=options.data, task=options.task, classes=options.classes)}
    for evaluation in _evaluate(options, entries):
        _tell(evaluation)


def retrieve(options: argparse.Namespace) -> None:
    from crossmodal.evaluation import benchmark

    if not options.data:
        raise UserError("say what data to use, with --data SOURCE.")
    if min(options.k) < 1:
        raise UserError("-k takes numbers from 1 on.")
    entry = benchmark.Benchmark(
        source=options.data, task="retrieval", options={"k": options.k}, metric=f"image_retrieval_recall@{options.k[0]}"
    )
    for evaluation in _evaluate(options, {options.data: entry}):
        _tell(evaluation)


def _evaluate(options: argparse.Namespace, entries: dict[str, Benchmark]) -> list[Evaluation]:
    """Every benchmark in turn, each written as soon as it is done; in a suite, one whose data are not there is passed over."""
    from crossmodal import distributed
    from crossmodal.data.sources import open_source
    from crossmodal.evaluation import page
    from crossmodal.evaluation.evaluator import Settings, evaluate
    from crossmodal.evaluation.given import GivenStore
    from crossmodal.evaluation.store import Store
    from crossmodal.zeroshot.prompts import read_descriptions, read_templates

    several = len(entries) > 1
    settings = Settings(
        templates=read_templates(options.templates) if getattr(options, "templates", None) else None,
        descriptions=read_descriptions(options.descriptions) if getattr(options, "descriptions", None) else None,
        corruption=options.corrupt,
        against=options.against,
        data_root=getattr(options, "data_root", None),
        workers=options.workers,
    )
    if settings.against:
        open_source(settings.against)  # a mistake in it should not wait for the embeddings
    alone = None if several else open_source(next(iter(entries.values())).located(settings.data_root))
    for target in (options.output, options.report):
        if several and target and target.suffix:
            raise UserError(f"{target}: several benchmarks are written into a folder; give one, without an ending.")
    if options.model.startswith("embeddings:"):
        store = GivenStore(options.model, Path(options.model.partition(":")[2]).expanduser())
    else:
        store = Store(common.load(options.model, options.device), options.model, options.store, options.overwrite, options.workers)
    done = []
    for name, entry in entries.items():
        try:
            done.append(evaluate(store, name, entry, settings, alone))
        except UserError as error:
            if not several:
                raise
            if distributed.is_main():
                print(f"crossmodal: {name} was passed over: {error}", file=sys.stderr)
            continue
        if not distributed.is_main():
            continue
        common.speak_of_broken(done[-1].answer.broken)
        for target, write in ((options.output, done[-1].write), (options.report, lambda path, e=done[-1]: page.write(path, e))):
            if target:
                suffix = ".html" if target is options.report else ".json"
                path = target / f"{_file_name(name)}{suffix}" if several or target.is_dir() or not target.suffix else target
                write(path)
                print(f"{'report' if suffix == '.html' else 'figures'}: {path}")
    if not done:
        raise UserError("none of the benchmarks could be scored.")
    return done if distributed.is_main() else []


def _file_name(name: str) -> str:
    """A benchmark's name, or a source's spec, as a file may be called."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _tell(evaluation: Evaluation) -> None:
    """A result in a few lines: figures with their intervals, the warnings before them."""
    from crossmodal import pages

    said, answer = evaluation.said, evaluation.answer
    for warning in [*answer.warnings, *said["seen"]]:
        print(f"crossmodal: {evaluation.name}: {warning}", file=sys.stderr)
    captions = f", {answer.about['captions']:,} captions" if "captions" in answer.about else ""
    print(f"{evaluation.name}: {answer.pictures:,} pictures{captions}")
    for key, value in answer.metrics.items():
        name, (low, high) = pages.name(key), answer.intervals.get(key, (None, None))
        if low is None:
            print(f"  {name:<50}{value:9.3f}")
        elif high <= 1:
            print(f"  {name:<50}{100 * value:7.1f} %  ({100 * low:.1f}–{100 * high:.1f})")
        else:
            print(f"  {name:<50}{value:9.3f}  ({low:.3f}–{high:.3f})")
    clean = said.get("leaks", {}).get("without", {})
    for key, each in clean.items():
        low, high = each["interval"]
        print(f"  {pages.name(key) + ' without leaks':<50}{100 * each['value']:7.1f} %  ({100 * low:.1f}–{100 * high:.1f})")
    if "acc5" in answer.metrics:
        seconds = said["training"].get("seconds")
        trained = f", {seconds:.0f} s of training" if seconds is not None else ""
        top = [100 * answer.metrics[k] for k in ("acc1", "acc5")]
        print(f"zero-shot top-1 {top[0]:.1f} % top-5 {top[1]:.1f} % ({answer.about['classes']:,} classes{trained})")


def compare(options: argparse.Namespace) -> None:
    from crossmodal.evaluation import compare, result

    a, b = (result.read(path) for path in (options.a, options.b))
    compare.comparable(a, b, tuple(options.allow))
    found = compare.compare(a, b, result.read_rows(options.a), result.read_rows(options.b), options.metric)
    overruled = f", although {' and '.join(options.allow)} may differ" if options.allow else ""
    print(f"A: {a['model']} ({options.a})\nB: {b['model']} ({options.b})\n{a['dataset']}, {a['pictures']:,} pictures{overruled}\n")
    print(f"{'figure':<36}{'A':>8}{'B':>8}{'B − A':>8}  95 % interval      p")
    for each in found:
        low, high = each["interval"]
        numbers = "".join(f"{100 * each[k]:8.2f}" for k in ("a", "b", "difference"))
        print(f"{each['metric']:<36}{numbers}  {100 * low:+6.2f} to {100 * high:+6.2f}  {each['p']:.4f}")
    if options.output:
        files.write_json(options.output, {"a": str(options.a), "b": str(options.b), "allowed": options.allow, "figures": found})
        print(f"figures: {options.output}")


def results_table(options: argparse.Namespace) -> None:
    from crossmodal.evaluation import table

    text = (table.to_csv if options.csv else table.to_markdown)(table.gather(options.paths))
    if options.output:
        files.write_text(options.output, text)
        print(f"table: {options.output}")
    else:
        print(text, end="")


def templates_search(options: argparse.Namespace) -> None:
    from crossmodal.zeroshot.prompts import read_templates
    from crossmodal.zeroshot.templates import rank

    templates = read_templates(options.templates)
    source = common.open(options)
    found = rank(common.load(options.model, options.device), source, templates, options.most, options.workers)
    print(f"{'top-1':>8}  template")
    for template, accuracy in found.alone:
        print(f"{100 * accuracy:6.1f} %  {template}")
    print(f"\n{100 * found.together:6.1f} %  these {len(found.chosen)} together, chosen one by one:")
    print("\n".join(f"          {template}" for template in found.chosen))
    if options.output:
        files.write_text(options.output, "".join(f"{template}\n" for template in found.chosen))
        print(f"templates: {options.output}")
