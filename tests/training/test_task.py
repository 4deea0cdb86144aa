"""The contract from outside: an out-of-tree objective with batch, pair and scalar parts, named by a dotted path."""

import pytest
import torch

from crossmodal import recipe
from crossmodal.batch import Batch
from crossmodal.errors import UserError
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics


def batch_for(built: task.Task, n: int = 6) -> Batch:
    images = torch.randint(0, 255, (n, 3, 32, 32), dtype=torch.uint8)
    texts = built.model.text.tokenize([f"number {i}" for i in range(n)])
    return Batch({"image": images}, {"text": texts}, torch.arange(n), torch.arange(n))


def test_weights_scale_the_terms_and_stand_in_the_recipe_only(tiny):
    losses = []
    for weight in (1.0, 0.5):
        torch.manual_seed(0)
        built = task.build(recipe.read(tiny, [f"objectives.contrastive.weight={weight}"]))
        torch.manual_seed(1)
        loss, terms = built.loss(task.Outputs(*built(batch_for(built))))
        losses.append((loss.item(), terms["contrastive"].item()))
    assert losses[1][0] == pytest.approx(0.5 * losses[0][0], rel=1e-6)
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-6)


def test_an_objective_from_outside_takes_one_file(tiny, tmp_path):
    name = "tests.objectives.triplet"
    tiny.write_text(
        tiny.read_text().replace("  contrastive: {weight: 1.0}\n", f"  contrastive: {{}}\n  {name}: {{weight: 2.0, margin: 0.3}}\n")
    )
    said = recipe.read(tiny, [f"out={tmp_path / 'run'}", "data.val=null"])
    built = task.build(said)
    loss, terms = built.loss(task.Outputs(*built(batch_for(built))))
    assert set(terms) == {"contrastive", "triplet", "length"}
    assert loss.item() == pytest.approx(terms["contrastive"].item() + 2 * (terms["triplet"] + terms["length"]).item(), rel=1e-5)
    loss.backward()
    assert built.objectives["tests_objectives_triplet"].slope.grad is not None
    fit(said)
    assert {"contrastive", "triplet", "length"} <= metrics(tmp_path / "run")[-1].keys()
    with pytest.raises(UserError, match=r"unknown key 'objectives.tests.objectives.triplet.marign'; did you mean 'margin'"):
        recipe.check({**said.model_dump(), "objectives": {name: {"marign": 1}}})


def test_objectives_that_want_different_starts_are_refused(tiny):
    said = recipe.read(tiny)
    said.objectives["tests.objectives.triplet"] = {"start": 10.0}
    with pytest.raises(UserError, match=r"wants logit_scale to start at 10, another at 14.2857"):
        task.build(said)


def test_the_learning_rate_falls_with_depth(tiny):
    from crossmodal.training import optim

    said = recipe.read(tiny, ["model.image.kwargs={depth: 3}", "model.image.layer_decay=0.5", "model.text.lr_scale=0.1", "optim.lr=1.0e-3"])
    built = task.build(said)
    rates = {id(p): round(1000 * group["lr"], 6) for group in optim.groups(built, said.optim) for p in group["params"]}
    vit = built.model.image.model
    of = lambda module: {rates[id(p)] for p in module.parameters()}
    assert of(vit.patch_embed) == {1 / 16} and rates[id(vit.pos_embed)] == 1 / 16
    assert [of(block) for block in vit.blocks] == [{1 / 8}, {1 / 4}, {1 / 2}]
    assert of(vit.norm) == of(built.model.image_projection) == {rates[id(built.model.logit_scale)]} == {1}
    assert of(built.model.text) == {0.1}
    assert len(rates) == sum(p.requires_grad for p in built.parameters())
