"""The contract of a task: from a model and the embeddings of a benchmark's data to figures, intervals and every single answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from crossmodal import intervals
from crossmodal.data.sources.base import Source
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.zeroshot.classifier import ZeroShotClassifier


@dataclass
class Case:
    """What a task may look at."""

    model: Model
    source: Source
    pictures: Callable[[], Embeddings]  # of the source, encoded once
    features: Callable[[], tuple[Tensor, list[str], list]]  # pooled features [N, W], keys, labels: the image tower without its projection
    classes: list[tuple[str, ...]] | None = None  # names by number; None: the source's own
    ids: list[str] | None = None  # their WordNet ids
    templates: Sequence[str] | None = None
    descriptions: Mapping[str, Sequence[str]] | None = None
    chance: float | None = None  # what guessing scores, where the benchmark says so
    search: dict = field(default_factory=dict)  # how captions are searched for


@dataclass
class Answer:
    """What came out.

    ``rows`` has one entry for every question: ``way`` (what kind of question), ``key`` (the picture it belongs to), ``rank`` (how many
    answers the model put before the right one; 0 is a hit), and whatever else the task knows. ``shares`` says which figures are
    shares of questions: {figure: (way, k)}, the questions of that way with a rank under k.
    """

    metrics: dict[str, float]
    intervals: dict[str, intervals.Interval] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    shares: dict[str, tuple[str, int]] = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    pictures: int = 0


def classifier(case: Case) -> ZeroShotClassifier:
    """The benchmark's classes, or the data's own, as a classifier. Errors: ``UserError`` where neither names any."""
    found = case.classes or case.source.classes
    if not found:
        raise UserError("this source has no classes (a folder for each class has; a tar of labels takes ?classes=names.txt).")
    return ZeroShotClassifier(case.model, found, case.templates, case.descriptions)


class Task:
    """A way to examine a model. Options come from the benchmark's ``options``, as keyword-only arguments of the constructor."""

    #: The figure to quote.
    metric = "acc1"
    #: Whether it looks at captions' embeddings.
    reads_captions = False
    #: Figures worth following during training, beside the shares of questions.
    tracked: tuple[str, ...] = ()

    def answer(self, case: Case) -> Answer:
        raise NotImplementedError


def hits(rows: list[dict], way: str, k: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(P pictures' keys, [P] their questions of that way with a rank under k, [P] all their questions of that way)."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["way"] == way:
            each = found.setdefault(row["key"], [0, 0])
            each[0] += row["rank"] < k
            each[1] += 1
    table = np.array(list(found.values()), float).reshape(-1, 2)
    return list(found), table[:, 0], table[:, 1]


def shared(answer: Answer) -> Answer:
    """The same answer, with figure and interval of each of its ``shares`` filled in from its rows."""
    for name, (way, k) in answer.shares.items():
        _, right, asked = hits(answer.rows, way, k)
        if len(right):
            answer.metrics[name] = float(right.sum() / asked.sum())
            answer.intervals[name] = intervals.share(right, asked)
    return answer
