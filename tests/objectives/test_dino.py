"""Self-distillation against loops written from DINO's algorithm 1."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal import recipe
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics
from tests.training.test_task import batch_for

SMALL = "{local_crops: 2, local_size: 32, hidden: 16, out: 24, teacher_temperature: 0.05, momentum: 0.9}"


def built_and_batch(tiny):
    torch.manual_seed(0)
    kwargs = "model.image.kwargs={depth: 1, dynamic_img_size: true}"
    built = task.build(recipe.read(tiny, [f"objectives={{dino: {SMALL}}}", kwargs, "data.image_size=64"])).eval()
    batch = batch_for(built, 4)
    side = {name: dict(view.options).get("image_size", 64) for name, view in built.views.items()}
    batch.images = {name: torch.randint(0, 255, (4, 3, s, s), dtype=torch.uint8) for name, s in side.items()}
    return built, batch


def test_equals_the_naive_loop(tiny):
    built, batch = built_and_batch(tiny)
    objective = built.objectives["dino"]
    objective.centre.copy_(torch.randn(24) / 10)
    with torch.no_grad():
        for p in objective.teacher_head.parameters():  # a teacher that is not the student
            p.add_(torch.randn_like(p) / 10)
    encoded = built.model.encode(batch, objective.needs)
    total, count = objective.pair_terms(built.model, batch, encoded)["dino"]
    assert list(objective.views) == ["dino.large_0", "dino.large_1", "dino.small_0", "dino.small_1"]
    by_hand, pairs = 0.0, 0
    for teacher_view in ("dino.large_0", "dino.large_1"):
        pooled = objective.teacher.module(batch.images[teacher_view])["pooled"]
        t = F.softmax((objective.teacher_head.module(pooled) - objective.centre) / 0.05, -1)
        for view in objective.views:
            if view == teacher_view:
                continue
            s = F.softmax(objective.head(built.model.image(batch.images[view])["pooled"]) / 0.1, -1)
            for b in range(4):
                by_hand += -sum(t[b, k].item() * math.log(s[b, k].item()) for k in range(24))
                pairs += 1
    assert count.item() == pairs == 24
    assert total.item() == pytest.approx(by_hand, rel=1e-4)


def test_teacher_takes_no_gradient_and_follows(tiny):
    built, batch = built_and_batch(tiny)
    objective = built.objectives["dino"]
    before = objective.teacher_head.module.prototypes.clone()
    logits = [objective.teacher_head(objective.teacher(batch.images[v])["pooled"]) for v in objective.large]
    objective.pair_terms(built.model, batch, built.model.encode(batch, objective.needs))["dino"][0].backward()
    assert all(p.grad is None for t in (objective.teacher, objective.teacher_head) for p in t.parameters())
    assert all(p.grad is not None for p in objective.head.parameters())
    with torch.no_grad():
        objective.head.prototypes.add_(1.0)
    objective.steps = 100
    objective.after_step(built.model, 50)
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi / 2) + 1) / 2
    assert torch.allclose(objective.teacher_head.module.prototypes - before, torch.full_like(before, 1 - momentum), atol=1e-5)
    assert torch.allclose(objective.centre, 0.1 * torch.cat(logits).mean(0), atol=1e-5), "a running mean, from zero"
    targets = F.softmax(torch.cat(logits) / 0.05, -1)
    assert objective.figures["dino_entropy"].item() == pytest.approx(-(targets * targets.log()).sum(1).mean().item(), rel=1e-4)
    mean = targets.mean(0)
    assert objective.figures["dino_entropy_of_mean"].item() == pytest.approx(-(mean * mean.log()).sum().item(), rel=1e-4)


def test_temperature_warms_up_and_prototypes_wait(tiny):
    built, batch = built_and_batch(tiny)
    objective = built.objectives["dino"]
    objective.warmup, objective.freeze_prototypes = 10, 2
    assert objective.teacher_temperature == pytest.approx(0.04)
    objective.step.fill_(5)
    assert objective.teacher_temperature == pytest.approx(0.045)
    for step, learns in ((1, False), (2, True)):
        objective.step.fill_(step)
        built.zero_grad()
        objective.pair_terms(built.model, batch, built.model.encode(batch, objective.needs))["dino"][0].backward()
        assert (objective.head.prototypes.grad.abs().max() > 0).item() is learns


def test_beside_contrastive_and_resumed(tiny, tmp_path):
    said = [
        f"objectives={{contrastive: {{}}, dino: {SMALL}}}",
        "model.image.kwargs={depth: 1, dynamic_img_size: true}",
        "train.checkpoint_every=2",
    ]
    whole, part = tmp_path / "whole", tmp_path / "part"
    for out in (whole, part):
        fit(recipe.read(tiny, [*said, f"out={out}"]))
    line = metrics(whole)[-1]
    assert line["loss"] == pytest.approx(line["contrastive"] + line["dino"], rel=1e-5)
    assert 0 < line["dino_entropy"] <= math.log(24) + 1e-4
    (part / "checkpoints" / "step-000004" / "state.json").unlink()
    fit(recipe.read(tiny, [*said, f"out={part}"]), resume=True)
    assert [m["loss"] for m in metrics(part)] == [m["loss"] for m in metrics(whole)]
