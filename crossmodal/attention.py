"""Attention over short sequences on CPUs, by the quicker of PyTorch's ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LONGEST = 100  # keys; at 128 both ways are as fast
_plain = False  # whether plain matrices are asked for just now


@contextmanager
def fitting(device: torch.device, keys: int) -> Iterator[None]:
    """Within, attention under bf16 autocast on a CPU over at most ``LONGEST`` keys multiplies plain matrices.

    PyTorch's tiled kernel for CPUs pads what it cannot tile: forward and backward in bf16 over 16 keys plain matrices are several times as
    fast, over 50 to 100 nearly twice (``eval/speed/attention.py``). In fp32 the tiled kernel stays.
    """
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    with plainly(_plain or (device.type == "cpu" and bf16 and 0 < keys <= LONGEST)):
        yield


def is_plain() -> bool:
    """Whether this is inside of ``fitting`` with a short sequence: what computes something again must do it the same way."""
    return _plain


@contextmanager
def plainly(plain: bool) -> Iterator[None]:
    """Within, attention multiplies plain matrices, if ``plain``."""
    global _plain
    if not plain or _plain:
        yield
        return
    _plain = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _plain = False
