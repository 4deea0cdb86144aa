"""SIGTERM, as clusters send it before they take a machine away: finish the step, write a checkpoint, exit with 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crossmodal import distributed

STATUS = 128 + signal.SIGTERM


class Stop:
    """Listens for SIGTERM while it is entered. Outside of ``whole`` a signal ends the process at once."""

    def __init__(self):
        self.asked = self.held = False

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self.before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "before"):
            signal.signal(signal.SIGTERM, self.before)

    def _hear(self, *_: object) -> None:
        self.asked = True
        if not self.held:
            raise SystemExit(STATUS)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, a signal only takes note: a step and its checkpoint are done whole."""
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def everywhere(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: then all of them do, after the same step."""
        if distributed.world_size() == 1:
            return self.asked
        return bool(distributed.all_sum(torch.tensor([float(self.asked)], device=device)).item())
