"""A recipe is a promise: every packaged one trains for two steps, with its own towers, on a little data."""

import pytest

from crossmodal import recipe, resources
from crossmodal.training.loop import fit
from tests.conftest import metrics

CLUSTER = 1024  # pairs in a batch: a recipe for more has towers whose checkpoints alone take a while to write
EACH = [
    pytest.param(name, marks=pytest.mark.slow) if recipe.read(name).data.batch_size > CLUSTER else name
    for name in resources.listed("recipes")
]


@pytest.mark.parametrize("name", EACH)
def test_every_packaged_recipe_trains_for_two_steps(name, tmp_path, pairs):
    said = recipe.read(name)
    little = [f"data.train={said.data.train}?limit=8" if said.data.train else f"data.train={pairs}", "data.val=null"]
    small = ["data.batch_size=4", "data.workers=0", "train.steps=2", "optim.warmup=1", "train.trackers=[]"]
    fit(recipe.read(name, [*little, *small, f"out={tmp_path / 'run'}"]))
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2 and all(line["loss"] == line["loss"] for line in lines)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", resources.listed("recipes"))
def test_every_header_says_what_to_expect_and_how(name):
    text = resources.resource("recipes", name).read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("crossmodal train" in line or "-m crossmodal train" in line for line in header), "the command"
    assert any("%" in line for line in header), "the result"


def test_small_twins_differ_in_their_objectives_alone():
    """What the ablation compares: the same towers, data and optimiser; a pooler and decoder where there is something to say."""
    twins = {name: recipe.read(name).model_dump() for name in resources.listed("recipes") if name.endswith("_small")}
    assert set(twins) == {f"{n}_small" for n in ("clip", "siglip", "slip", "coca", "mae_clip", "dino_clip")}
    assert len({str(t.pop("objectives")) for t in twins.values()}) == 6
    for name, twin in twins.items():
        assert twin.pop("out") == f"runs/{name}"
        assert (twin["model"].pop("decoder") is None) == (twin["model"].pop("pooler") is None) == (name != "coca_small")
    assert len({str(t) for t in twins.values()}) == 1
