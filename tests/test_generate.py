"""Searches over a made-up language whose every sequence can be written down."""

import itertools

import pytest
import torch

from crossmodal import generate

START, END, V = 0, 1, 6


def language(count: int, seed: int = 0):
    """A step whose next-token odds depend on the row and the last two tokens."""
    table = torch.randn(count, V, V, V, generator=torch.Generator().manual_seed(seed)) * 2

    def step(ids, rows):
        before = ids[:, -2] if ids.shape[1] > 1 else torch.zeros(len(ids), dtype=torch.long)
        return table[rows, before, ids[:, -1]]

    return step


def by_hand(step, row: int, tokens: tuple[int, ...]) -> float:
    """The log-probability of a whole sequence after START."""
    total, ids = 0.0, [START]
    for token in tokens:
        total += step(torch.tensor([ids]), torch.tensor([row])).log_softmax(-1)[0, token].item()
        ids.append(token)
    return total


def test_greedy_takes_the_likeliest_token_each_time():
    step = language(4)
    found = generate.greedy(step, 4, START, {END}, 8)
    for row in range(4):
        ids = [START]
        while len(ids) < 8:
            token = step(torch.tensor([ids]), torch.tensor([row]))[0].argmax().item()
            if token == END:
                break
            ids.append(token)
        assert found[row] == ids[1:]


def test_a_beam_wide_enough_finds_the_best_of_all_sequences():
    step, length = language(3, seed=1), 4
    found = generate.beam(step, 3, START, {END}, length + 1, beams=V**length)
    for row in range(3):
        scored = {}
        for n in range(1, length + 1):
            for body in itertools.product([t for t in range(V) if t != END], repeat=n - 1):
                scored[body] = by_hand(step, row, (*body, END)) / n
        for body in itertools.product([t for t in range(V) if t != END], repeat=length):
            scored[body] = by_hand(step, row, body) / length  # cut at max_length
        assert tuple(found[row]) == max(scored, key=scored.get)


def test_a_beam_of_one_without_length_penalty_is_greedy_and_a_wider_one_is_no_worse():
    step = language(6, seed=2)
    assert generate.beam(step, 6, START, {END}, 9, beams=1, length_penalty=0.0) == generate.greedy(step, 6, START, {END}, 9)
    score = lambda row, ids: by_hand(step, row, (*ids, END)) / (len(ids) + 1)
    wide = generate.beam(step, 6, START, {END}, 30, beams=200)
    narrow = generate.beam(step, 6, START, {END}, 30, beams=2)
    assert sum(score(r, w) for r, w in enumerate(wide)) >= sum(score(r, n) for r, n in enumerate(narrow)) - 1e-6


def test_several_tokens_end_a_sequence_and_rows_go_their_own_way():
    step = lambda ids, rows: torch.nn.functional.one_hot(torch.where(ids[:, -1] == rows + 2, 1 + 4 * (rows % 2), rows + 2), V).float() * 50
    for search in (generate.greedy, generate.nucleus, generate.beam):
        assert search(step, 3, START, {END, 5}, 10) == [[2], [3], [4]], search


@pytest.mark.parametrize("top_p, kept", [(0.3, [1]), (0.5, [1]), (0.6, [1, 2]), (0.8, [1, 2]), (0.93, [1, 2, 0]), (1.0, [1, 2, 0, 3])])
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p, kept):
    odds = torch.tensor([[0.125, 0.5, 0.3125, 0.0625]])
    left = generate.nucleus_of(odds, top_p)
    assert left.nonzero()[:, 1].tolist() == sorted(kept) and torch.equal(left[left > 0], odds[left > 0])


def test_nucleus_draws_by_probability_and_seed():
    odds = torch.tensor([-30.0, -30.0, 0.0, 1.0, -1.0, -30.0])  # 2: 0.24, 3: 0.67, 4: 0.09
    step = lambda ids, rows: odds.expand(len(ids), -1)
    drawn = generate.nucleus(step, 2000, START, {END}, 2, top_p=0.9, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor(drawn)[:, 0]
    assert set(tokens.tolist()) == {2, 3}, "4 lies outside the nucleus"
    assert (tokens == 3).float().mean().item() == pytest.approx(0.731, abs=0.03)
    assert drawn == generate.nucleus(step, 2000, START, {END}, 2, top_p=0.9, generator=torch.Generator().manual_seed(0))
    cold = generate.nucleus(step, 50, START, {END}, 2, top_p=1.0, temperature=0.02, generator=torch.Generator().manual_seed(0))
    assert cold == [[3]] * 50
