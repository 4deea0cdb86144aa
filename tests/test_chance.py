"""Chance by row: uniform, the same however rows are grouped, and different by view, salt and step."""

import torch
from torch import nn

from crossmodal import chance


def seeds(step: int = 3, n: int = 64) -> torch.Tensor:
    return torch.tensor([chance.seed_of(0, step, row) for row in range(n)])


def test_numbers_are_uniform():
    numbers = chance.from_seeds(seeds(n=400), 500, salt=1).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    expected = numbers.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-squared, 19 degrees of freedom: p = 0.0007
    pairs = torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten()))
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.01
    across = torch.stack((numbers[:-1].flatten(), numbers[1:].flatten()))
    assert torch.corrcoef(across)[0, 1].abs() < 0.01


def test_rows_draw_for_themselves():
    drop, patches = chance.DropPath(0.5, salt=1), chance.PatchDropout(0.5, prefix=1, salt=2)
    x = torch.randn(64, 9, 4)
    with chance.rows(seeds(), "image"):
        whole = drop(x), patches(x)
    for part in (slice(0, 5), slice(40, 64)):
        with chance.rows(seeds()[part], "image"):
            assert torch.equal(drop(x[part]), whole[0][part]) and torch.equal(patches(x[part]), whole[1][part])
    assert whole[1].shape == (64, 5, 4) and torch.equal(whole[1][:, 0], x[:, 0])
    with chance.rows(seeds(), "other view"):
        assert not torch.equal(drop(x), whole[0])
    with chance.rows(seeds(step=4), "image"):
        assert not torch.equal(drop(x), whole[0]) and not torch.equal(patches(x), whole[1])
    kept = (whole[0].abs().sum((1, 2)) > 0).float().mean()
    assert 0.3 < kept < 0.7
    assert torch.allclose(whole[0][whole[0] != 0], 2 * x[whole[0] != 0])
    assert torch.equal(drop.eval()(x), x) and torch.equal(patches.eval()(x), x)


def test_what_is_computed_again_draws_the_same():
    drop = chance.DropPath(0.5, salt=1)
    x = torch.ones(64, 3, requires_grad=True)
    with chance.rows(seeds(), "a"):
        out = torch.utils.checkpoint.checkpoint(lambda x: drop(x.sin()), x, use_reentrant=False, context_fn=chance.again)
    with chance.rows(seeds(), "b"):
        out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


def test_modules_are_replaced_with_salts_of_their_own():
    tower = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 2)))
    chance.by_row(tower, lambda m: isinstance(m, nn.Dropout), lambda m, salt: chance.DropPath(m.p, salt))
    first, second = tower[0], tower[1][0]
    assert (first.p, second.p) == (0.1, 0.2) and first.salt != second.salt
