"""SIGTERM, as clusters send it before they take a machine away: finish the step, write a checkpoint, exit
with 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from crossmodal import distributed
from crossmodal.batch import Batch

STATUS = 128 + signal.SIGTERM


class Asked(Exception):
    """SIGTERM while waiting for data."""


class Stop:
    """Listens for SIGTERM while it is entered: a step is done whole, a wait for data is broken off, and anything else ends at once."""

    def __init__(self):
        self.asked, self.doing = False, "anything"

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self.before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "before"):
            signal.signal(signal.SIGTERM, self.before)

    def _hear(self, *_: object) -> None:
        self.asked = True
        if self.doing == "waiting":
            raise Asked
        if self.doing == "anything":
            raise SystemExit(STATUS)

    @contextmanager
    def _while(self, doing: str) -> Iterator[None]:
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before

    def whole(self) -> AbstractContextManager[None]:
        """Within, a signal only takes note: a step and its checkpoint are done whole."""
        return self._while("a step")

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, and no more of them once a signal has come in waiting for one.

        One of several processes only takes note, and stops with the others after the step: they wait for it there.
        """
        waiting = "waiting" if distributed.world_size() == 1 else "a step"
        batches = iter(loader)
        while True:
            try:
                with self._while(waiting):
                    batch = next(batches, None)
            except Asked:
                return
            if batch is None:
                return
            yield batch

    def everywhere(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: then all of them do, after the same step."""
        if distributed.world_size() == 1:
            return self.asked
        return bool(distributed.all_sum(torch.tensor([float(self.asked)], device=device)).item())
