"""One model on one benchmark: data, embeddings, task, leaks and doubts → a result and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from crossmodal import intervals, probe, registry
from crossmodal.data.corruptions import Corrupted
from crossmodal.data.sources import open_source
from crossmodal.data.sources.base import Source
from crossmodal.embed import Embeddings, data_fingerprint, encode
from crossmodal.errors import UserError, nearest
from crossmodal.evaluation import leaks, result
from crossmodal.evaluation.benchmark import KIND, Benchmark
from crossmodal.evaluation.store import Store
from crossmodal.evaluation.tasks.base import Answer, Case, Task, hits
from crossmodal.model import Model
from crossmodal.zeroshot.prompts import read_classes, read_ids, read_templates


@dataclass
class Settings:
    """How an evaluation goes, whatever the benchmark."""

    templates: Sequence[str] | None = None  # instead of the benchmark's
    descriptions: Mapping[str, Sequence[str]] | None = None
    corruption: str | None = None
    against: str | None = None  # the training data, to look for leaks
    data_root: str | None = None
    workers: int = 0
    search: dict = field(default_factory=dict)


@dataclass
class Evaluation:
    """What came out of one benchmark."""

    name: str
    said: dict  # the result, as it is written
    answer: Answer
    source: Source

    def write(self, path: Path) -> None:
        """The result as JSON, its answers beside it."""
        result.write(path, self.said, self.answer.rows)


def evaluate(store: Store, name: str, entry: Benchmark, settings: Settings, source: Source | None = None) -> Evaluation:
    """Score ``store``'s model on a benchmark, whose ``source`` may be open already. Under several processes all of them encode, and all
    get the evaluation.

    Errors: ``UserError`` for data that are not there or do not fit the task.
    """
    model = store.model
    spec = entry.located(settings.data_root)
    source = source or open_source(spec)
    task = build(entry.task, entry.options)
    view = Corrupted(model.eval_view(), settings.corruption) if settings.corruption else model.eval_view()
    ready, data = result.preprocessing(model, view), data_fingerprint(source)
    at = (source, data, view, ready["fingerprint"])
    case = Case(
        model,
        source,
        pictures=lambda: store.embeddings(*at),
        features=lambda: store.features(*at),
        **classes(entry),
        templates=read_templates(settings.templates or entry.templates or source.templates or model.templates),
        descriptions=settings.descriptions,
        chance=entry.chance,
        search=settings.search,
    )
    answer = task.answer(case)
    if entry.size and answer.pictures != entry.size:
        answer.warnings.append(f"{name} has {entry.size:,} pictures, and {answer.pictures:,} were scored")
    prints = {"model": store.fingerprint, "preprocessing": ready["fingerprint"], "prompts": result.digest(answer.prompts), "data": data}
    more = {"source": spec, "preprocessing": ready, "seen": entry.seen_by(model), "training": model.training_record}
    if settings.against:
        more["leaks"] = without_leaks(answer, source, settings.against, settings.workers)
    metric = entry.metric or (task.metric if task.metric in answer.metrics else next(iter(answer.metrics)))
    if metric not in answer.metrics:
        raise UserError(f"{name}: metric: the task {entry.task!r} has no figure {metric!r}; {nearest(metric, answer.metrics)}")
    return Evaluation(name, result.result(store.ref, name, entry.task, metric, answer, prints, **more), answer, source)


def track(model: Model, entry: Benchmark, workers: int = 0, source: Source | None = None) -> tuple[dict[str, float], Embeddings]:
    """(the figures worth following while a model trains, the embeddings they come from); the model changes, so nothing is stored."""
    source = source or open_source(entry.located(None))
    task = build(entry.task, entry.options)
    pictures = cache(lambda: encode(model, source, texts=task.reads_captions, workers=workers, title="evaluate"))
    features = lambda: probe.keyed_features(model.image, source, model.eval_view(), workers)
    templates = read_templates(entry.templates or source.templates or model.templates)
    answer = task.answer(Case(model, source, pictures, features, **classes(entry), templates=templates))
    return {k: v for k, v in answer.metrics.items() if k in answer.shares or k in task.tracked}, pictures()


def build(name: str, options: dict) -> Task:
    """A task by its file's name. Errors: ``UserError`` for an option that it does not have."""
    cls = registry.find(KIND, name, "Task")
    known = registry.options(cls)
    for key in options:
        if key not in known:
            raise UserError(f"the task {name!r} has no option {key!r}; {nearest(key, known)}")
    return cls(**options)


def classes(entry: Benchmark) -> dict[str, list | None]:
    """The benchmark's class names and WordNet ids, cut down to its ``subset`` of ids."""
    names = read_classes(entry.classes) if entry.classes else None
    ids = read_ids(entry.ids) if entry.ids else None
    if entry.subset:
        if not names or not ids:
            raise UserError("subset: goes with classes and their ids.")
        wanted = read_ids(entry.subset)
        place = {wordnet: n for n, wordnet in enumerate(ids)}
        if lost := [w for w in wanted if w not in place]:
            raise UserError(f"subset: {lost[0]} is none of the ids.")
        names, ids = [names[place[w]] for w in wanted], wanted
    return {"classes": names, "ids": ids}


def without_leaks(answer: Answer, test: Source, train: str, workers: int) -> dict:
    """What of the test data stands in the training data, and the figures without it."""
    found = leaks.duplicates(test, open_source(train), workers)
    leaked = {each.key for each in found}
    figures = {}
    for name, (way, k) in answer.shares.items():
        keys, right, asked = hits(answer.rows, way, k)
        clean = [key not in leaked for key in keys]
        if any(clean):
            low_high = intervals.share(right[clean], asked[clean])
            figures[name] = {"value": float(right[clean].sum() / asked[clean].sum()), "interval": list(low_high)}
    if found:
        answer.warnings.append(f"{len(found):,} of {answer.pictures:,} pictures stand in {train} too; 'leaks' has the figures without them")
    return {"train": train, "duplicates": [asdict(each) for each in found], "without": figures}
