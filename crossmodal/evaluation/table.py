"""Many results as one table, stable from run to run: Markdown to read, CSV to reckon with."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from crossmodal.errors import UserError
from crossmodal.evaluation import result

FIXED = ("dataset", "model", "pretrained", "task")
ABOUT = ("corruption", "prompts", "file")  # what may differ where those are the same


def gather(paths: list[Path]) -> list[dict]:
    """The results in files and folders (``*.json`` in them that are results), sorted by data set, model and task."""
    found = []
    for path in paths:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            try:
                found.append(result.read(file) | {"file": str(file)})
            except UserError:
                if not path.is_dir():
                    raise
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no results of an evaluation there.")
    return sorted(found, key=lambda r: [str(r.get(k, "")) for k in FIXED])


def _about(r: dict) -> dict[str, str]:
    """What was done to the pictures, and by which prompts."""
    prints = r.get("fingerprints", {})
    return {"corruption": r.get("preprocessing", {}).get("corruption", ""), "prompts": prints.get("prompts", ""), "file": r.get("file", "")}


def to_csv(results: list[dict]) -> str:
    """A line a figure: data set, model, pretrained, task, metric, value, low, high, pictures, corruption, prompts, file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIXED, "metric", "value", "low", "high", "pictures", *ABOUT])
    for r in results:
        for metric, value in sorted(r["metrics"].items()):
            low, high = r.get("intervals", {}).get(metric, ("", ""))
            number = [f"{x:.6f}" if isinstance(x, float) else x for x in (value, low, high)]
            writer.writerow([*(r.get(k, "") for k in FIXED), metric, *number, r.get("pictures", ""), *_about(r).values()])
    return out.getvalue()


def to_markdown(results: list[dict]) -> str:
    """A line a data set and task, a column a model, each with the figure to quote in % and its 95 % interval."""
    name = lambda r: "/".join(x for x in (r["model"], r.get("pretrained")) if x)
    quoted = lambda r: r.get("metric") or next(iter(r["metrics"]))
    models = sorted({name(r) for r in results})
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for r in results:
        value, interval = r["metrics"][quoted(r)], r.get("intervals", {}).get(quoted(r))
        unit = 100 if interval is None or max(interval) <= 1 else 1
        sure = f" ({unit * interval[0]:.1f}–{unit * interval[1]:.1f})" if interval else ""
        mark = " ⚠" if r.get("warnings") or r.get("seen") else ""
        about, row = _about(r), r["dataset"]
        row += f" ({about['corruption']})" if about["corruption"] else ""
        if name(r) in lines.get((row, quoted(r)), {}):  # the same model again: other prompts, or another run
            row += f" [{about['file'] or about['prompts']}]"
        lines.setdefault((row, quoted(r)), {})[name(r)] = f"{unit * value:.1f}{sure}{mark}"
    rows = [["data", "figure", *models], ["---"] * (2 + len(models))]
    rows += [[dataset, metric, *(cells.get(m, "") for m in models)] for (dataset, metric), cells in lines.items()]
    legend = (
        "\n⚠: the result has a warning, or a tower that has seen the data.\n" if any("⚠" in cell for row in rows for cell in row) else ""
    )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + legend
