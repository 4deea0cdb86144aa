"""LaViT, the Less-Attention Vision Transformer: ``lavit:tiny``, ``lavit:small``.

Zhang, Liu, Lin and He, You Only Need Less Attention at Each Stage in Vision Transformers, CVPR 2024 (arXiv 2406.00427). A pyramid
of four stages over N tokens each. The first layers of a stage compute attention; with scores A [heads, N, N] and values V = X W_v,

    A = Q Kᵀ / √d,                      Z = softmax(A) V        (computed)

and the others take over the scores of the layer before and transform them by Θ and Ψ, [N, N] each, first along the keys, then along
the queries:

    A_l = Ψ(Θ(A_{l-1})ᵀ)ᵀ,              Z = softmax(A_l) V      (re-used)

so they need no queries and keys. Between stages the last scores are brought to the next one's grid and heads and added to those that
are computed there (residual attention downsampling): A = Q Kᵀ / √d + Φ(A_last). The auxiliary loss ("loss", [B], read by the
objective ``auxiliary``) keeps re-used attention P = softmax(A_l) near what attention among tokens is like, symmetric and with the most
on the diagonal:

    L = mean over layers, heads and rows i of  Σ_j |P_ij - P_ji| + (Σ_{j≠i} P_ij / (N - 1) - P_ii)

Deviations: L is a mean, where the paper sums, so that its size does not depend on N, and the diagonal's term is signed so that a smaller
L is a stronger diagonal; Θ and Ψ begin as identities. Stages with many tokens compute all their layers, with keys and values pooled as
in PVT v2, whose blocks and patch embeddings are timm's. Θ and Ψ fit one size of picture, ``data.image_size``, a multiple of 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention, Block, OverlapPatchEmbed
from torch import Tensor, nn

from crossmodal.errors import UserError
from crossmodal.recipe import ImagePart
from crossmodal.towers.base import ImageTower, begin, options_for, widened

SIZES = {
    "tiny": {"widths": (32, 64, 160, 256), "heads": (1, 2, 5, 8), "depths": (2, 2, 4, 4)},
    "small": {"widths": (64, 128, 320, 512), "heads": (1, 2, 5, 8), "depths": (3, 4, 8, 4)},
}
REDUCTIONS = (8, 4, 1, 1)  # of keys and values, a side; scores are square, and can be re-used, where it is 1
EXPANSIONS = (8, 8, 4, 4)  # of the MLPs


class Computed(Attention):
    """Attention that gives its scores on: [B, N, C] → (Z, A)."""

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        heads = lambda y: y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, N, C] → [B, heads, N, d]
        q, (k, v) = heads(self.q(x)), map(heads, self.kv(x).chunk(2, -1))
        scores = (q * self.scale) @ k.transpose(-1, -2)  # [B, heads, N, N]
        scores = scores if before is None else scores + before
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), scores


class Reused(nn.Module):
    """The scores of the layer before, transformed: no queries, no keys. [B, N, C] → (Z, A_l)."""

    def __init__(self, width: int, heads: int, tokens: int):
        super().__init__()
        self.heads = heads
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.theta, self.psi = (nn.Parameter(torch.eye(tokens)) for _ in range(2))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        scores = self.psi @ (before @ self.theta.T)  # rows are queries: Ψ along them, Θ along the keys
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), scores


class Layer(Block):
    """timm's PVT v2 block around either kind of attention."""

    def __init__(self, attn: nn.Module, width: int, heads: int, expansion: int):
        super().__init__(width, heads, expansion, qkv_bias=True)
        self.attn = attn

    def forward(self, x: Tensor, side: list[int], scores: Tensor | None) -> tuple[Tensor, Tensor]:
        z, scores = self.attn(self.norm1(x), scores)
        x = x + z
        return x + self.mlp(self.norm2(x), side), scores


class Downsample(nn.Module):
    """Φ: scores among S × S tokens → among S/2 × S/2, and from one number of heads to another: [B, h, N, N] → [B, h', N/4, N/4]."""

    def __init__(self, side: int, heads: int, after: int):
        super().__init__()
        self.side = side
        self.local = nn.Conv2d(heads, heads, 3, padding=1, groups=heads)
        self.mix = nn.Conv2d(heads, after, 1)

    def forward(self, scores: Tensor) -> Tensor:
        for _ in range(2):  # the keys' grid, then the queries'
            grid = scores.unflatten(-1, (self.side, self.side))  # [B, h, N, S, S]
            scores = F.avg_pool3d(grid, (1, 2, 2)).flatten(-2).transpose(-1, -2)
        return self.mix(self.local(scores))


