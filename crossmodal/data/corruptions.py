"""Pictures made worse on purpose, to see what a model bears: torchvision's noise, blur, contrast and compression, in five severities.

The kinds are those of Hendrycks & Dietterich 2019 (https://arxiv.org/abs/1903.12261) that torchvision has; its strengths are our own, so
figures are not ImageNet-C's.
"""

from __future__ import annotations

import math

import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor

from crossmodal.data.views import EvalView
from crossmodal.errors import UserError, nearest

#: What each severity, 1 to 5, means: a standard deviation of noise (of 1), a sigma (as a share of the side), a factor, a JPEG quality …
STRENGTHS = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "blur": (0.01, 0.015, 0.02, 0.03, 0.045),
    "contrast": (0.75, 0.5, 0.35, 0.2, 0.1),
    "brightness": (1.2, 1.4, 1.6, 1.9, 2.2),
    "jpeg": (40, 25, 15, 10, 6),
    "pixels": (0.7, 0.5, 0.4, 0.3, 0.2),
    "grey": (0.8, 0.6, 0.4, 0.2, 0.0),
}


class Corrupted(EvalView):
    """A preprocessing whose pictures are worse afterwards. ``said`` is ``KIND:SEVERITY``, such as ``jpeg:3``; the same picture is always
    spoilt in the same way.

    Errors: ``UserError`` for a kind or severity there is none of.
    """

    def __init__(self, view: EvalView, said: str):
        super().__init__(view.size, view.resize)
        kind, _, severity = said.partition(":")
        if kind not in STRENGTHS:
            raise UserError(f"there is no corruption {kind!r}; {nearest(kind, STRENGTHS)}")
        if severity not in ("1", "2", "3", "4", "5"):
            raise UserError(f"{said}: write KIND:SEVERITY with a severity from 1 to 5, such as {kind}:3.")
        self.kind, self.strength = kind, STRENGTHS[kind][int(severity) - 1]
        self.about = {"corruption": said}  # part of the preprocessing's fingerprint

    def __call__(self, picture: Tensor) -> Tensor:
        return getattr(self, f"_{self.kind}")(super().__call__(picture))

    def _noise(self, x: Tensor) -> Tensor:
        chance = torch.Generator().manual_seed(int(x.long().sum()))  # of the picture itself
        spoilt = x.float() + 255 * self.strength * torch.randn(x.shape, generator=chance)
        return spoilt.round().clamp(0, 255).to(torch.uint8)

    def _blur(self, x: Tensor) -> Tensor:
        sigma = self.strength * self.size
        return T.gaussian_blur(x, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)

    def _contrast(self, x: Tensor) -> Tensor:
        return T.adjust_contrast(x, self.strength)

    def _brightness(self, x: Tensor) -> Tensor:
        return T.adjust_brightness(x, self.strength)

    def _jpeg(self, x: Tensor) -> Tensor:
        return T.jpeg(x, self.strength)

    def _pixels(self, x: Tensor) -> Tensor:
        small = T.resize(x, [max(1, round(self.strength * self.size))] * 2, antialias=True)
        return T.resize(small, [self.size] * 2, T.InterpolationMode.NEAREST)

    def _grey(self, x: Tensor) -> Tensor:
        return T.adjust_saturation(x, self.strength)
