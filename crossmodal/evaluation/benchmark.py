"""A benchmark is data: ``eval/benchmarks/NAME.yaml`` says where its pictures are, what is asked and how; a suite names several."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

import pydantic
import yaml

from crossmodal import registry, resources
from crossmodal.errors import UserError, nearest
from crossmodal.model import Model

KIND = "evaluation.tasks"


class Benchmark(pydantic.BaseModel):
    """What ``eval/benchmarks/NAME.yaml`` holds."""

    model_config = pydantic.ConfigDict(extra="forbid")
    source: str = pydantic.Field(description="A data source; {data} stands for the folder of data sets (--data-root).")
    task: str = pydantic.Field("classification", description="The file in evaluation/tasks that asks and scores.")
    options: dict = pydantic.Field(default_factory=dict, description="What the task takes, such as k for retrieval.")
    classes: str | list[str | list[str]] | None = pydantic.Field(
        None, description="Class names by number: a list, a file, open_clip:imagenet; null: as the data name them."
    )
    ids: str | list[str] | None = pydantic.Field(None, description="WordNet ids of the classes: a list, a file, timm:imagenet.")
    subset: str | list[str] | None = pydantic.Field(None, description="The ids of the classes that the benchmark keeps of them.")
    templates: list[str] | None = pydantic.Field(None, description="Prompts, files or named sets; null: the data's or the model's own.")
    metric: str | None = pydantic.Field(None, description="The figure to quote; null: the task's usual one.")
    size: int | None = pydantic.Field(None, description="How many pictures it has; others are warned of.")
    chance: float | None = pydantic.Field(None, description="What guessing scores on that metric.")
    about: str = ""
    licence: str = ""
    homepage: str = ""
    seen: dict[str, str] = pydantic.Field(
        default_factory=dict, description="Patterns of pretrained towers (as recipes name them) that have seen it, and what of it."
    )

    def seen_by(self, model: Model) -> list[str]:
        """For each pretrained half of a model that has seen this benchmark, a sentence that says so."""
        out = []
        for half in ("image", "text"):
            part = getattr(model.part, half)
            name = f"{part.tower} {part.pretrained}"
            if part.pretrained:
                out += [f"the {half} tower ({name}) has seen {what}" for like, what in self.seen.items() if fnmatch.fnmatchcase(name, like)]
        return out

    def located(self, root: str | None) -> str:
        """The source with {data} filled in."""
        return self.source.replace("{data}", root or os.environ.get("CROSSMODAL_DATA", "data"))


def find(name: str) -> Benchmark:
    """A packaged benchmark by name, or a YAML file. Errors: ``UserError``."""
    path = resources.resource("eval/benchmarks", name)
    said = _yaml(path)
    if not isinstance(said, dict):
        raise UserError(f"{path}: a benchmark is a mapping (source, task, classes …).")
    for key in said:
        if key not in Benchmark.model_fields:
            raise UserError(f"{path}: {key}: {nearest(str(key), Benchmark.model_fields)}")
    try:
        entry = Benchmark.model_validate(said)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}") from error
    known = registry.names(KIND)
    if "." not in entry.task and entry.task not in known:
        raise UserError(f"{path}: task: there is no task {entry.task!r}; {nearest(entry.task, known)}")
    return entry


def suite(name: str) -> list[str]:
    """The benchmarks of ``eval/suites/NAME.yaml`` (a list of names or files). Errors: ``UserError``."""
    path = resources.resource("eval/suites", name)
    said = _yaml(path)
    if not isinstance(said, list) or not all(isinstance(n, str) for n in said):
        raise UserError(f"{path}: a suite is a list of benchmarks' names.")
    return said


def _yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML: {str(error).splitlines()[0]}") from error
