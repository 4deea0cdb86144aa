"""The nouns that flow along the road: Sample → Batch → Encoded → Terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

#: What the model made of a batch, by "view:field": "image:embed" [B, D], "text:tokens" [B, T, W] …
Encoded = dict[str, Tensor]

#: Named loss terms, each a scalar tensor [] in fp32; weights are applied by the task, not here.
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One picture with what is said of it, as a source yields it."""

    key: str  # names the sample in reports: a path, a member of a tar, a code point
    image: bytes | Tensor  # the encoded file (JPEG, PNG, WebP …), or its pixels, uint8 [3, H, W]
    captions: tuple[str, ...] = ()  # every caption of the picture
    label: int | tuple[int, ...] | None = None  # its class, where the source has classes; several where pictures show several

    def __post_init__(self) -> None:
        """Half a character (a lone surrogate, as JSON can hold it) cannot be written anywhere: it becomes a replacement character."""
        object.__setattr__(self, "captions", tuple(c.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for c in self.captions))


@dataclass(frozen=True)
class ViewSpec:
    """What the data must make for an objective: a picture or a text, and how it is varied.

    ``kind`` is "image" or "text". ``options`` go to the augmentation in ``data/views.py``; None
    stands for the recipe's own augmentation. Equal specs are made once per sample.
    """

    kind: str
    options: tuple[tuple[str, object], ...] | None = None


@dataclass
class Batch:
    """A (micro-)batch of B pairs on one process."""

    images: dict[str, Tensor]  # view → uint8 [B, 3, H, W], RGB; towers normalise on the device
    texts: dict[str, Tensor]  # view → int64 token ids [B, T], trimmed to the longest where that is exact
    rows: Tensor  # int64 [B]: the row's index in the global batch
    index: Tensor  # int64 [B]: the sample's index in the source
    seeds: Tensor | None = None  # int64 [B]: from recipe seed, step and row; what a row's chance is drawn from
    ids: dict[str, Tensor] = field(default_factory=dict)  # text view → int64 [B]: equal for equal captions
    keys: tuple[str, ...] = ()  # the samples' names, for reports
    broken: tuple[tuple[str, str], ...] = ()  # (key, why) of pictures that did not decode and were replaced
    frozen: dict[str, Tensor] = field(default_factory=dict)  # "view:field" → [B, …]: what a frozen tower made of it before

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most ``size`` pairs, in order."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        if len(parts) == 1:
            return [self]
        return [replace(self._map(lambda x, part=part: x[part]), keys=self.keys[part]) for part in parts]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict):
                changed[each.name] = {k: change(v) for k, v in value.items()}
            elif isinstance(value, Tensor):
                changed[each.name] = change(value)
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.rows)
