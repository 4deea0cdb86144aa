"""A run as one page: curves, figures, recipe, and retrieval examples as pictures. No network needed to read it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from crossmodal import files, pages
from crossmodal.data.sources.base import Source
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.retrieval.search import thumbnail

WIDTH, HEIGHT = 460, 200  # of a curve's drawing, in CSS pixels


@dataclass
class Example:
    """A text that asked, its right picture, and what came first."""

    query: str
    right: Image.Image
    place: int  # of the right picture, from 1
    hits: list[tuple[Image.Image, float, bool]] = field(default_factory=list)  # (picture, score, is it the right one)


def examples(model: Model, source: Source, pictures: Embeddings, count: int = 6, shown: int = 5) -> list[Example]:
    """Half that went right and half that went wrong, drawn evenly over the data, of a source with captions."""
    if pictures.captions:
        texts, owner = pictures.captions, pictures.owner
        vectors = pictures.text
    elif source.classes:
        label = [y for y in pictures.labels if y is not None]
        texts, owner = [source.classes[y][0] for y in label], torch.arange(len(label))
        vectors = model.encode_text([model.templates[0].replace("{}", t) for t in texts])
    else:
        return []
    picked = torch.linspace(0, len(texts) - 1, min(len(texts), 40 * count)).long().unique()
    scores = vectors[picked] @ pictures.image.T  # [Q, N]
    own = scores.gather(1, owner[picked][:, None])
    place = (scores > own).sum(1) + 1  # [Q]
    same = torch.tensor(
        [
            [pictures.labels[i] == pictures.labels[j] if pictures.labels[j] is not None else i == j for i in row]
            for row, j in zip(scores.topk(min(shown, scores.shape[1])).indices.tolist(), owner[picked].tolist(), strict=True)
        ]
    )
    good, bad = same[:, 0].nonzero()[:, 0], (~same[:, 0]).nonzero()[:, 0]
    out = []
    for which in (good, bad):
        for q in which[torch.linspace(0, len(which) - 1, min(len(which), count // 2)).long()].tolist() if len(which) else []:
            top = scores[q].topk(min(shown, scores.shape[1]))
            hits = [
                (thumbnail(source, pictures.rows[i], 96), s, bool(same[q, n]))
                for n, (i, s) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            ]
            target = int(owner[picked[q]])
            out.append(Example(texts[int(picked[q])], thumbnail(source, pictures.rows[target], 96), int(place[q]), hits))
    return out


def write(out: Path, shown: list[Example] | None = None) -> Path:
    """Write ``report.html`` into a run folder. Errors: ``UserError`` when it is none."""
    if not (out / "metrics.jsonl").is_file():
        raise UserError(f"{out}: is no run folder (it has no metrics.jsonl).")
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evals = [json.loads(line) for line in (out / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    broken = out / "broken.jsonl"
    page = pages.template("report").render(
        width=WIDTH,
        height=HEIGHT,
        title=out.name,
        steps=steps[-1]["step"] if steps else 0,
        seconds=steps[-1]["seconds"] if steps else 0,
        rate=sorted(s["pairs_per_second"] for s in steps)[len(steps) // 2] if steps else 0,
        figures=[(pages.name(k), v) for k, v in evals[-1].items() if k != "step"] if evals else [],
        curves=_curves(steps, evals),
        recipe=(out / "recipe.yaml").read_text(encoding="utf-8"),
        examples=[
            {"query": e.query, "right": pages.inline(e.right), "place": e.place, "hits": [(pages.inline(p), s, ok) for p, s, ok in e.hits]}
            for e in shown or []
        ],
        broken=broken.read_text(encoding="utf-8").splitlines() if broken.is_file() else [],
    )
    files.write_text(out / "report.html", page)
    return out / "report.html"


def _curves(steps: list[dict], evals: list[dict]) -> list[dict]:
    """One drawing for each figure that is tracked over steps: {name, path, low, high, first, last}."""
    leave = {"step", "seconds", "data_wait"}
    drawn = []
    for lines in (evals, steps):
        for key in dict.fromkeys(k for line in lines for k in line if k not in leave):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if len(points) > 1 and not (key != "loss" and all(line.get("loss") == line.get(key) for line in lines)):
                drawn.append({"name": pages.name(key), **_path(points)})
    return drawn


def _path(points: list[tuple[float, float]]) -> dict:
    (x0, _), (x1, _) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    every = max(1, len(points) // 500)
    kept = [*points[::every], points[-1]]
    place = lambda x, y: (
        (x - x0) / max(x1 - x0, 1e-9) * WIDTH,
        HEIGHT - (y - low) / max(high - low, 1e-12) * HEIGHT,
    )
    path = "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in (place(x, y) for x, y in kept))
    return {"path": path, "low": f"{low:.4g}", "high": f"{high:.4g}", "first": f"{x0:g}", "last": f"{x1:g}", "end": f"{points[-1][1]:.4g}"}


def write_captions(
    file: Path, title: str, source: Source, rows: list[int], said: list[str], written: list[list[str]], count: int = 20
) -> None:
    """A page of ``count`` pictures, drawn evenly over a source's ``rows``, with what was said of them and what people wrote."""
    places = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long().tolist()
    shown = [(pages.inline(thumbnail(source, rows[n], 192)), said[n], written[n]) for n in places]
    files.write_text(file, pages.template("captions").render(title=title, shown=shown))