class Stage(nn.Module):
    """Patch embedding and layers of one resolution."""

    def __init__(self, number: int, before: int, width: int, heads: int, depth: int, computed: int, side: int, from_heads: int | None):
        super().__init__()
        self.side, self.square, expansion = side, REDUCTIONS[number] == 1, EXPANSIONS[number]
        self.embed = OverlapPatchEmbed(7 if number == 0 else 3, 4 if number == 0 else 2, before, width)
        self.down = Downsample(2 * side, from_heads, heads) if from_heads else None
        if self.square:
            kinds = [Computed(width, heads) if n < computed else Reused(width, heads, side * side) for n in range(depth)]
            self.layers = nn.ModuleList([Layer(attn, width, heads, expansion) for attn in kinds])
        else:
            self.layers = nn.ModuleList([Block(width, heads, expansion, REDUCTIONS[number], qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, scores: Tensor | None, unlike: list[Tensor] | None) -> tuple[Tensor, Tensor | None]:
        """[B, C, 2S, 2S] and the last stage's scores → ([B, N, C'], scores); losses of re-used layers are added to ``unlike``."""
        x, scores = self.embed(x).flatten(1, 2), self.down(scores) if self.down else None
        for layer in self.layers:
            if not self.square:
                x = layer(x, [self.side, self.side])
                continue
            x, scores = layer(x, [self.side, self.side], scores)
            if unlike is not None and isinstance(layer.attn, Reused):
                unlike.append(unlikeness(widened(scores).softmax(-1)))
        return self.norm(x), scores


def unlikeness(p: Tensor) -> Tensor:
    """Re-used attention [B, heads, N, N] → [B]: L of the module's text, for one layer."""
    diagonal = p.diagonal(dim1=-2, dim2=-1)
    others = (1 - diagonal) / max(1, p.shape[-1] - 1)  # rows add up to 1
    return ((p - p.transpose(-1, -2)).abs().sum(-1) + others - diagonal).mean((1, 2))


class LaViT(ImageTower):
    """``kwargs``: ``widths``, ``heads``, ``depths`` and ``computed``, a number for each stage; ``computed`` says how many of a stage's
    first layers compute attention (all of the first two stages must; by default half of the third's, and of the fourth's)."""

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        sizes = options_for(part, SIZES, computed=None)
        widths, heads, depths = sizes["widths"], sizes["heads"], sizes["depths"]
        computed = sizes["computed"] or (*depths[:2], *(max(1, depth // 2) for depth in depths[2:]))
        if {len(widths), len(heads), len(depths), len(computed)} != {4}:
            raise UserError(f"{part.tower}: widths, heads, depths and computed have a number for each of the four stages.")
        if tuple(computed[:2]) != tuple(depths[:2]) or not all(1 <= c <= d for c, d in zip(computed, depths, strict=True)):
            raise UserError(
                f"{part.tower}: computed is {list(computed)}; the first two stages compute all their layers, the others 1 or more."
            )
        self.image_size = image_size or 224
        if self.image_size % 32:
            raise UserError(f"{part.tower}: data.image_size is {self.image_size}; the pyramid needs a multiple of 32.")
        from_heads = [None, None, None, heads[2]]
        self.stages = nn.ModuleList(
            Stage(n, (3, *widths)[n], widths[n], heads[n], depths[n], computed[n], self.image_size // 4 // 2**n, from_heads[n])
            for n in range(4)
        )
        self.apply(begin)
        self.width = self.token_width = widths[-1]
        self.fields = ("pooled", "tokens", "loss") if computed != depths else ("pooled", "tokens")
        self.losing = False
        self.settle(part)

    def require(self, fields: set[str]) -> None:
        self.losing = "loss" in fields

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, scores, unlike = self.normalise(images), None, [] if self.losing and self.training else None
        for stage in self.stages:
            tokens, scores = stage(x, scores, unlike)
            x = tokens.transpose(1, 2).unflatten(-1, (stage.side, stage.side))  # [B, C, S, S]
        out = {"pooled": tokens.mean(1), "tokens": tokens}
        return out | ({"loss": torch.stack(unlike).mean(0)} if unlike else {})
