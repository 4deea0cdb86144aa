"""A model by its reference: a folder of ours, or a dual encoder of a library."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from crossmodal import registry
from crossmodal.allocator import keep_freed_memory
from crossmodal.errors import UserError
from crossmodal.model import FORMAT, Model
from crossmodal.recipe import ImagePart, ModelPart, TextPart
from crossmodal.towers import build_text


def load(ref: str | Path, device: str | torch.device = "cpu") -> Model:
    """A model by run folder, checkpoint or model folder, ``open_clip:NAME/TAG-OR-FILE``, ``open_clip:FOLDER`` or ``hf:ID-OR-FOLDER``.

    Returns it in eval mode on ``device``. Errors: ``UserError`` saying what was looked for.
    """
    keep_freed_memory()
    ref = str(ref)
    folder = Path(ref)
    library, colon, rest = ref.partition(":")
    if colon and library in {*registry.names("towers"), *registry.declared("towers", "ALIASES")}:
        model = _library(library, rest)
    else:
        inside = [folder / "model", folder]
        found = next((f for f in inside if (f / "model.json").is_file()), None)
        if found is None:
            what = "holds no model/model.json" if folder.is_dir() else "does not exist"
            hint = "; training has not finished? its checkpoints/ may hold one" if (folder / "checkpoints").is_dir() else ""
            raise UserError(f"{ref}: {what}; give a run folder, a checkpoint, open_clip:NAME/TAG or hf:ID{hint}.")
        model = _folder(found)
    return model.to(device).eval()


def _library(library: str, rest: str) -> Model:
    """A dual encoder of a library, both halves with their own projections."""
    tower, tag, decoder = registry.find("towers", library, "TextTower").dual(rest)
    image = ImagePart(tower=f"{library}:{tower}", pretrained=tag, projection="none")
    text = TextPart(tower=f"{library}:{tower}", pretrained=tag, projection="none")
    return Model(ModelPart(embed_dim=build_text(text).width, image=image, text=text, decoder=decoder))


def _folder(folder: Path) -> Model:
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if about.get("format") != FORMAT:
        raise UserError(f"{folder}/model.json: is of format {about.get('format')}; this version reads {FORMAT}.")
    part = ModelPart.model_validate(about["model"])
    kept = part.model_copy(deep=True)
    for half in (part.image, part.text):
        half.pretrained, half.freeze = None, False  # the weights stand here, whole
    if part.decoder:
        part.decoder.pretrained = None
    part.image.mean, part.image.std = (tuple(about["preprocessing"][k]) for k in ("mean", "std"))
    part.image.resize = about["preprocessing"]["resize"]
    for half in ("image", "text"):
        if (folder / half).is_dir():  # a tower that saved its own configuration is built from that
            tower = getattr(part, half)
            tower.tower, tower.kwargs = f"{tower.tower.partition(':')[0]}:{folder / half}", {}
    model = Model(part, about["image_size"], templates=about["templates"])
    model.part, model.training_record = kept, about["training"]
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
