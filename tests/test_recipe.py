"""The recipe is loud: every mistake is one sentence with its line and the nearest key."""

import json

import jsonschema
import pytest
import yaml

from crossmodal import recipe, resources
from crossmodal.errors import UserError

PACKAGED = resources.listed("recipes")


def test_every_packaged_recipe_is_valid_and_a_promise():
    assert {"emoji", "flickr8k"} <= set(PACKAGED)
    for name in PACKAGED:
        recipe.read(name, ["data.train=x.csv"])
        first = resources.resource("recipes", name).read_text().splitlines()[0]
        assert first.startswith("# "), f"{name} should begin with a line that says what it promises"


def test_overrides_reach_every_depth(tiny):
    said = recipe.read(
        tiny, ["objectives.contrastive.weight=0.5", "optim.lr=1e-4", "data.train=wds:a/{00..01}.tar", "eval.templates=['{}']"]
    )
    assert said.objectives["contrastive"]["weight"] == 0.5
    assert said.optim.lr == 1e-4
    assert said.data.train == "wds:a/{00..01}.tar"
    assert said.eval.templates == ["{}"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("warmup", "warm_up"), "line 12: unknown key 'optim.warm_up'; did you mean 'warmup'?"),
        (("steps: 4", "steps: many"), "line 13: train.steps: input should be a valid integer"),
        (("contrastive:", "contrastiv:"), "there is no objective called 'contrastiv'; did you mean 'contrastive'?"),
        (("{weight: 1.0}", "{weigth: 1.0}"), "line 10: unknown key 'objectives.contrastive.weigth'; did you mean 'weight'?"),
        (("{weight: 1.0}", "{weight: heavy}"), "line 10: objectives.contrastive.weight: input should be a valid number"),
        (("  contrastive: {weight: 1.0}\n", "  {}\n"), "line 9: objectives is empty"),
        (("warmup: 2", "warmup: 4"), "line 12: optim.warmup is 4, but train.steps is only 4"),
        (("[0.6, 1.0]", "[1.0, 0.6]"), "data.augment.crop is [1.0, 0.6]"),
        (("timm:test_vit", "timm:test_vit, towre: x"), "line 4: unknown key 'model.image.towre'; did you mean 'tower'?"),
        (("data:", "data"), "not valid YAML"),
        (("train: {steps", "train: {steps: 3}\ntrain: {steps"), "train is said twice"),
        (("out: runs/tiny\n", ""), "out is missing"),
    ],
)
def test_a_mistake_is_one_sentence(tiny, change, sentence):
    tiny.write_text(tiny.read_text().replace(*change))
    with pytest.raises(UserError) as caught:
        recipe.read(tiny)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    if "there is no objective" not in sentence:
        assert str(caught.value).startswith(str(tiny))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "'optim.lrr=1': unknown key 'optim.lrr'; did you mean 'lr'?"),
        ("optim.lr=fast", "'optim.lr=fast': optim.lr: input should be a valid number"),
        ("optim.lr", "is not an override; write key=value"),
        ("seed.of=1", "seed is not a mapping"),
        ("eval.every=5 data.val=null", None),
    ],
)
def test_a_wrong_override_names_itself(tiny, override, sentence):
    tiny.write_text("seed: 0\n" + tiny.read_text())
    with (
        pytest.raises(UserError, match=r"neither data.val nor eval.benchmarks") if sentence is None else pytest.raises(UserError) as caught
    ):
        recipe.read(tiny, override.split(" "))
    assert sentence is None or sentence in str(caught.value)


def test_no_such_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"emojy: no such file.*did you mean 'emoji'"):
        recipe.read("emojy")


def test_saved_recipe_reads_back_as_itself(tiny, tmp_path):
    said = recipe.read(tiny)
    (tmp_path / "saved.yaml").write_text(said.yaml(), encoding="utf-8")
    assert recipe.read(tmp_path / "saved.yaml") == said


def test_schema_accepts_the_packaged_recipes_and_knows_objectives():
    schema = json.loads(recipe.dump_schema())
    assert "weight" in schema["properties"]["objectives"]["properties"]["contrastive"]["properties"]
    for name in PACKAGED:
        jsonschema.validate(yaml.safe_load(resources.resource("recipes", name).read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"out": "x", "objectives": {}, "modle": {}}, schema)
