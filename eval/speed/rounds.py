"""What the speed comparisons share: two programs take turns, each in a process of its own, and the ratio is printed.

The last line reads ``ratio 1.72 (1.65–1.80)``: ours over theirs, the median of the rounds with the least and the
greatest; more is better.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence


def run(file: str, *arguments: object) -> dict | None:
    """A script's last line, as JSON; None where it did not come to one (killed for want of memory, say)."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, file, *map(str, arguments)], env=clean, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def compare(
    file: str,
    arguments: Sequence[object],
    rounds: int,
    figure: str,
    unit: str,
    sides: tuple[str, str] = ("ours", "theirs"),
    check: Callable[[dict], str] | None = None,
) -> list[dict]:
    """Run ``FILE SIDE ARGUMENTS…`` for both sides, ``rounds`` times; more of ``figure`` is better. Returns the rounds.
    ``check`` says of the first whether both did the same."""
    ratios, told = [], []
    for number in range(rounds):
        both = [run(file, side, *arguments) for side in sides]
        if None in both:
            raise SystemExit(f"{sides[both.index(None)]} did not finish: see above")
        ratios.append(both[0][figure] / both[1][figure])
        told.append(dict(zip(sides, both, strict=True)))
        print(f"round {number + 1}: {both[0][figure]:.4g} against {both[1][figure]:.4g} {unit}", flush=True)
    if check:
        print(check(told[0]))
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)
    return told
