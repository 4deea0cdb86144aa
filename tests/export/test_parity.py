"""Out and in: library × direction × both towers, the largest difference of an embedding's entry at most 1e-5."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from crossmodal import recipe
from crossmodal.cli import main
from crossmodal.commands.exporting import stuck
from crossmodal.errors import UserError
from crossmodal.export import KINDS, TOLERANCE, export
from crossmodal.loading import load
from crossmodal.model import Model
from crossmodal.recipe import ImagePart, ModelPart, TextPart
from crossmodal.training.loop import fit
from tests.towers.test_towers import CONFIGS, MINILM, write_config

PROGRAM = str(Path(__file__).with_name("reader_program.py"))
TEXTS = ["a photo of a dog", "Two cats, one dog & a bird's nest!", "a"]
SMALL = {"layers": 2, "width": 64, "heads": 2}
VIT = ImagePart(tower="open_clip:ViT-B-32", kwargs={"layers": 2, "width": 64, "patch_size": 16})
WORDS = TextPart(tower="open_clip:ViT-B-32", context_length=20, kwargs=SMALL)
TIMM = ImagePart(tower="timm:test_vit", kwargs={"depth": 2})


def dual(folder, name):
    """A small dual encoder of transformers, as its users have it."""
    write_config(folder, CONFIGS[name])
    transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return [part(tower=f"hf:{folder}", projection="none") for part in (ImagePart, TextPart)]


def bert(folder):
    return TextPart(tower=f"hf:{write_config(folder, CONFIGS['bert'])}")


def none(part):
    return part.model_copy(update={"projection": "none"})


#: What is exported: (layout, image tower, text tower, what transformers calls it).
OUT = {
    "open_clip ← its own two halves": ("open_clip", lambda d: (VIT, WORDS)),
    "open_clip ← its own, with their projections": ("open_clip", lambda d: (none(VIT), none(WORDS))),
    "open_clip ← timm's network, transformers' text": (
        "open_clip",
        lambda d: (ImagePart(tower="timm:test_efficientnet"), TextPart(tower=f"hf:{MINILM}")),
    ),
    "CLIPModel ← open_clip's two halves": ("transformers", lambda d: (VIT, WORDS)),
    "CLIPModel ← open_clip's, with their projections": ("transformers", lambda d: (none(VIT), none(WORDS))),
    "CLIPModel ← a CLIPModel": ("transformers", lambda d: dual(d / "bert", "clip")),
    "SiglipModel ← a SiglipModel": ("transformers", lambda d: dual(d / "bert", "siglip")),
    "VisionTextDualEncoder ← timm's ViT, open_clip's text": ("transformers", lambda d: (TIMM, WORDS)),
    "VisionTextDualEncoder ← transformers' ConvNeXt, open_clip's text": (
        "transformers",
        lambda d: (
            ImagePart(tower="hf:convnext", pretrained=False, kwargs={"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]}),
            WORDS,
        ),
    ),
    "onnx ← timm's ViT, transformers' text": ("onnx", lambda d: (TIMM, bert(d / "bert"))),
    "onnx ← open_clip's two halves": ("onnx", lambda d: (VIT, WORDS)),
    "safetensors ← timm's ViT, transformers' text": ("safetensors", lambda d: (TIMM, bert(d / "bert"))),
}


def made(image, text, seed=0) -> Model:
    torch.manual_seed(seed)
    own = [part.projection == "none" for part in (image, text)]
    library = any(own) and image.tower.startswith("hf:")
    size = 160 if "efficientnet" in image.tower else 32
    width = json.loads((Path(image.tower.removeprefix("hf:")) / "config.json").read_text()).get("projection_dim", 32) if library else 0
    return Model(ModelPart(embed_dim=width or (512 if any(own) else 48), image=image, text=text), size).eval()


def test_out(tmp_path):
    """Every row by its own library in a process that has nothing of ours."""
    models, jobs = {}, []
    for number, (name, (kind, parts)) in enumerate(OUT.items()):
        room = tmp_path / str(number)
        room.mkdir()
        models[name] = model = made(*parts(room))
        for parameter in model.parameters():  # biases and norms that are not at their beginnings
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
        differences = export(model, kind, room / "out", lambda _: "# a card\n")
        assert max(differences.values()) <= TOLERANCE and (room / "out" / "README.md").read_text() == "# a card\n"
        pictures = torch.randint(0, 256, (3, 3, model.image_size, model.image_size), dtype=torch.uint8)
        np.savez(room / "out" / "in.npz", pictures=pictures.numpy(), texts=np.array(TEXTS))
        jobs.append(f"{kind}={room / 'out'}")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, PROGRAM, *jobs], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (name, model) in enumerate(models.items()):
        given, theirs = (np.load(tmp_path / str(number) / "out" / f"{which}.npz") for which in ("in", "out"))
        texts = model.encode_text(TEXTS)
        for half, ours in (("image", model.encode_image(torch.from_numpy(given["pictures"]))), ("text", texts)):
            assert np.abs(theirs[half] - ours.numpy()).max() <= TOLERANCE, (name, half)
        assert torch.cdist(texts, texts).fill_diagonal_(9).min() > 1e-3, name


@pytest.mark.parametrize("how", ["file", "folder"])
def test_in_from_open_clip(how, tmp_path):
    out = tmp_path / "out"
    export(made(none(VIT), none(WORDS)), "open_clip", out)
    library = open_clip.create_model(f"local-dir:{out}").eval()
    if how == "file":  # weights of a model that open_clip knows by name
        (tmp_path / "tiny-for-test.json").write_text(json.dumps(json.loads((out / "open_clip_config.json").read_text())["model_cfg"]))
        open_clip.add_model_config(tmp_path / "tiny-for-test.json")
        model = load(f"open_clip:tiny-for-test/{out / 'open_clip_model.safetensors'}")
    else:
        model = load(f"open_clip:{out}")
    assert same_as(model, library.encode_image, library.encode_text, open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS))
    assert model.logit_scale.item() == pytest.approx(library.logit_scale.item())


def test_a_folder_of_open_clip_is_trained_and_saved_whole(tiny, tmp_path):
    """What was read from the folder must not be needed to read the model again."""
    out = tmp_path / "out"
    export(made(none(VIT), none(WORDS)), "open_clip", out)
    halves = [f"model.{half}={{tower: 'open_clip:{out}', projection: none}}" for half in ("image", "text")]
    run = fit(recipe.read(tiny, [*halves, "model.embed_dim=512", f"out={tmp_path / 'run'}", "train.steps=3"]))
    before = load(run).encode_text(TEXTS)
    shutil.rmtree(out)
    again = load(run)
    assert (
        torch.equal(again.encode_text(TEXTS), before) and again.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).isfinite().all()
    )


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_in_from_transformers(name, tmp_path):
    dual(tmp_path / name, name)
    library, model = transformers.AutoModel.from_pretrained(tmp_path / name).eval(), load(f"hf:{tmp_path / name}")
    image = lambda x, normalize: F.normalize(library.get_image_features(pixel_values=x).pooler_output, dim=-1)
    text = lambda x, normalize: F.normalize(library.get_text_features(input_ids=x).pooler_output, dim=-1)
    assert same_as(model, image, text, model.text.tokenize(TEXTS, trimmed=False))
    assert model.logit_scale.item() == pytest.approx(library.logit_scale.item())


def test_in_from_timm(tmp_path):
    library = timm.create_model("test_vit", num_classes=0, depth=2, img_size=32).eval()
    save_file(library.state_dict(), tmp_path / "w.safetensors")
    model = made(TIMM.model_copy(update={"pretrained": str(tmp_path / "w.safetensors")}), WORDS)
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert (model.image(pictures)["pooled"] - library(model.image.normalise(pictures))).abs().max() <= TOLERANCE


def same_as(model, image, text, ids) -> bool:
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        a = model.encode_image(pictures) - image(model.image.normalise(pictures), normalize=True)
        b = model.encode_text(TEXTS) - text(ids, normalize=True)
    return max(a.abs().max(), b.abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    ("image", "text", "kind", "sentence"),
    [
        (TIMM, WORDS, "open_clip", "model.image: open_clip builds no tower like timm:test_vit"),
        (TIMM, TextPart(tower=f"hf:{MINILM}"), "transformers", "model.text: transformers builds no tower like hf:"),
        (ImagePart(tower="lavit:tiny"), WORDS, "transformers", "model.image: transformers builds no tower like lavit:tiny"),
    ],
)
def test_what_has_no_place_is_refused_and_leaves_nothing(image, text, kind, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        export(made(image, text), kind, tmp_path / "out")
    assert sentence in str(caught.value) and not (tmp_path / "out").exists()


def test_a_difference_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    wrong = lambda model, *given: tuple(-x for x in KINDS["safetensors"](model, *given))
    monkeypatch.setitem(KINDS, "onnx", wrong)
    with pytest.raises(UserError, match=r"embeddings differ by .* nothing was written"):
        export(made(TIMM, WORDS), "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_card_and_a_refused_push_is_one_sentence(tiny, tmp_path, capsys, monkeypatch):
    run = fit(recipe.read(tiny, [f"out={tmp_path / 'run'}"]))
    assert main(["export", str(run), "--to", "transformers", "-o", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("timm:test_vit", "## Recipe", "contrastive", "pairs.csv", "steps of training | 4", "from_pretrained"):
        assert part in card
    assert main(["export", str(run), "--to", "transformers", "-o", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "safetensors", "-o", str(tmp_path / "more"), "--push", "me/mine"]) == 2
    said = capsys.readouterr().err
    assert "me/mine: could not be pushed" in said and said.count("\n") == 1 and (tmp_path / "more" / "README.md").is_file()
    assert main(["export", str(run), "--to", "safetensors", "-o", str(tmp_path / "none"), "--push", "not a name"]) == 2
    assert not (tmp_path / "none").exists()


def test_a_folder_that_names_its_place_comes_in_and_is_not_pushed(tmp_path, capsys):
    """open_clip finds a text tower of transformers by a path in its configuration."""
    out = tmp_path / "out"
    model = made(ImagePart(tower="timm:test_efficientnet"), bert(tmp_path / "bert"))
    export(model, "open_clip", out)
    again = load(f"open_clip:{out}")
    assert (again.encode_text(TEXTS) - model.encode_text(TEXTS)).abs().max() <= TOLERANCE
    assert stuck(out) == "open_clip_config.json"


def test_a_card_takes_no_recipe_that_only_lies_near(tmp_path, monkeypatch):
    out = tmp_path / "oc"
    export(made(none(VIT), none(WORDS)), "open_clip", out)
    (tmp_path / "recipe.yaml").write_text("out: runs/other\n")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "open_clip:oc", "--to", "safetensors", "-o", "st"]) == 0
    card = (tmp_path / "st" / "README.md").read_text()
    assert "runs/other" not in card and "## Recipe" not in card and "\n# oc\n" in card
