"""The blocked cross-entropy of words is PyTorch's, in value and gradients, and holds a block at a time."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal import words


def both(dtype, needs=(True, True), count=37, width=12, vocabulary=50):
    made = torch.Generator().manual_seed(0)
    target = torch.randint(vocabulary, (count,), generator=made)
    sides = []
    for loss in (words.cross_entropy, lambda h, w, t: F.cross_entropy(F.linear(h, w), t, reduction="sum")):
        start = torch.Generator().manual_seed(1)
        hidden = (3 * torch.randn(count, width, generator=start, dtype=torch.float64)).to(dtype).requires_grad_(needs[0])
        weight = torch.randn(vocabulary, width, generator=start, dtype=torch.float64).to(dtype).requires_grad_(needs[1])
        value = loss(hidden, weight, target)
        (0.3 * value).backward()
        sides.append((value.detach(), hidden.grad, weight.grad))
    return sides


@pytest.mark.parametrize("block", [1, 700, 2**24])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_value_and_gradients(monkeypatch, block, dtype, limit):
    monkeypatch.setattr(words, "BLOCK", block)
    for mine, theirs in zip(*both(dtype), strict=True):
        assert mine.dtype == theirs.dtype and torch.allclose(mine, theirs, atol=limit, rtol=limit)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_what_is_frozen_gets_no_gradient(needs):
    for mine, theirs in zip(*both(torch.float64, needs), strict=True):
        assert (mine is None) == (theirs is None) and (mine is None or torch.allclose(mine, theirs))


def test_large_scores_do_not_overflow():
    hidden = torch.full((2, 4), 100.0, requires_grad=True)
    weight = torch.stack([torch.full((4,), 10.0), torch.zeros(4), torch.full((4,), -10.0)])
    value = words.cross_entropy(hidden, weight, torch.tensor([0, 1]))
    assert value.item() == pytest.approx(4000)
    value.backward()
    assert torch.isfinite(hidden.grad).all()


def test_under_autocast_it_is_no_less_exact():
    made = torch.Generator().manual_seed(0)
    hidden, weight, target = (
        torch.randn(64, 32, generator=made),
        torch.randn(500, 32, generator=made),
        torch.randint(500, (64,), generator=made),
    )
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), target, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        mine = words.cross_entropy(hidden, weight, target)
        theirs = F.cross_entropy(F.linear(hidden, weight).float(), target, reduction="sum")
    assert mine.dtype == torch.float32
    assert abs(mine - exact) <= abs(theirs - exact) + 1e-3
