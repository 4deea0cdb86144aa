"""Masked reconstruction: most patches are hidden, a small decoder draws them from the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from crossmodal.batch import Batch, Encoded, ViewSpec
from crossmodal.chance import from_seeds, rows, seed_of
from crossmodal.errors import UserError
from crossmodal.objectives.base import Objective
from crossmodal.teacher import Teacher

if TYPE_CHECKING:
    from crossmodal.model import Model


class MAE(Objective):
    """Masked autoencoder (He et al. 2022, https://arxiv.org/abs/2111.06377, sections 3 and 4).

    A share ``mask`` of the patches, drawn for each row from its seed, is hidden; the tower encodes the others, and a decoder of
    ``depth`` blocks of width ``width`` predicts the hidden ones from those and a mask token::

        loss = mean over hidden patches of mean_d (prediction_d − target_d)²

    Targets of ``pixels`` are each patch's normalised pixels less their mean, over their standard deviation; of ``features``, the last
    tokens of a teacher (the tower's moving average) that sees all patches, normalised the same way (as data2vec, Baevski et al. 2022).
    The decoder reads patches only: class and register tokens stay with the tower.

    Args:
        mask: share of the patches that is hidden.
        target: what is predicted.
        width, depth, heads: the decoder's.
        momentum: the teacher's, where there is one.
    """

    views = {"mae.image": ViewSpec("image", (("crop", (0.2, 1.0)), ("flip", True)))}
    needs = ("mae.image:pixels",)

    def __init__(
        self,
        *,
        mask: float = 0.75,
        target: Literal["pixels", "features"] = "pixels",
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        momentum: float = 0.996,
    ):
        super().__init__()
        if not 0 < mask < 1:
            raise UserError(f"objectives.mae.mask is {mask:g}; it is a share between 0 and 1.")
        self.mask, self.target, self.width, self.depth, self.heads, self.momentum = mask, target, width, depth, heads, momentum

    def attach(self, model: Model, steps: int) -> None:
        tower = model.image
        if tower.patches is None:
            raise UserError("objectives.mae hides patches, which this image tower does not have; take a ViT of timm or open_clip.")
        grid = tower.image_size // tower.patch_size
        self.total, self.kept, self.patch = grid * grid, max(1, int(grid * grid * (1 - self.mask))), tower.patch_size
        self.embed = nn.Linear(tower.token_width, self.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("places", build_sincos2d_pos_embed([grid, grid], self.width)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(self.width, self.heads, qkv_bias=True) for _ in range(self.depth)))
        self.norm = nn.LayerNorm(self.width)
        self.teacher = Teacher(tower) if self.target == "features" else None
        self.predict = nn.Linear(self.width, tower.token_width if self.teacher else self.patch**2 * 3)

    def hide(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """(patches to keep [B, K] in order, whether a patch is hidden [B, T]), by each row's seed."""
        if batch.seeds is None:
            noise = torch.rand(len(batch), self.total, device=device)
        else:
            noise = from_seeds(batch.seeds.to(device), self.total, seed_of("mae"))
        kept = noise.argsort(1)[:, : self.kept].sort(1).values
        return kept, torch.ones_like(noise, dtype=torch.bool).scatter(1, kept, False)

    def pair_terms(self, model: Model, batch: Batch, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        images = encoded["mae.image:pixels"]
        kept, hidden = self.hide(batch, images.device)
        with rows(batch.seeds, "mae"):
            seen = self.embed(model.image.tokens_of(images, kept))  # [B, K, W] → [B, K, width]
        whole = self.mask_token.to(seen.dtype).expand(len(seen), self.total, -1)
        whole = whole.scatter(1, kept[..., None].expand_as(seen), seen) + self.places  # [B, T, width]
        prediction = self.predict(self.norm(self.blocks(whole)))  # [B, T, D]
        with torch.no_grad():
            target = self.teacher(images)["tokens"] if self.teacher else patchify(model.image.normalise(images), self.patch)
            target = _normalised(target.to(torch.promote_types(target.dtype, torch.float32)))  # [B, T, D]
        each = (prediction.to(target.dtype) - target).square().mean(-1)  # [B, T]
        return {"mae": ((each * hidden).sum(), hidden.sum())}

    def pair_counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"mae": torch.tensor(len(batch) * (self.total - self.kept))}

    def after_step(self, model: Model, step: int) -> None:
        if self.teacher:
            self.teacher.follow(model.image, self.momentum)


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] → [B, T, patch · patch · 3], patches row by row, pixels before channels as in the paper's code."""
    return F.unfold(images, patch, stride=patch).unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)


def _normalised(x: Tensor) -> Tensor:
    """Each patch less its mean, over its standard deviation (unbiased, as the paper's code)."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
