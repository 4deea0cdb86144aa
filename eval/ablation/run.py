"""What does each objective buy? Trains recipes that differ in their objectives alone, and writes a table and a plot.

    python eval/ablation/run.py --train flickr8k-train.tar --val flickr8k-val.tar --labelled cifar100.tar [RECIPE …] [--seeds 0 1 2]

A cell is one recipe with one seed: trained, then scored on the validation pairs (recall@k both ways) and, by k-NN and a
linear probe of the image tower, on the labelled pictures (half of each class to fit, half to score). A finished cell stands
in ``cells/RECIPE-SEED.json`` and is not run again; a broken-off one goes on from its checkpoint. ``--report`` writes table
and plot from the cells there are. ``KEY=VALUE`` goes to every recipe.

What a step costs is measured apart, into ``cells/pace.json``, all recipes in one go (``--pace`` does it anew), so that other work on the
machine while a cell was trained does not count; seconds are steps × that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from crossmodal import files

HERE = Path(__file__).parent
RECIPES = ["clip_small", "siglip_small", "slip_small", "coca_small", "mae_clip_small", "dino_clip_small"]
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # two-sided 95 %, by number of seeds
RECALLS = {
    f"{way}@{k}": f"{short} R@{k}"
    for way, short in (("image_retrieval_recall", "t→i"), ("text_retrieval_recall", "i→t"))
    for k in (1, 5, 10)
}
PACED, ROUNDS = 14, 2  # steps that a recipe's pace is measured on, and how often
PROBES = {"knn": "k-NN", "linear_probe": "linear"}


def train(recipe: str, seed: int, options: argparse.Namespace) -> Path:
    """Train a cell, as a user would; returns its run folder."""
    out = options.runs / f"{recipe}-{seed}"
    command = [sys.executable, "-m", "crossmodal", "train", recipe, f"data.train={options.train}", f"data.val={options.val}"]
    command += [f"seed={seed}", f"out={out}", f"eval.every={options.evaluate_every}", "train.trackers=[]", *options.overrides]
    if out.exists():
        command.append("--resume" if any(out.glob("checkpoints/step-*")) else "--overwrite")
    subprocess.run(command, check=True)
    return out


def score(out: Path, options: argparse.Namespace) -> dict:
    """A finished run's figures: the last evaluation, all of them over time, the probes, and what training cost."""
    from crossmodal import load, open_source, probe

    evals = [json.loads(line) for line in (out / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    model = load(out)
    x, labels = probe.features(model.image, open_source(options.labelled), model.eval_view())
    fit, rest = probe.halves(labels)
    sides = (x[fit], labels[fit], x[rest], labels[rest])
    return {
        "figures": {k: evals[-1][k] for k in RECALLS} | {"knn": probe.knn(*sides), "linear_probe": probe.linear(*sides)},
        "curve": [{"step": e["step"], **{k: e[k] for k in RECALLS}} for e in evals],
    }


def pace(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{recipe: seconds of a step, pairs a second}: the median of a few steps, recipe after recipe, ``ROUNDS`` times over."""
    found: dict[str, list[float]] = {recipe: [] for recipe in options.recipes}
    sizes = {}
    for recipe in options.recipes * ROUNDS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, "-m", "crossmodal", "train", recipe, f"data.train={options.train}", f"out={out}", *options.overrides]
            short = [f"train.steps={PACED}", "optim.warmup=0", "train.checkpoint_every=0", "train.trackers=[]"]
            subprocess.run([*command, *short], check=True, stdout=subprocess.DEVNULL)
            steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            sizes[recipe] = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))["data"]["batch_size"]
        found[recipe] += [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(steps[2:])]
    step = {recipe: statistics.median(each) for recipe, each in found.items()}
    return {Path(r).stem: {"step": s, "pairs_per_second": sizes[r] / s} for r, s in step.items()}


def interval(values: list[float], unit: float = 100) -> str:
    """Mean ± half the 95 % t interval over seeds."""
    mean = unit * statistics.mean(values)
    return f"{mean:.1f}" + (
        f" ± {unit * STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    )


def at_step(cell: dict, step: float, figure: str) -> float:
    """A figure on the way, after so many steps: between two evaluations, on the line between them."""
    points = [(0.0, 0.0), *((p["step"], p[figure]) for p in cell["curve"])]
    for (t0, y0), (t1, y1) in itertools.pairwise(points):
        if t0 <= step <= t1:
            return y0 + (y1 - y0) * (step - t0) / (t1 - t0)
    return points[-1][1]


def report(options: argparse.Namespace) -> None:
    cells: dict[str, list[dict]] = {}
    for recipe in options.recipes:
        found = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(options.cells.glob(f"{recipe}-*.json"))]
        if found:
            cells[recipe] = found
    if not cells:
        raise SystemExit(f"no finished cell in {options.cells}")
    measured = files.read_json(options.cells / "pace.json")
    seconds = {recipe: measured[Path(recipe).stem]["step"] * each[0]["curve"][-1]["step"] for recipe, each in cells.items()}
    quickest = min(seconds.values())
    both = lambda cell, value: statistics.mean(value(cell, k) for k in ("image_retrieval_recall@10", "text_retrieval_recall@10"))
    head = ["recipe", "seeds", *RECALLS.values(), *PROBES.values(), "seconds", "pairs/s", f"R@10 after {quickest:.0f} s"]
    rows = []
    for recipe, each in cells.items():
        figures = [interval([c["figures"][k] for c in each]) for k in (*RECALLS, *PROBES)]
        own = measured[Path(recipe).stem]
        early = [both(c, lambda cell, k, own=own: at_step(cell, quickest / own["step"], k)) for c in each]
        cost = [f"{seconds[recipe]:.0f}", f"{own['pairs_per_second']:.0f}"]
        rows.append([recipe, str(len(each)), *figures, *cost, interval(early)])
    if options.floor:
        name, *values = options.floor
        rows.append([name, "", *values, *[""] * (len(head) - 2 - len(values))])
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    files.write_text(options.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(cells, {recipe: measured[Path(recipe).stem]["step"] for recipe in cells}, options.out / "plot.svg")


def draw(cells: dict[str, list[dict]], step: dict[str, float], file: Path) -> None:
    """Final figures with their intervals, and one of them over the time of training."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    shown = (("image_retrieval_recall@10", "text→image R@10, %"), ("linear_probe", "linear probe, %"))
    for axis, (key, title) in zip(axes, shown, strict=False):
        for place, each in enumerate(cells.values()):
            values = [100 * c["figures"][key] for c in each]
            half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
            axis.errorbar([statistics.mean(values)], [place], xerr=[half], fmt="o", capsize=4, color=f"C{place}")
        axis.set_yticks(range(len(cells)), list(cells))
        axis.invert_yaxis()
        axis.set_title(title)
    for place, (recipe, each) in enumerate(cells.items()):
        times = [step[recipe] * point["step"] for point in each[0]["curve"]]
        recall = [statistics.mean(100 * c["curve"][n]["image_retrieval_recall@10"] for c in each) for n in range(len(times))]
        axes[2].plot(times, recall, "o-", color=f"C{place}", label=recipe)
    axes[2].set_xlabel("seconds of training")
    axes[2].set_title("text→image R@10 on the way, %")
    axes[2].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=[], metavar="RECIPE", help=f"default: {' '.join(RECIPES)}; KEY=VALUE goes to all")
    parser.add_argument("--train", help="image–text pairs to train on")
    parser.add_argument("--val", help="pairs to retrieve from")
    parser.add_argument("--labelled", help="pictures with labels, for the probes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluate-every", type=int, default=80, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=HERE, help="where table.md, plot.svg and cells/ stand")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--floor", nargs="+", metavar="NAME VALUE", help="a last row for comparison, in the order of the recall columns")
    parser.add_argument("--pace", action="store_true", help="measure anew what a step costs")
    parser.add_argument("--report", action="store_true", help="train nothing: table and plot of the cells there are")
    options = parser.parse_args()
    options.overrides = [r for r in options.recipes if "=" in r]
    options.recipes = [r for r in options.recipes if "=" not in r] or RECIPES
    options.cells = options.out / "cells"
    if not options.report:
        if not (options.train and options.val and options.labelled):
            parser.error("say what to use: --train, --val and --labelled")
        for seed in options.seeds:  # all recipes with one seed before the next: an early stop leaves a fair table
            for recipe in options.recipes:
                cell = options.cells / f"{Path(recipe).stem}-{seed}.json"
                if not cell.is_file():
                    files.write_json(cell, {"recipe": recipe, "seed": seed, **score(train(recipe, seed, options), options)})
        if options.pace or not (options.cells / "pace.json").is_file():
            files.write_json(options.cells / "pace.json", pace(options))
    report(options)
