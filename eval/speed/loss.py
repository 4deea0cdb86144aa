"""InfoNCE in tiles against open_clip's ``ClipLoss``: seconds for forward and backward, and peak memory.

    python eval/speed/loss.py [--pairs 8192 16384 32768] [--width 512] [--rounds 3]

Memory is what a process's peak grows by over the inputs and their gradients. For each number of pairs the last line is
the ratio of speeds, ours over theirs; where open_clip's four matrices do not fit into what is free, only ours runs.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from rounds import compare, run


def measure(side: str, pairs: int, width: int) -> dict:
    if side == "ours":
        from crossmodal.allocator import keep_freed_memory
        from crossmodal.objectives.contrastive import Contrastive

        keep_freed_memory()
        objective = Contrastive(duplicates="negative")
        loss_of = lambda x, y, t: objective.batch_terms({"image": x, "text": y}, {"logit_scale": t})["contrastive"]
    else:
        from open_clip.loss import ClipLoss

        clip = ClipLoss()
        loss_of = lambda x, y, t: clip(x, y, t.exp())

    def step(n: int) -> tuple[float, float]:
        torch.manual_seed(0)
        x, y = (F.normalize(torch.randn(n, width), dim=1).requires_grad_() for _ in range(2))
        t = torch.full((1,), 2.66, requires_grad=True)
        for leaf in (x, y):
            leaf.grad = torch.zeros_like(leaf)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        loss_of(x, y, t).backward()
        return time.perf_counter() - begun, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    step(512)
    seconds, memory = step(pairs)
    return {"pairs_per_second": pairs / seconds, "seconds": seconds, "MiB": memory}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side[0], options.pairs[0], options.width)))
    for pairs in [] if options.side else options.pairs:
        passed = [f"--pairs={pairs}", f"--width={options.width}"]
        print(f"{pairs:,} pairs of width {options.width}")
        if psutil.virtual_memory().available < 1.1 * 4 * 4 * pairs**2:
            alone = run(__file__, "ours", *passed)
            print(f"ours {alone['seconds']:.1f} s, {alone['MiB']:.0f} MiB; theirs would need more memory than is free", flush=True)
            continue
        told = compare(__file__, passed, options.rounds, "pairs_per_second", "pairs a second")
        for side in ("ours", "theirs"):
            print(f"{side}: {min(t[side]['seconds'] for t in told):.2f} s, {max(t[side]['MiB'] for t in told):.0f} MiB", flush=True)
