"""A benchmark is data: a source with classes, templates and a metric; scoring one."""

from __future__ import annotations

from collections.abc import Sequence

import pydantic
import torch
import yaml

from crossmodal import resources
from crossmodal.data.sources.base import Source
from crossmodal.embed import Embeddings, encode
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.zeroshot.classifier import ZeroShotClassifier
from crossmodal.zeroshot.metrics import classification, ranks


class Benchmark(pydantic.BaseModel):
    """What ``eval/benchmarks/NAME.yaml`` holds."""

    model_config = pydantic.ConfigDict(extra="forbid")
    source: str
    templates: list[str] | None = None
    about: str = ""
    licence: str = ""


def find(name: str) -> Benchmark:
    """A packaged benchmark by name, or a YAML file. Errors: ``UserError``."""
    path = resources.resource("eval/benchmarks", name)
    try:
        return Benchmark.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: not a benchmark (source, templates, about, licence): {str(error).splitlines()[0]}") from error


def score_source(
    model: Model, source: Source, templates: Sequence[str] | None = None, workers: int = 0
) -> tuple[dict[str, float], Embeddings]:
    """(acc1, acc5, mean_per_class_recall; the embeddings they come from) of a source with classes.

    Errors: ``UserError`` when the source has none, or a label is outside them.
    """
    if not source.classes:
        raise UserError("this source has no classes (a folder for each class has; a tar of labels takes ?classes=names.txt).")
    pictures = encode(model, source, texts=False, workers=workers, title="zero-shot")
    return score(ZeroShotClassifier(model, source.classes, templates), pictures), pictures


def score(classifier: ZeroShotClassifier, pictures: Embeddings, block: int = 4096) -> dict[str, float]:
    """The figures of a classifier on embedded pictures, computed in blocks."""
    count = len(classifier.names)
    for key, label in zip(pictures.keys, pictures.labels, strict=True):
        if label is None or not 0 <= label < count:
            raise UserError(f"{key}: its label is {label}, but there are {count} classes, 0 to {count - 1}.")
    labels = torch.tensor(pictures.labels)
    rank = torch.cat([ranks(classifier.scores(x), y) for x, y in zip(pictures.image.split(block), labels.split(block), strict=True)])
    return classification(rank, labels, count)
