"""Masked reconstruction against loops written from the paper's text and figure."""

import pytest
import torch

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.objectives.mae import patchify
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics
from tests.training.test_task import batch_for

SMALL = "objectives={mae: {width: 32, depth: 1, heads: 2}}"


def built_and_batch(tiny, *more):
    torch.manual_seed(0)
    built = task.build(recipe.read(tiny, [SMALL, "data.image_size=64", *more])).eval()
    batch = batch_for(built, 5)
    batch.images = {"mae.image": torch.randint(0, 255, (5, 3, 64, 64), dtype=torch.uint8)}
    batch.seeds = torch.arange(5) * 7919
    return built, batch


def test_patches_are_cut_as_in_the_paper():
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    ours = patchify(images, 2)
    assert ours.shape == (2, 6, 12)
    for n, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        patch = images[:, :, row : row + 2, column : column + 2]
        assert torch.equal(ours[:, n], patch.permute(0, 2, 3, 1).flatten(1)), "pixels before channels"


def test_loss_is_the_mean_square_over_hidden_patches_alone(tiny):
    built, batch = built_and_batch(tiny)
    objective, tower = built.objectives["mae"], built.model.image
    seen = {}
    objective.predict.register_forward_hook(lambda m, i, out: seen.update(prediction=out.detach()))
    total, count = objective.pair_terms(built.model, batch, {"mae.image:pixels": batch.images["mae.image"]})["mae"]
    kept, hidden = objective.hide(batch, torch.device("cpu"))
    assert kept.shape == (5, 4) and hidden.sum(1).tolist() == [12] * 5, "a quarter of 16 patches is kept"
    assert count.item() == objective.pair_counts(batch)["mae"].item() == 60
    pixels, by_hand = tower.normalise(batch.images["mae.image"]), 0.0
    for b in range(5):
        for t in range(16):
            row, column = divmod(t, 4)
            patch = pixels[b, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].permute(1, 2, 0).flatten()
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            if t not in kept[b].tolist():
                by_hand += (seen["prediction"][b, t] - target).square().mean().item()
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_tower_sees_kept_patches_only(tiny):
    built, batch = built_and_batch(tiny)
    objective = built.objectives["mae"]
    predictions = []
    objective.predict.register_forward_hook(lambda m, i, out: predictions.append(out.detach()))
    images = batch.images["mae.image"]
    kept, hidden = objective.hide(batch, images.device)
    changed = images.clone()
    for b, t in hidden.nonzero().tolist():
        row, column = divmod(t, 4)
        changed[b, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 7
    for pictures in (images, changed):
        objective.pair_terms(built.model, batch, {"mae.image:pixels": pictures})
    assert torch.equal(*predictions)
    assert built.model.image.tokens_of(images, kept).shape == (5, 4, built.model.image.token_width)
    assert built.model.image.patches.keep is None


def test_the_mask_follows_the_row(tiny):
    built, batch = built_and_batch(tiny)
    objective = built.objectives["mae"]
    whole = objective.hide(batch, torch.device("cpu"))[0]
    assert torch.equal(whole[3:], objective.hide(batch.split(3)[1], torch.device("cpu"))[0])
    assert len({tuple(r) for r in whole.tolist()}) == 5


def test_features_of_a_teacher_are_a_target_without_gradient(tiny):
    built, batch = built_and_batch(tiny, "objectives.mae.target=features")
    objective, tower = built.objectives["mae"], built.model.image
    with torch.no_grad():
        for p in objective.teacher.parameters():  # a teacher that is not the student
            p.add_(torch.randn_like(p) / 10)
    before = [p.clone() for p in objective.teacher.parameters()]
    seen = {}
    objective.predict.register_forward_hook(lambda m, i, out: seen.update(prediction=out.detach()))
    total, _ = objective.pair_terms(built.model, batch, {"mae.image:pixels": batch.images["mae.image"]})["mae"]
    total.backward()
    tokens, (_, hidden) = objective.teacher.module(batch.images["mae.image"])["tokens"], objective.hide(batch, torch.device("cpu"))
    target = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True) + 1e-6).sqrt()
    assert total.item() == pytest.approx((seen["prediction"] - target).square().mean(-1)[hidden].sum().item(), rel=1e-5)
    assert all(p.grad is None for p in objective.teacher.parameters()) and any(p.grad is not None for p in tower.parameters())
    with torch.no_grad():
        for p in tower.parameters():
            p.add_(1.0)
    objective.after_step(built.model, 1)
    for own, old, student in zip(objective.teacher.parameters(), before, tower.parameters(), strict=True):
        assert torch.allclose(own, 0.996 * old + 0.004 * student, atol=1e-6)
    objective.teacher.train()
    assert not objective.teacher.module.training


def test_beside_contrastive_and_refused_without_patches(tiny, tmp_path):
    both = "objectives={contrastive: {}, mae: {width: 32, depth: 1, heads: 2, mask: 0.5}}"
    fit(recipe.read(tiny, [both, "data.image_size=64", f"out={tmp_path / 'run'}"]))
    line = metrics(tmp_path / "run")[-1]
    assert line["loss"] == pytest.approx(line["contrastive"] + line["mae"], rel=1e-5)
    with pytest.raises(UserError, match="which this image tower does not have; take a ViT"):
        task.build(recipe.read(tiny, [SMALL, "model.image.tower=timm:test_resnet", "model.image.kwargs={}"]))
    with pytest.raises(UserError, match=r"objectives\.mae\.mask is 1; it is a share between 0 and 1"):
        task.build(recipe.read(tiny, ["objectives={mae: {mask: 1.0}}"]))
