"""Captioning: the decoder says each word of a caption from the picture and the words before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossmodal.batch import Batch, Encoded
from crossmodal.objectives.base import Objective
from crossmodal.words import cross_entropy

if TYPE_CHECKING:
    from crossmodal.model import Model


class Captioning(Objective):
    """CoCa's captioning loss (Yu et al. 2022, https://arxiv.org/abs/2205.01917, equation 3)::

        loss = − mean over all words t of all captions of log p(y_t | y_<t, picture)

    Words are tokens: a caption's first is its start, which is given and not predicted; its last is its end. Padding is left out by
    length, not by id, since some tokenizers pad with the id that ends a text. The mean is over the whole global batch's words.

    The words before come as the states of the causal text tower, the picture as ``image:context``: the pooler's caption queries or,
    without a pooler, the image tower's tokens. CoCa appends a class token for the contrastive term; here the end of text, which sees
    the same words, serves it.
    """

    needs = ("image:context", "text:tokens", "decoder")

    def attach(self, model: Model, steps: int) -> None:
        self.lengths = model.text.lengths

    def pair_terms(self, model: Model, batch: Batch, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        ids, tokens, context = batch.texts["text"], encoded["text:tokens"], encoded["image:context"]  # [B, T], [B, T, W], [B, Q, C]
        hidden, words = [], []
        for rows, length in model.text.parts(ids):
            said = self.predicted(ids[rows, :length])  # [R, L - 1]
            hidden.append(model.decoder(context[rows], tokens[rows, : length - 1])[said])  # [words, W]: padding is not said
            words.append(ids[rows, 1:length][said])
        target = torch.cat(words)
        loss = cross_entropy(torch.cat(hidden), model.decoder.vocabulary(model.text.embedding), target)
        return {"captioning": (loss, torch.tensor(len(target), device=ids.device))}

    def pair_counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"captioning": self.predicted(batch.texts["text"]).sum()}

    def predicted(self, ids: Tensor) -> Tensor:
        """[B, T] → [B, T - 1]: whether the word after each is part of its text."""
        return torch.arange(1, ids.shape[1], device=ids.device) < self.lengths(ids)[:, None]
