"""NT-Xent against a loop written from SimCLR's algorithm 1."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal import pairwise, recipe
from crossmodal.errors import UserError
from crossmodal.objectives.simclr import SimCLR
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics


def naive(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    """Chen et al. 2020, algorithm 1: z_{2k-1} and z_{2k} are the views of picture k."""
    z = [v for pair in zip(a, b, strict=True) for v in pair]
    s = lambda i, j: float(z[i] @ z[j]) / temperature
    n = len(a)
    loss = lambda i, j: -s(i, j) + math.log(sum(math.exp(s(i, k)) for k in range(2 * n) if k != i))
    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("tile", [1, 30, 2**22])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_naive_loop(tile, temperature, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(7, 5), dim=1).requires_grad_() for _ in range(2))
    loss = SimCLR(temperature=temperature).batch_terms({"a": a, "b": b}, {})["simclr"]
    assert loss.shape == () and loss.item() == pytest.approx(naive(a.detach(), b.detach(), temperature), rel=1e-5)
    ours = torch.autograd.grad(loss, (a, b))
    z = torch.cat((a, b))
    scores = (z @ z.T / temperature).masked_fill(torch.eye(14, dtype=torch.bool), -torch.inf)
    dense = F.cross_entropy(scores, torch.arange(14).roll(7))  # the form of SimCLR's own code
    for x, y in zip(ours, torch.autograd.grad(dense, (a, b)), strict=True):
        assert torch.allclose(x, y, atol=1e-6)


def test_the_head_is_slips():
    class Tower:
        width = 12

    class Model:
        image = Tower()

    hidden = {"none": "Linear ReLU", "synced": "Linear SyncedBatchNorm ReLU"}
    for norm, layers in hidden.items():
        objective = SimCLR(norm=norm)
        objective.attach(Model(), 0)
        assert " ".join(type(m).__name__ for m in objective.head) == f"{layers} {layers} Linear"
        assert [m.out_features for m in objective.head if hasattr(m, "out_features")] == [4096, 4096, 256]
    z = objective._project(torch.randn(4, 12))
    assert torch.allclose(z.norm(dim=1), torch.ones(4))


def test_slip_is_two_names_in_a_recipe(tiny, tmp_path):
    both = ["objectives.simclr={weight: 1.0, hidden: 32, out: 16}", "data.augment={crop: null}"]
    fit(recipe.read(tiny, [*both, f"out={tmp_path / 'run'}"]))
    line = metrics(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(line["contrastive"] + line["simclr"], rel=1e-5)
    built = task.build(recipe.read(tiny, both))
    assert set(built.views) == {"image", "text", "simclr.a", "simclr.b"}


def test_synced_norm_is_refused_under_micro_batches(tiny, tmp_path):
    said = recipe.read(tiny, ["objectives.simclr={norm: synced, hidden: 8}", "data.micro_batch=4", f"out={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"objectives\.simclr needs the whole batch at once .*data\.micro_batch"):
        fit(said)
