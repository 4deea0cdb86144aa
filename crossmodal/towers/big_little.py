"""big.LITTLE ViT: a large and a small transformer, between which tokens are routed: ``big_little:tiny``, ``big_little:small``.

Guo, Wang, Ye, Dai and Xiong, big.LITTLE Vision Transformer for Efficient Visual Recognition, 2024 (arXiv 2410.10267). In each layer a
linear predictor scores the N tokens X [N, C], the K best go through the big (performance) block P, and all through the little
(efficiency) block E:

    s = softmax(X W_s)                     [N], importance
    S = the K tokens of the largest s
    x_i ← x_i + E(X)_i                                       for i not in S
    x_i ← x_i + N s_i P(x_i; X) + γ E(X)_i                   for i in S, γ [C] learned from 1e-4 on (fusion)

P is a ViT's block in which only the tokens of S ask, while all answer (semi-cross attention: queries of S, keys and values of X), so that
nothing is lost to those that matter. E is a narrow block, between projections down from C and up to it. Training adds feature
distillation from a plain ViT, the teacher, which is frozen ("loss", [B], read by the objective ``auxiliary``):

    L = mean over tokens i of 1 - cos(x_i, teacher_i)

Deviations: the factor N s_i, 1 on average, is how the predictor learns; E works in ``little`` channels at the same depth; there is no
class token, "pooled" is the mean over tokens. Blocks and patch embedding are timm's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from crossmodal import registry
from crossmodal.errors import UserError
from crossmodal.recipe import ImagePart
from crossmodal.towers.base import ImageTower, begin, options_for, widened

SIZES = {
    "tiny": {"width": 192, "little": 48, "depth": 12, "heads": 3},
    "small": {"width": 384, "little": 96, "depth": 12, "heads": 6},
}


class Performance(Block):
    """timm's ViT block, asked for some of the tokens: (x_S [B, K, C], X [B, N, C]) → P(x_S; X) [B, K, C], what is added to x_S."""

    def forward(self, some: Tensor, every: Tensor) -> Tensor:
        a, width = self.attn, some.shape[-1]
        heads = lambda y: y.unflatten(-1, (a.num_heads, -1)).transpose(1, 2)  # [B, T, C] → [B, heads, T, d]
        weight, bias = a.qkv.weight.split((width, 2 * width)), a.qkv.bias.split((width, 2 * width))
        q = heads(F.linear(self.norm1(some), weight[0], bias[0]))
        k, v = map(heads, F.linear(self.norm1(every), weight[1], bias[1]).chunk(2, -1))
        answered = F.scaled_dot_product_attention(a.q_norm(q), a.k_norm(k), v)
        seen = a.proj(answered.transpose(1, 2).flatten(2))
        return seen + self.mlp(self.norm2(some + seen))


class Layer(nn.Module):
    """Score, route, and both blocks. Leaves in ``chosen`` [B, K] which tokens took the big path last."""

    def __init__(self, width: int, little: int, heads: int, share: float):
        super().__init__()
        self.share, self.chosen = share, None
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.big = Performance(width, heads, qkv_bias=True)
        self.down, self.up = nn.Linear(width, little), nn.Linear(little, width)
        self.little = Block(little, max(1, heads * little // width), qkv_bias=True)
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        known = self.norm(x)
        importance = self.score(known).squeeze(-1).softmax(-1) * x.shape[1]  # [B, N], 1 on average
        best, self.chosen = importance.topk(max(1, round(self.share * x.shape[1])), dim=1)
        rows = self.chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1])  # [B, K, C]
        weighed = best.unsqueeze(-1) * self.big(x.gather(1, rows), x)
        small = self.up(self.little(self.down(known)))  # [B, N, C]
        fused = weighed + (self.gamma - 1) * small.gather(1, rows)  # E's word was added whole
        out = x + small
        return out.scatter_add(1, rows, fused.to(out.dtype))


class BigLittle(ImageTower):
    """``kwargs``: ``width``, ``little``, ``depth``, ``heads``, ``patch_size`` (16), ``share`` of tokens that go the big way (0.5), and
    ``teacher``, LIBRARY:NAME of a ViT of the same width and patch size, with ``teacher_pretrained``, its weights' tag or file."""

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        said = options_for(part, SIZES, patch_size=16, share=0.5, teacher=None, teacher_pretrained=None)
        if not 0 < said["share"] <= 1:
            raise UserError(f"{part.tower}: share is {said['share']}; it is a share of the tokens, over 0 and up to 1.")
        self.image_size, self.patch_size = image_size or 224, said["patch_size"]
        self.width = self.token_width = width = said["width"]
        self.teacher_part = ImagePart(tower=said["teacher"], pretrained=said["teacher_pretrained"]) if said["teacher"] else None
        self._teacher: list[ImageTower] = []  # in a list: not part of this module, nor of what is saved
        self.embed = PatchEmbed(self.image_size, self.patch_size, 3, width)
        self.position = nn.Parameter(torch.randn(1, self.embed.num_patches, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, said["little"], said["heads"], said["share"]) for _ in range(said["depth"]))
        self.norm = nn.LayerNorm(width)
        self.apply(begin)
        self.fields = ("pooled", "tokens", "loss") if self.teacher_part else ("pooled", "tokens")
        self.settle(part)

    def require(self, fields: set[str]) -> None:
        if "loss" in fields and not self._teacher:
            library = self.teacher_part.tower.partition(":")[0]
            teacher = registry.find("towers", library, "ImageTower")(self.teacher_part, self.image_size)
            if teacher.token_width != self.width:
                raise UserError(
                    f"{self.teacher_part.tower}: the teacher's tokens have {teacher.token_width} channels, the tower's {self.width}."
                )
            if not teacher.pretrained and self.teacher_part.pretrained is not False:
                raise UserError(
                    f"{self.teacher_part.tower}: a teacher of random weights teaches nothing; set teacher_pretrained (or false)."
                )
            teacher.freeze(True)
            self._teacher.append(teacher.eval())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.embed(self.normalise(images)) + self.position  # [B, N, C]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        out = {"pooled": x.mean(1), "tokens": x}
        return out | ({"loss": self._distil(images, x)} if self._teacher and self.training else {})

    def _distil(self, images: Tensor, tokens: Tensor) -> Tensor:
        """[B]: how far the tokens point from the teacher's."""
        teacher = self._teacher[0].to(images.device)
        with torch.no_grad():
            wanted = teacher(images)["tokens"]
        if wanted.shape[1] != tokens.shape[1]:
            raise UserError(f"{self.teacher_part.tower}: the teacher has {wanted.shape[1]} tokens, the tower {tokens.shape[1]}.")
        return 1 - F.cosine_similarity(widened(tokens), widened(wanted), dim=-1).mean(1)
