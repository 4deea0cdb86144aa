"""Token sequences from a model of the next one: greedy, beam and nucleus search. Knows no pictures and no words.

All three take ``step``, which says how likely every token is to come next: ``step(ids [R, T], rows [R]) → logits [R, V]``, where ``rows``
tells which of the N sequences each row belongs to. A sequence begins with ``start`` and is over when one of ``ends`` comes; what is
returned stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]


def greedy(step: Step, count: int, start: int, ends: Collection[int], max_length: int) -> list[list[int]]:
    """``count`` sequences of the likeliest next token each time, at most ``max_length`` tokens with start and end."""
    return _one_by_one(step, count, start, ends, max_length, lambda logits: logits.argmax(-1))


def nucleus(
    step: Step,
    count: int,
    start: int,
    ends: Collection[int],
    max_length: int,
    top_p: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """``count`` sequences drawn from the fewest tokens that hold a share ``top_p`` of the probability
    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751, section 3.1)."""

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial(nucleus_of((logits / temperature).softmax(-1), top_p), 1, generator=generator)[:, 0]

    return _one_by_one(step, count, start, ends, max_length, draw)


def nucleus_of(probabilities: Tensor, top_p: float) -> Tensor:
    """[R, V] → [R, V]: probabilities of all but the likeliest tokens that reach ``top_p`` together become zero (not renormalised)."""
    ordered, order = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # of all likelier tokens
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))


def _one_by_one(step: Step, count: int, start: int, ends: Collection[int], max_length: int, pick: Callable) -> list[list[int]]:
    ids, rows = torch.full((count, 1), start), torch.arange(count)  # of the sequences that are not over yet
    out: list[list[int]] = [[] for _ in range(count)]
    for _ in range(max_length - 1):
        if not len(rows):
            break
        chosen = pick(step(ids, rows).float()).cpu()
        going = ~torch.isin(chosen, torch.tensor(list(ends)))
        ids, rows = torch.cat([ids, chosen[:, None]], 1)[going], rows[going]
        for row, token in zip(rows.tolist(), chosen[going].tolist(), strict=True):
            out[row].append(token)
    return out


def beam(
    step: Step, count: int, start: int, ends: Collection[int], max_length: int, beams: int = 5, length_penalty: float = 1.0
) -> list[list[int]]:
    """``count`` sequences, each the best of ``beams`` kept at every step.

    Best is the greatest log-probability over length (start left out, end counted) to the power ``length_penalty``; a sequence that is
    over keeps its place while none better comes. ``max_length`` counts start and end.
    """
    ends = sorted(ends)
    ids = torch.full((count, 1, 1), start)  # [N, K, T]
    scores, lengths = torch.zeros(count, 1), torch.zeros(count, 1)
    over = torch.zeros(count, 1, dtype=torch.bool)
    for _ in range(max_length - 1):
        if over.all():
            break
        at = (~over).nonzero()  # [R, 2]
        likely = step(ids[~over], at[:, 0]).float().log_softmax(-1).cpu()  # [R, V]
        # What goes on has all tokens to choose from, what is over only to stay as it is: said with the first of the ends.
        options = torch.full((*over.shape, likely.shape[-1]), -torch.inf)
        options[~over] = likely
        options[..., ends[0]] = torch.where(over, 0.0, options[..., ends[0]])
        longer = lengths + (~over).float()
        totals = scores[..., None] + options  # [N, K, V]
        rank = (totals / longer[..., None].clamp(min=1) ** length_penalty).flatten(1)
        best = rank.topk(min(beams, rank.shape[1])).indices  # [N, K']
        parent, token = best // likely.shape[-1], best % likely.shape[-1]
        ids = torch.cat([ids.gather(1, parent[..., None].expand(-1, -1, ids.shape[2])), token[..., None]], 2)
        scores, lengths = totals.flatten(1).gather(1, best), longer.gather(1, parent)
        over = over.gather(1, parent) | torch.isin(token, torch.tensor(ends))
    first = (scores / lengths.clamp(min=1) ** length_penalty).argmax(1)
    return [_until(ids[n, k, 1:].tolist(), ends) for n, k in enumerate(first.tolist())]


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
