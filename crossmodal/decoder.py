"""What CoCa puts on top of two towers: a pooler that asks the picture questions, and a decoder that speaks of it.

Yu et al. 2022, https://arxiv.org/abs/2205.01917, section 3.2. Blocks and attention are open_clip's.
"""

from __future__ import annotations

import torch.nn.functional as F
from open_clip.transformer import AttentionalPooler, MultimodalTransformer
from torch import Tensor, nn

from crossmodal import attention
from crossmodal.errors import UserError
from crossmodal.recipe import DecoderPart, PoolerPart
from crossmodal.towers.base import TextTower


def _heads(said: int | None, width: int, key: str) -> int:
    """Attention heads: as said, else one for 64 channels. Errors: ``UserError`` where they do not divide the width."""
    heads = said or next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
    if width % heads:
        raise UserError(f"{key} is {heads}, which does not divide the width {width}.")
    return heads


class Pooler(nn.Module):
    """Learned queries that read an image tower's tokens.

    ``cascade``: ``queries`` for the decoder read the tokens, and one contrastive query reads what these found (the paper's choice).
    ``parallel``: all of them read the tokens. ``single``: one attention, whose first query is the contrastive one (open_clip's).

    Args:
        part: the ``model.pooler`` section of a recipe.
        token_width: W, of the tokens.
        width: D, of what comes out.
    """

    def __init__(self, part: PoolerPart, token_width: int, width: int):
        super().__init__()
        self.kind, self.width, self.queries = part.kind, width, part.queries
        heads = _heads(part.heads, width, "model.pooler.heads")
        if part.kind == "single" and part.queries < 2:
            raise UserError("model.pooler.queries is 1, which with kind: single leaves none for a decoder; take at least 2.")
        self.context = AttentionalPooler(width, token_width, heads, part.queries)
        self.context_norm = nn.LayerNorm(width)
        if part.kind != "single":
            self.embed = AttentionalPooler(width, width if part.kind == "cascade" else token_width, heads, 1)
            self.embed_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, W] → (what the embedding is made from [B, D], what a decoder reads [B, Q, D])."""
        with attention.fitting(tokens.device, max(tokens.shape[1], self.queries)):
            found = self.context_norm(self.context(tokens))
            if self.kind == "single":
                return found[:, 0], found[:, 1:]
            asked = self.embed(found if self.kind == "cascade" else tokens)
        return self.embed_norm(asked)[:, 0], found

    def require(self, embed: bool, context: bool) -> None:
        """Train only what is read: the way to the embedding, to the decoder's context, or both."""
        self.requires_grad_(False)
        for module in self.children():
            to_embed = self.kind != "single" and module in (self.embed, self.embed_norm)
            module.requires_grad_(embed if to_embed else context or (embed and self.kind != "parallel"))


class Decoder(nn.Module):
    """The multimodal half of CoCa's decoder: causal self-attention over the text tower's states, then attention over the picture.

    The unimodal half is the text tower, so that must be causal. The next word's logits are ``hidden @ words.T``, with a matrix of its own
    or, tied, the text tower's embedding (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).

    Args:
        part: the ``model.decoder`` section of a recipe.
        text: the text tower; its states are the decoder's input.
        context_width: C, of what it reads of the picture.

    Errors: ``UserError`` for a text tower that sees what comes next, or has no start or end of text.
    """

    def __init__(self, part: DecoderPart, text: TextTower, context_width: int):
        super().__init__()
        if not text.causal:
            raise UserError(
                "model.decoder predicts each word from those before it, but this text tower sees the whole text, so the answer would leak; "
                "take a causal one (open_clip's CLIP towers, GPT-2, or BERT with kwargs: {is_decoder: true})."
            )
        if text.start_id is None or text.end_id is None:
            raise UserError("model.decoder needs a text tower whose tokenizer marks where a text starts and ends; this one's does not.")
        width = text.token_width
        heads = _heads(part.heads, width, "model.decoder.heads")
        self.context = nn.Identity() if context_width == width else nn.Linear(context_width, width)
        self.body = MultimodalTransformer(width, part.layers, heads, text.context_length, output_dim=1)
        self.body.text_projection = None
        self.head = None if part.tie else nn.Linear(width, len(text.embedding), bias=False)
        self._initialise(width, part.layers)

    def _initialise(self, width: int, layers: int) -> None:
        """As CLIP's text tower (its code): what adds to the residual stream starts smaller, the deeper the stack."""
        into, out = width**-0.5, width**-0.5 * (2 * layers) ** -0.5
        for block in (*self.body.resblocks, *self.body.cross_attn):
            nn.init.normal_(block.attn.in_proj_weight, std=into)
            nn.init.normal_(block.attn.out_proj.weight, std=out)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=out)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=into)

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Picture [B, Q, C] and text states [B, T, W] → states [B, T, W] from which the word after each is read."""
        with attention.fitting(tokens.device, max(context.shape[1], tokens.shape[1])):
            return self.body(self.context(context), tokens)

    def logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """States [..., W] → logits of the next word [..., V]; ``embedding`` [V, W] is the text tower's, read where tied."""
        return F.linear(hidden, self.vocabulary(embedding))

    def vocabulary(self, embedding: Tensor) -> Tensor:
        """The matrix [V, W] whose rows a state is compared with."""
        return embedding if self.head is None else self.head.weight

    def load(self, state: dict[str, Tensor], origin: str) -> None:
        """Take the weights of an open_clip ``MultimodalTransformer``. Errors: ``UserError`` for another shape."""
        projection = state.pop("text_projection")
        own = {**{f"body.{k}": v for k, v in state.items()}, "head.weight": projection.T}
        try:
            self.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise UserError(f"model.decoder.pretrained: {origin} does not fit: {str(error).splitlines()[1].strip()}") from error


def next_words(decoder: Decoder, text: TextTower, context: Tensor, ids: Tensor) -> Tensor:
    """Texts begun, ids [B, T], and their pictures' context [B, Q, C] → logits of the next word [B, V]."""
    hidden = decoder(context, text(ids)["tokens"])[:, -1]
    return decoder.logits(hidden, text.embedding)
