"""A tower from outside the package, in one file: ``tests.towers.histogram:8`` counts a picture's colours in 8 shades a channel."""

import torch
from torch import Tensor, nn

from crossmodal.recipe import ImagePart
from crossmodal.towers.base import ImageTower


class Histogram(ImageTower):
    """Pictures [B, 3, H, W] → {"pooled": [B, 32]}."""

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        self.shades = int(part.tower.partition(":")[2])
        self.mix = nn.Sequential(nn.Linear(3 * self.shades, 64), nn.GELU(), nn.Linear(64, 32))
        self.width, self.image_size = 32, image_size or 32
        self.settle(part)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        shade = (images.long() * self.shades // 256).flatten(2)  # [B, 3, H · W]
        counts = torch.zeros(*shade.shape[:2], self.shades, device=images.device)
        counts.scatter_add_(2, shade, torch.ones_like(shade, dtype=counts.dtype))
        return {"pooled": self.mix(counts.flatten(1) / shade.shape[2])}
