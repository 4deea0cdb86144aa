"""A result: figures with their intervals, and all that one must know to compare them with another's; beside it every single answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

import crossmodal
from crossmodal import files
from crossmodal.data.views import EvalView
from crossmodal.errors import UserError
from crossmodal.evaluation.tasks.base import Answer
from crossmodal.model import Model


def versions() -> dict[str, str]:
    """Of this program and of the libraries that figures depend on."""
    import open_clip
    import torch
    import torchvision
    import transformers

    libraries = {m.__name__: m.__version__ for m in (torch, torchvision, transformers, open_clip)}
    return {"crossmodal": crossmodal.__version__, **libraries}


def digest(*parts: object) -> str:
    """16 hex digits that name a value."""
    return hashlib.blake2b(json.dumps(parts, ensure_ascii=False, default=str).encode(), digest_size=8).hexdigest()


def preprocessing(model: Model, view: EvalView) -> dict[str, object]:
    """How pictures were made ready, and its fingerprint."""
    said = {"image_size": model.image_size, "resize": model.image.resize, "mean": model.image.mean, "std": model.image.std}
    said = {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()} | getattr(view, "about", {})
    return said | {"fingerprint": digest(said)}


def result(model_ref: str, dataset: str, task: str, metric: str, answer: Answer, fingerprints: dict[str, str], **more) -> dict:
    """What is written as JSON: CLIP_benchmark's keys (dataset, model, pretrained, task, metrics, language), then ours."""
    name, _, pretrained = model_ref.removeprefix("open_clip:").partition("/") if model_ref.startswith("open_clip:") else (model_ref, "", "")
    return {
        "dataset": dataset,
        "model": name,
        "pretrained": pretrained,
        "task": f"zeroshot_{task}" if task in ("classification", "retrieval") else task,
        "metrics": answer.metrics,
        "language": "en",
        "intervals": {k: list(v) for k, v in answer.intervals.items()},
        "metric": metric,
        "pictures": answer.pictures,
        "fingerprints": fingerprints,
        "shares": {k: list(v) for k, v in answer.shares.items()},
        "warnings": answer.warnings,
        **more,
        **answer.about,
        "broken": answer.broken,
        "versions": versions(),
    }


def predictions_beside(path: Path) -> Path:
    """Where the answers of the result at ``path`` stand: its name with the ending .parquet."""
    return path.with_suffix(".parquet")


def write(path: Path, said: dict, rows: list[dict]) -> None:
    """A result as JSON at ``path``, and its answers beside it as parquet; the JSON last, so that it never stands alone."""
    table = pyarrow.Table.from_pylist(rows, schema=_schema(rows)) if rows else None
    if table:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        files.write_bytes(predictions_beside(path), sink.getvalue().to_pybytes())
    files.write_json(path, said)


def _schema(rows: list[dict]) -> pyarrow.Schema:
    """All columns of all rows; pyarrow by itself takes those of the first."""
    names = {name: value for row in reversed(rows) for name, value in row.items() if value is not None}
    return pyarrow.schema([(name, pyarrow.scalar(value).type) for name, value in names.items()])


def read(path: str | Path) -> dict:
    """A result from its JSON file. Errors: ``UserError`` for a file that is none."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}).") from error
    if not isinstance(said, dict) or not {"dataset", "model", "task", "metrics"} <= said.keys():
        raise UserError(f"{path}: is no result of an evaluation (dataset, model, task, metrics).")
    return said


def read_rows(path: str | Path) -> list[dict]:
    """A result's answers, from the parquet file beside it. Errors: ``UserError`` where there is none."""
    file = predictions_beside(Path(path))
    if not file.is_file():
        raise UserError(f"{file}: no such file; the answers stand beside the result, and comparing needs them.")
    return pyarrow.parquet.read_table(file).to_pylist()
