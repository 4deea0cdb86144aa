"""One real training step and one zero-shot scoring for each family of image towers, and what it weighs.

    python eval/towers/table.py [--write docs/towers.md] [--data emoji:twemoji] [--only NAME …]

Each family of ``families.yaml`` goes the whole road: its recipe is read, trained for a step on 8 pictures with its captions, saved, loaded
and scored zero-shot on 16. Pictures a second is that of the tower alone, encoding 16 at a time in fp32, the best of three, on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import yaml

FAMILIES = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text(encoding="utf-8"))
RECIPE = """\
model:
  embed_dim: 64
  image: {image}
  text: {{tower: open_clip:ViT-B-32, context_length: 16, kwargs: {{layers: 1, width: 64, heads: 1}}}}
objectives: {{contrastive: {{}}}}
data: {{train: "{data}", image_size: {size}, batch_size: 8, workers: 0}}
train: {{steps: 1, precision: fp32, checkpoint_every: 0, trackers: []}}
"""
START, END = "<!-- table: written by eval/towers/table.py -->", "<!-- end of the table -->"


def measure(name: str, data: str, folder: Path) -> dict:
    """The family's figures: parameters (millions), tokens, loss of the step, accuracy of the scoring, pictures a second."""
    import torch

    from crossmodal import fit, load, read
    from crossmodal.cli import main

    family = FAMILIES[name]
    image = {key: family[key] for key in ("tower", "pretrained", "kwargs") if key in family}
    file, scores = folder / "family.yaml", folder / "scores.json"
    file.write_text(RECIPE.format(image=json.dumps(image), data=data, size=family.get("size", 224)), encoding="utf-8")
    out = fit(read(file, [f"out={folder / 'run'}"]))
    step = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    if main(["zeroshot", str(out), "--data", f"{data}{'&' if '?' in data else '?'}limit=16", "--output", str(scores)]):
        raise SystemExit(f"{name}: could not be scored")
    tower = load(out).image
    pictures = torch.zeros(16, 3, tower.image_size, tower.image_size, dtype=torch.uint8)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            begun = time.perf_counter()
            fields = tower(pictures)
            times.append(time.perf_counter() - begun)
    return {
        "parameters": sum(p.numel() for p in tower.parameters()) / 1e6,
        "size": tower.image_size,
        "tokens": fields["tokens"].shape[1],
        "width": tower.width,
        "loss": step["contrastive"],
        "gradient_norm": step["gradient_norm"],
        "acc1": json.loads(scores.read_text())["metrics"]["acc1"],
        "pictures_per_second": 16 / min(times),
    }


def table(measured: dict[str, dict]) -> str:
    """Markdown, a family a row."""
    lines = ["| family | recipe: `model.image` | parameters | side | tokens | width | pictures a second |", "|---|---|---|---|---|---|---|"]
    for name, m in measured.items():
        family = FAMILIES[name]
        said = [f"tower: {family['tower']}", *(f"{k}: {json.dumps(family[k])}" for k in ("pretrained", "kwargs") if k in family)]
        about = f"{name} ({family['paper']}{'; cut: ' + family['cut'] if 'cut' in family else ''})"
        figures = (f"{m['parameters']:.1f} M", m["size"], m["tokens"], m["width"], f"{m['pictures_per_second']:.0f}")
        lines.append(f"| {about} | `{{{', '.join(said)}}}` | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    parser.add_argument("--data", default="emoji:twemoji")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    options = parser.parse_args()
    measured = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CROSSMODAL_CACHE"] = folder
            measured[name] = measure(name, options.data, Path(folder))
        print(f"{name}: {json.dumps({k: round(v, 3) for k, v in measured[name].items()})}", flush=True)
    if options.write:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{START}\n{table(measured)}\n{END}{after}", encoding="utf-8")
