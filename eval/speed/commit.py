"""The contrastive training step of the working tree against that of an earlier commit: what has a change cost those who do not use it?

    python eval/speed/commit.py COMMIT [--data SOURCE] [--batch 64] [--precision bf16|fp32] [--steps 4] [--rounds 5]

ViT-B/32 as in ``step.py``, both trees on the same weights and batches in turn. The last line is pairs a second, now over before.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rounds import run
from step import NAME

ROOT = Path(__file__).parent.parent.parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--data", default="emoji:twemoji")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        tree, weights = Path(folder) / "tree", Path(folder) / "weights.pt"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, options.commit], check=True)
        try:
            torch.save(open_clip.create_model(NAME).state_dict(), weights)
            passed = [f"--{k}={getattr(options, k)}" for k in ("data", "batch", "precision", "steps")]
            ratios = []
            for number in range(options.rounds):
                speed = {}
                for place in (ROOT, tree) if number % 2 else (tree, ROOT):
                    os.environ["PYTHONPATH"] = str(place)
                    speed[place] = run(str(ROOT / "eval" / "speed" / "step.py"), "ours", weights, *passed)["pairs_per_second"]
                ratios.append(speed[ROOT] / speed[tree])
                print(f"round {number + 1}: {speed[ROOT]:.4g} against {speed[tree]:.4g} pairs a second", flush=True)
            print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
