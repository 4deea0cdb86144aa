"""Probes against figures known beforehand, and a loop."""

import json
import math

import pytest
import torch

from crossmodal import probe, recipe
from crossmodal.cli import main
from crossmodal.data.sources import open_source
from crossmodal.errors import UserError


def clouds(per_class: int, spread: float, seed: int = 0, classes: int = 5, width: int = 16):
    """Pictures' features around their class's own direction."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat(per_class)
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_halves_take_every_other_picture_of_each_class():
    a, b = probe.halves(torch.tensor([3, 3, 7, 3, 7, 7, 3, 5]))
    assert a.tolist() == [0, 2, 3, 5, 7] and b.tolist() == [1, 4, 6]


def test_knn_equals_a_loop():
    (x, labels), (y, wanted) = clouds(8, 1.2), clouds(6, 1.2, seed=1)
    right = 0
    for row, label in zip(y, wanted, strict=True):
        cosines = [torch.dot(row, other).item() / (row.norm() * other.norm()).item() for other in x]
        near = sorted(range(len(x)), key=lambda n: -cosines[n])[:7]
        votes = [sum(math.exp(cosines[n] / 0.1) for n in near if labels[n] == c) for c in range(5)]
        right += votes.index(max(votes)) == label.item()
    assert 0.3 < right / len(y) < 1.0, "neither trivial nor hopeless"
    assert probe.knn(x, labels, y, wanted, k=7, temperature=0.1) == pytest.approx(right / len(y))


def test_left_out_does_not_see_itself():
    x = torch.eye(6) + 0.01  # all equally far from one another: itself would be the nearest
    assert probe.knn_left_out(x, torch.tensor([0, 1, 2, 3, 4, 5]), k=5) == 0.0
    assert probe.knn_left_out(*clouds(8, 0.1)) == 1.0


def test_linear_probe_finds_what_is_linear_and_nothing_in_noise():
    (x, labels), (y, wanted) = clouds(20, 0.8), clouds(20, 0.8, seed=1)
    assert probe.linear(x, labels, y, wanted) > 0.95
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert probe.linear(x, shuffled, y, wanted) < 0.5
    weight, bias = probe._regress(x, labels, 0.01)
    moved = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    (torch.nn.functional.cross_entropy(x @ moved[0].T + moved[1], labels) + 0.005 * moved[0].square().sum()).backward()
    assert all(m.grad.abs().max() < 1e-3 for m in moved), "a minimum"


def test_features_of_a_source(tiny, class_folder, pairs):
    from crossmodal.model import Model

    model = Model(recipe.read(tiny).model, 32)
    x, labels = probe.features(model.image, open_source(f"folder:{class_folder}"), model.eval_view())
    assert x.shape == (12, model.image.width) and labels.bincount().tolist() == [3, 3, 3, 3]
    with pytest.raises(UserError, match="has no label"):
        probe.features(model.image, open_source(str(pairs)), model.eval_view())


def test_a_teacher_is_scored_while_it_trains(tiny, class_folder, tmp_path):
    small = "objectives={dino: {local_crops: 1, local_size: 32, hidden: 16, out: 24}}"
    out = tmp_path / "run"
    assert main(["train", str(tiny), small, f"data.val=folder:{class_folder}", f"out={out}", "eval.every=2"]) == 0
    evals = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evals] == [2, 4] and all(0 <= e["dino_teacher_knn"] <= 1 for e in evals)
