"""Pictures of the test data that stand in the training data as well: resized, re-encoded or mirrored.

A picture becomes a thumbnail without mean and contrast, so that the cosine of two is their correlation. Coarse thumbnails find
candidates among all pairs, in blocks of one matrix product; fine ones confirm them, on what is left when the coarse picture is taken away.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from torch import Tensor
from tqdm import tqdm

from crossmodal import distributed
from crossmodal.data.loader import evaluation_batches
from crossmodal.data.sources.base import Source
from crossmodal.data.views import EvalView

COARSE, FINE = 8, 32  # pixels a side
LIKE = 0.93  # correlation of coarse thumbnails that makes a candidate
SAME = 0.75  # of fine ones, without what the coarse ones show, that confirms it


@dataclass
class Duplicate:
    """A test picture and its like in the training data."""

    key: str
    train_key: str
    likeness: float  # correlation of the fine thumbnails, at most 1
    mirrored: bool


class Thumbnail(EvalView):
    """The whole picture, squashed to ``FINE`` pixels a side."""

    def __init__(self) -> None:
        super().__init__(FINE, "squash")

    def __call__(self, picture: Tensor) -> Tensor:
        return T.resize(picture, [FINE, FINE], T.InterpolationMode.BILINEAR, antialias=True)


def thumbnails(source: Source, workers: int = 0, title: str = "thumbnails") -> tuple[list[str], Tensor]:
    """(keys, uint8 [N, 3, FINE, FINE]) of the pictures that decode."""
    keys, found = [], [torch.empty(0, 3, FINE, FINE, dtype=torch.uint8)]
    quiet = not (distributed.is_main() and sys.stderr.isatty())
    with tqdm(total=len(source), unit="picture", desc=title, disable=quiet, leave=False) as bar:
        for items in evaluation_batches(source, Thumbnail(), range(len(source)), 256, workers):
            whole = [(picture, sample.key) for _, picture, sample, _ in items if picture is not None]
            if whole:
                found.append(torch.stack([picture for picture, _ in whole]))
                keys += [key for _, key in whole]
            bar.update(len(items))
    return keys, torch.cat(found)


def duplicates(test: Source, train: Source, workers: int = 0, block: int = 2048) -> list[Duplicate]:
    """The test pictures that ``train`` holds too, each with the training picture most like it."""
    test_keys, a = thumbnails(test, workers, "thumbnails of the test data")
    train_keys, b = thumbnails(train, workers, "thumbnails of the training data")
    best: dict[int, Duplicate] = {}
    for mirrored in (False, True):
        mine = a.flip(-1) if mirrored else a
        for start in range(0, len(b), block):
            others = b[start : start + block]
            coarse = _coarse(others).T
            for at in range(0, len(mine), block):
                close = (_coarse(mine[at : at + block]) @ coarse > LIKE).nonzero()
                if not len(close):
                    continue
                likeness = (_fine(mine[at + close[:, 0]]) * _fine(others[close[:, 1]])).sum(1)
                for (i, j), value in zip(close.tolist(), likeness.tolist(), strict=True):
                    n = at + i
                    if value > SAME and (n not in best or value > best[n].likeness):
                        best[n] = Duplicate(test_keys[n], train_keys[start + j], value, mirrored)
    return [best[n] for n in sorted(best)]


def _coarse(pictures: Tensor) -> Tensor:
    small = F.avg_pool2d(pictures.float(), FINE // COARSE).flatten(1)  # [N, 3 · COARSE²]
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def _fine(pictures: Tensor) -> Tensor:
    full = pictures.float()
    rough = F.interpolate(F.avg_pool2d(full, FINE // COARSE), scale_factor=FINE // COARSE, mode="bilinear")
    return F.normalize((full - rough).flatten(1), dim=1)
