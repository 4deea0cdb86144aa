"""The tower's own loss as a term: its mean over the batch, the same over micro-batches; refused where there is none."""

import pytest
import torch

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics
from tests.towers.test_lavit import SMALL

LAVIT = [f"model.image={{tower: 'lavit:tiny', kwargs: {SMALL}}}", "data.image_size=64", "objectives.auxiliary={weight: 0.5}"]


def test_micro_batches_give_the_same_terms_and_weights(tiny, tmp_path):
    runs = [fit(recipe.read(tiny, [*LAVIT, *more, f"out={tmp_path / name}"])) for name, more in (("a", []), ("b", ["data.micro_batch=4"]))]
    for a, b in zip(*map(metrics, runs), strict=True):
        assert a["auxiliary"] == pytest.approx(b["auxiliary"], abs=1e-5) and a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["loss"] == pytest.approx(a["contrastive"] + 0.5 * a["auxiliary"], abs=1e-5)


def test_a_tower_without_a_loss_is_refused(tiny):
    with pytest.raises(UserError, match=r"model\.image: the tower cannot give 'loss'"):
        task.build(recipe.read(tiny, ["objectives.auxiliary={}"]))


def test_a_frozen_tower_is_refused(tiny):
    with pytest.raises(UserError, match=r"objectives\.auxiliary: model\.image is frozen"):
        task.build(recipe.read(tiny, [LAVIT[0].replace("}}", "}, freeze: true}"), *LAVIT[1:]]))


def test_unread_it_is_not_computed():
    from crossmodal.recipe import ImagePart
    from crossmodal.towers import build_image

    made = build_image(ImagePart(tower="lavit:tiny", kwargs=SMALL), 64).train()
    pictures = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert "loss" not in made(pictures)
    made.require({"loss"})
    assert made(pictures)["loss"].shape == (1,)
