"""What several commands do alike: load the model, open the data, speak of what was left out."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from crossmodal.errors import UserError

if TYPE_CHECKING:
    from crossmodal.model import Model


def load(ref: str, device: str | None) -> Model:
    """A model on the device that was asked for, or the best there is."""
    import torch

    from crossmodal import distributed
    from crossmodal.loading import load

    distributed.start()
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return load(ref, device or best)
    except (RuntimeError, AssertionError) as error:
        if device is None or isinstance(error, UserError):
            raise
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def open(options: argparse.Namespace):
    """The source of --data."""
    from crossmodal.data.sources import open_source

    if not options.data:
        raise UserError("say what data to use, with --data SOURCE.")
    return open_source(options.data)


def speak_of_broken(broken: list[tuple[str, str]]) -> None:
    """Say on stderr which pictures were left out, and why."""
    for key, why in broken[:5]:
        print(f"crossmodal: {key} was left out: {why}", file=sys.stderr)
    if len(broken) > 5:
        print(f"crossmodal: … and {len(broken) - 5} more pictures were left out", file=sys.stderr)
