"""Keeping freed memory for the next layer: on CPUs nearly half of a convolutional tower's time.

glibc gives large blocks back to the system when they are freed and asks for them anew a moment later;
the kernel then clears every page again. Activations are such blocks. Told to keep them, EfficientNet-Lite0
at 128 pixels encodes twice as many pictures a second on two cores (``eval/speed/allocator.py``), for
up to a sixth more memory.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; returns whether it was told.

    Does nothing elsewhere than on Linux with glibc, and where the user has set MALLOC_… variables.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
