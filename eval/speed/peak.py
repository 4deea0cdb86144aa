"""The share of this machine's measured matmul peak that the training step of ViT-B/32 reaches.

    python eval/speed/peak.py [--batch 64] [--precision bf16|fp32] [--rounds 3]

The peak is the best rate of one large matrix product in the same precision, measured in the same process. What the step computes is
counted by PyTorch's FLOP counter on forward and backward. The last line is the share's median over the rounds, with least and greatest.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from rounds import run

CAPTION = "a brown dog runs through the green grass with a red ball"  # 15 tokens with start and end: what captions have on average


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP a second of the best of several products [4096, 1024] × [1024, 4096]."""
    a, b = torch.randn(4096, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    best = 0.0
    for _ in range(12):
        begun = time.perf_counter()
        a @ b
        best = max(best, 2 * 4096 * 1024 * 4096 / (time.perf_counter() - begun))
    return best


def measure(batch_size: int, precision: str) -> dict:
    from accelerate import Accelerator

    from crossmodal import recipe
    from crossmodal.allocator import keep_freed_memory
    from crossmodal.batch import Batch
    from crossmodal.training import gradcache, optim, task

    keep_freed_memory()
    tower = {"tower": "open_clip:ViT-B-32", "projection": "none"}
    said = recipe.check({"out": "unused", "model": {"embed_dim": 512, "image": tower, "text": tower}, "objectives": {"contrastive": {}}})
    accelerator = Accelerator(cpu=True, mixed_precision={"bf16": "bf16", "fp32": "no"}[precision])
    plain = task.build(said).train()
    wrapped, optimizer = accelerator.prepare(plain), accelerator.prepare(optim.build(plain, said.optim))
    rows = torch.arange(batch_size)
    pictures = torch.randint(0, 255, (batch_size, 3, 224, 224), dtype=torch.uint8)
    batch = Batch({"image": pictures}, {"text": plain.model.text.tokenize([CAPTION] * batch_size)}, rows, rows, seeds=rows)

    def step() -> float:
        begun = time.perf_counter()
        gradcache.backward(plain, wrapped, [batch], accelerator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begun

    with FlopCounterMode(display=False) as counter:
        step()
    seconds = min(step() for _ in range(2))
    peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    return {"share": counter.get_total_flops() / seconds / peak, "gflops": counter.get_total_flops() / seconds / 1e9, "peak": peak / 1e9}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.batch, options.precision)))
    else:
        shares = []
        for number in range(options.rounds):
            told = run(__file__, "ours", f"--batch={options.batch}", f"--precision={options.precision}")
            shares.append(told["share"])
            print(f"round {number + 1}: {told['gflops']:.0f} of {told['peak']:.0f} GFLOP a second", flush=True)
        print(f"ratio {statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})")
