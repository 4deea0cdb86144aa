"""Whether B really beats A: the same questions, answered by both, tested in pairs."""

from __future__ import annotations

import numpy as np

from crossmodal import intervals
from crossmodal.errors import UserError, nearest
from crossmodal.evaluation.tasks.base import hits

SAME = ("data", "prompts", "preprocessing")


def comparable(a: dict, b: dict, allowed: tuple[str, ...] = ()) -> None:
    """Refuse results that do not answer the same questions. ``allowed`` names fingerprints that may differ.

    Errors: ``UserError`` that says what differs.
    """
    if a["task"] != b["task"]:
        raise UserError(f"the tasks differ: {a['task']} and {b['task']}.")
    for what in SAME:
        mine, other = (r.get("fingerprints", {}).get(what) for r in (a, b))
        if mine != other and what not in allowed:
            raise UserError(
                f"the {what} differ ({_told(a, b, what) or f'{mine} and {other}'}), so the figures do not answer the same questions; "
                f"evaluate both alike{'' if what == 'data' else f', or say --allow {what}'}."
            )


def _told(a: dict, b: dict, what: str) -> str:
    """In what they differ, as far as the results say."""
    if what == "preprocessing":
        mine, other = (r.get(what, {}) for r in (a, b))
        keys = [k for k in {**mine, **other} if k != "fingerprint" and mine.get(k) != other.get(k)]
        return ", ".join(f"{k} {mine.get(k, 'none')} and {other.get(k, 'none')}" for k in keys)
    if what == "prompts":
        mine, other = (r.get("templates") or ["descriptions"] for r in (a, b))
        return f"{mine[0]!r} … and {other[0]!r} …" if mine != other else ""
    return ""


def compare(a: dict, b: dict, rows_a: list[dict], rows_b: list[dict], metrics: list[str] | None = None) -> list[dict]:
    """For each figure that is a share of questions: A's, B's, B − A with its 95 % interval and a two-sided p (``intervals.paired``).

    Errors: ``UserError`` for a figure that either lacks, or for answers about different pictures.
    """
    both = [name for name in a["shares"] if name in b["shares"]]
    for name in metrics or ():
        if name not in both:
            raise UserError(f"{name}: is no share of questions in both results; {nearest(name, both)}")
    found = []
    for name in metrics or both:
        way, k = a["shares"][name]
        keys, right_a, asked = hits(rows_a, way, k)
        others, right_b, asked_b = hits(rows_b, way, k)
        if keys != others or not np.array_equal(asked, asked_b):
            if sorted(keys) != sorted(others):
                raise UserError(f"{name}: the results are about different pictures ({len(keys):,} and {len(others):,}).")
            order = {key: n for n, key in enumerate(others)}
            place = [order[key] for key in keys]
            right_b, asked_b = right_b[place], asked_b[place]
            if not np.array_equal(asked, asked_b):
                raise UserError(f"{name}: the results ask different questions of a picture.")
        p, (low, high) = intervals.paired((right_b - right_a) / asked.sum())
        figures = {"a": right_a.sum() / asked.sum(), "b": right_b.sum() / asked.sum()}
        found.append({"metric": name, **figures, "difference": figures["b"] - figures["a"], "interval": [low, high], "p": p})
    return found
