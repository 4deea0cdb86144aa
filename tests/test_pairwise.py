"""Tiles against the whole matrix, in value and gradient; and the positives of a batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal import pairwise


def inputs(n: int, scale: float, dtype=torch.float32):
    torch.manual_seed(0)
    x, y = (F.normalize(torch.randn(n, 16, dtype=dtype), dim=1).requires_grad_() for _ in range(2))
    return x, y, torch.tensor([math.log(scale)], dtype=dtype, requires_grad=True), torch.tensor([-2.0], dtype=dtype, requires_grad=True)


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
@pytest.mark.parametrize("tile", [1, 50, 190, 2**22], ids=lambda t: f"tile{t}")
def test_tiles_equal_the_matrix(scale, tile, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    x, y, t, b = inputs(37, scale)
    weights = torch.linspace(-1, 2, 37)
    logits = t.exp() * x @ y.T
    own = (logits.diagonal() * weights.square()).sum()
    dense = gradients((logits.logsumexp(1) * weights).sum() + (logits.logsumexp(0) * weights.flip(0)).sum() + own, x, y, t)
    sums = pairwise.log_sum_exp(x, y, t)
    own = (sums.own * weights.square()).sum()
    ours = gradients((sums.rows * weights).sum() + (sums.columns * weights.flip(0)).sum() + own, x, y, t)
    for a, r in zip(ours, dense, strict=True):
        assert torch.allclose(a, r, rtol=1e-5, atol=1e-5 * r.abs().max().item())
    assert torch.equal(sums.row_hits, logits.diagonal() >= logits.amax(1)) and torch.equal(
        sums.column_hits, logits.diagonal() >= logits.amax(0)
    )
    dense = gradients(F.softplus(t.exp() * x @ y.T + b).sum(), x, y, t, b)
    for a, r in zip(gradients(pairwise.softplus(x, y, t, b), x, y, t, b), dense, strict=True):
        assert torch.allclose(a, r, rtol=1e-5, atol=1e-5 * r.abs().max().item())


@pytest.mark.parametrize("tile", [40, 2**22])
def test_gradients_equal_finite_differences(tile, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    x, y, t, b = inputs(9, 5.0, torch.double)
    assert torch.autograd.gradcheck(lambda *a: pairwise.log_sum_exp(*a)[:3], (x, y, t))
    assert torch.autograd.gradcheck(pairwise.softplus, (x, y, t, b))


def test_sums_are_made_in_fp32_under_autocast():
    x, y, t, b = inputs(37, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = pairwise.log_sum_exp(x, y, t).rows, pairwise.softplus(x, y, t, b)
    assert torch.equal(inside[0], pairwise.log_sum_exp(x, y, t).rows) and torch.equal(inside[1], pairwise.softplus(x, y, t, b))
    half = pairwise.log_sum_exp(x.bfloat16(), y.bfloat16(), t).rows
    assert half.dtype == torch.float32


def test_positives_are_own_pairs_and_equal_pictures_or_texts():
    image, text = torch.tensor([5, 1, 5, 2, 3, 3]), torch.tensor([7, 7, 8, 9, 4, 4])
    matrix = (image[:, None] == image) | (text[:, None] == text)
    y = torch.randn(6, 3)
    positives = pairwise.Positives(6, image, text)
    assert torch.allclose(positives.sum(y), matrix.float() @ y, atol=1e-6)
    assert torch.equal(positives.count, matrix.sum(1).float())
    alone = pairwise.Positives(6, torch.arange(6), torch.arange(6))
    assert alone.sum(y) is y and alone.count == 1


def test_columns_far_below_their_rows_keep_their_digits():
    """Rows with a score of 100 and columns of -100: exponentials that the rows' sums can do without."""
    x = F.normalize(torch.tensor([[1.0, 0.0], [0.999, 0.01], [0.6, 0.8], [1.0, 0.02]], dtype=torch.float32), dim=1)
    y = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.05], [-0.9, 0.1], [0.0, 1.0]], dtype=torch.float32), dim=1)
    t = torch.tensor([math.log(100.0)])
    logits = 100 * x @ y.T
    ours = pairwise.log_sum_exp(x, y, t)
    assert logits.min() < -99 and logits.max() > 99
    assert torch.allclose(ours.rows, logits.logsumexp(1), atol=1e-4) and torch.allclose(ours.columns, logits.logsumexp(0), atol=1e-4)
