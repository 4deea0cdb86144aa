"""Attention over short sequences in bf16 on a CPU: plain matrices against PyTorch's tiled kernel, forward and backward.

    python eval/speed/attention.py [--keys 16 37 50 65 100 128] [--rows 64] [--heads 12] [--rounds 5]

For each length the line ends with the ratio of speeds, plain over tiled: median, least and greatest of the rounds.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def seconds(backend: SDPBackend, rows: int, heads: int, keys: int) -> float:
    """Of one forward and backward, width 64 a head."""
    q, k, v = (torch.randn(rows, keys, heads, 64, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
    begun = time.perf_counter()
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - begun


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[16, 37, 50, 65, 100, 128])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for keys in options.keys:
        ways = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
        rounds = [[seconds(way, options.rows, options.heads, keys) for way in ways] for _ in range(options.rounds + 1)][1:]
        ratios = [tiled / plain for plain, tiled in rounds]
        print(f"{keys} keys: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)
