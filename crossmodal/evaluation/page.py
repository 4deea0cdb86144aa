"""A result as one page: figures with intervals, the surest mistakes as pictures, confusions, calibration, every class, how it was got."""

from __future__ import annotations

from pathlib import Path

from crossmodal import files, pages
from crossmodal.evaluation.evaluator import Evaluation
from crossmodal.retrieval.search import thumbnail

MISTAKES = 18
CLASSES = 100  # bars shown at most: half of them the worst, half the best
PICTURE = 136  # pixels a side in the gallery
DOT = 16.0  # radius of the calibration's largest dot


def write(path: Path, evaluation: Evaluation) -> None:
    """Write the page of an evaluation."""
    said, answer = evaluation.said, evaluation.answer
    title, mistakes = _mistakes(evaluation)
    bars, note = _bars(answer.about.get("per_class", []))
    bins = answer.about.get("calibration", [])
    most = max((b["pictures"] for b in bins), default=1)
    page = pages.template("evaluation").render(
        said=said,
        figures=[(pages.name(k), *_figure(v, answer.intervals.get(k))) for k, v in answer.metrics.items()]
        + [(f"{pages.name(k)}, without leaks", *_figure(v["value"], v["interval"])) for k, v in _clean(said).items()],
        mistakes_title=title,
        mistakes=mistakes,
        confusions=[c for c in answer.about.get("confusions", []) if c["pictures"] > 1][:15],
        calibration=[b | {"r": max(2.0, DOT * (b["pictures"] / most) ** 0.5)} for b in bins],
        bars=bars,
        bars_note=note,
        facts=_facts(said),
    )
    files.write_text(path, page)


def _clean(said: dict) -> dict[str, dict]:
    """The figures without what leaked, where anything did."""
    leaks = said.get("leaks", {})
    return leaks["without"] if leaks.get("duplicates") else {}


def _figure(value: float, interval: tuple[float, float] | None) -> tuple[str, str, str]:
    share = interval is not None and max(interval) <= 1
    form = lambda x: f"{100 * x:.1f} %" if share else f"{x:.3f}"
    return form(value), *(map(form, interval) if interval else ("", ""))


def _mistakes(evaluation: Evaluation) -> tuple[str, list[dict]]:
    """Of a classification the wrong answers the model was surest of; of retrieval the captions whose picture came last."""
    rows = [r for r in evaluation.answer.rows if r["rank"] > 0 and "row" in r] if "rank" in (evaluation.answer.rows or [{}])[0] else []
    names = evaluation.answer.about.get("names")
    if names:
        worst = sorted(rows, key=lambda r: -r["confidence"])[:MISTAKES]
        tell = lambda r: {"said": f"{names[r['predicted']]}, {100 * r['confidence']:.0f}\u00a0%", "right": names[r["label"]]}
        title = "The surest mistakes"
    else:
        worst = sorted((r for r in rows if r.get("caption")), key=lambda r: -r["rank"])[:MISTAKES]
        tell = lambda r: {"said": "", "right": r["caption"], "note": f"the picture came in place {r['rank'] + 1:,}"}
        title = "Captions whose picture came last"
    return title, [{"picture": pages.inline(thumbnail(evaluation.source, r["row"], PICTURE)), **tell(r)} for r in worst]


def _bars(classes: list[dict]) -> tuple[list[tuple[str, float, int]], str]:
    """(name, share, pictures) of each class, the best first."""
    if all(c["pictures"] == 1 for c in classes):
        return [], ""  # right or wrong, a bar says no more
    figure = lambda c: c.get("recall", c.get("average_precision", 0.0))
    ordered = sorted(classes, key=lambda c: (-figure(c), c["class"]))
    note = ""
    if len(ordered) > CLASSES:
        note = f"The {CLASSES // 2} best and the {CLASSES // 2} worst of {len(ordered):,}; the result's JSON has all."
        ordered = ordered[: CLASSES // 2] + ordered[-CLASSES // 2 :]
    return [(c["class"], figure(c), c["pictures"]) for c in ordered], note


def _facts(said: dict) -> list[tuple[str, str]]:
    """What a reader must know to measure the same again."""
    templates = said.get("templates", [])
    found = [
        ("data", said["source"]),
        ("classes matched by", said.get("labels_by", "")),
        ("templates", "; ".join(templates[:8]) + (f" … ({len(templates)} in all)" if len(templates) > 8 else "")),
        ("descriptions", f"{said['descriptions']:,} sentences" if "descriptions" in said else ""),
        ("preprocessing", ", ".join(f"{k} {v}" for k, v in said["preprocessing"].items() if k != "fingerprint")),
        ("ties", said.get("ties", "")),
        ("left out", f"{len(said['broken'])} pictures that do not decode" if said["broken"] else ""),
        ("fingerprints", ", ".join(f"{k} {v}" for k, v in said["fingerprints"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in said["versions"].items())),
    ]
    return [(name, value) for name, value in found if value]
