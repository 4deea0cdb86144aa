"""The two halves of open_clip's models: ``open_clip:ViT-B-32``, with ``pretrained`` a tag or a file of its own, or a folder
``open_clip:FOLDER`` with open_clip_config.json and, unless ``pretrained`` is false, the weights that lie there.

``kwargs`` override the model's ``vision_cfg`` or ``text_cfg`` (``layers``, ``width``, ``patch_dropout`` …).
"""

from __future__ import annotations

import logging
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from crossmodal import chance, clip_layout, files, resources
from crossmodal.errors import UserError, nearest
from crossmodal.recipe import DecoderPart, ImagePart, TextPart
from crossmodal.towers.base import ImageTower, TextTower, flatten_tokens, trim

CONFIG = "open_clip_config.json"
SMALLEST = {
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32, "timm_model_name": None},
    "text_cfg": {"layers": 1, "width": 64, "heads": 1, "hf_model_name": None},
    "multimodal_cfg": {"layers": 1, "width": 64, "heads": 1},
}


def _library_model(part: ImagePart | TextPart, section: str, **sizes: int | None) -> nn.Module:
    """open_clip's whole model, always with the text half as a module of its own."""
    name, folder = _named(part)
    config = _config(part)
    tag = part.pretrained
    if folder:
        tag = tag is not False and _has_weights(folder)
        if part.pretrained and not tag:
            raise UserError(f"{part.tower}: pretrained is given, but the folder holds no weights (open_clip_model.safetensors).")
    elif tag is True:
        raise UserError(f"{part.tower}: say which weights, pretrained: TAG; open_clip has {open_clip.list_pretrained_tags_by_model(name)}.")
    if tag and not folder and tag not in open_clip.list_pretrained_tags_by_model(name):
        path = resources.local_path(tag)
        if not path.is_file():
            known = open_clip.list_pretrained_tags_by_model(name)
            raise UserError(f"{part.tower}: {tag!r} is neither a weights file nor a tag of this model; {nearest(tag, known)}")
        tag = str(path)
    merged = {section: {**config[section], **{k: v for k, v in sizes.items() if v}, **part.kwargs}}
    if folder and merged[section].get("hf_model_name"):
        merged[section]["hf_model_pretrained"] = False  # its weights are among the folder's
    if not tag:  # the other half is thrown away: build it small
        merged |= {other: {**config[other], **small} for other, small in SMALLEST.items() if other != section and other in config}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # "no pretrained weights" is what was asked for
    try:
        more = {"load_weights": bool(tag)} if folder else {"pretrained": tag or None}
        return open_clip.create_model(name, force_custom_text=True, pretrained_text=False, **more, **merged)
    except TypeError as error:
        raise UserError(f"{part.tower}: open_clip does not take these kwargs in {section}: {error}.") from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"{part.tower}: could not be built or its weights not be had: {error}") from error
    finally:
        root.setLevel(level)


def _named(part: ImagePart | TextPart) -> tuple[str, Path | None]:
    """(what open_clip calls the model, the folder that it is in, if any)."""
    name = part.tower.partition(":")[2]
    folder = resources.local_path(name)
    return (f"local-dir:{folder}", folder) if (folder / CONFIG).is_file() else (name, None)


def _config(part: ImagePart | TextPart) -> dict:
    """open_clip's configuration of the model. Errors: ``UserError``."""
    name, folder = _named(part)
    try:
        config = open_clip.get_model_config(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/{CONFIG}: is not readable: {error}") from error
    if config is None:
        raise UserError(f"open_clip has no model {name!r}; {nearest(name, open_clip.list_models())}")
    return config


def _is_pretrained(part: ImagePart | TextPart) -> bool:
    folder = _named(part)[1]
    return part.pretrained is not False and _has_weights(folder) if folder else bool(part.pretrained)


def _save(tower: OpenClipImage | OpenClipText, section: str, folder: Path) -> None:
    """The configuration of a tower that came from a folder, which may be gone when this model is read again."""
    if _named(tower.part)[1]:
        said = {key: value for key, value in tower.section.items() if key != "quick_gelu"}
        files.write_json(folder / CONFIG, {"model_cfg": _config(tower.part) | {section: said}})


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("open_clip_*model.safetensors")) or any(folder.glob("open_clip_*model.bin"))


def _section(part: ImagePart | TextPart, section: str, **sizes: int | None) -> dict:
    """What open_clip's configuration says of this half, the recipe's word included; "quick_gelu" is the whole model's."""
    config = _config(part)
    said = {**config[section], **{k: v for k, v in sizes.items() if v}, **part.kwargs}
    return {**said, "quick_gelu": bool(config.get("quick_gelu"))}


def _scalars(model: nn.Module) -> dict[str, float]:
    scalars = {"logit_scale": model.logit_scale.detach().exp().item()}
    if model.logit_bias is not None:
        scalars["logit_bias"] = model.logit_bias.detach().item()
    return scalars


class OpenClipImage(ImageTower):
    """The image half. Without its own projection, ``pooled`` is the width before it."""

    at_output = ("visual.proj",)

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        model = _library_model(part, "vision_cfg", image_size=image_size)
        self.section = _section(part, "vision_cfg", image_size=image_size)
        self.part, self.pretrained = part, _is_pretrained(part)
        self.scalars = _scalars(model) if self.pretrained else {}
        self.visual = visual = model.visual
        if isinstance(visual, open_clip.transformer.VisionTransformer):
            rate = getattr(visual.patch_dropout, "prob", 0.0)
            self.patches = visual.patch_dropout = chance.PatchDropout(rate, 1, chance.seed_of("patch_dropout"))
            self.patch_size = visual.patch_size[0]
        if part.projection == "linear":  # ours replaces the library's
            if hasattr(visual, "proj"):
                visual.proj = None
            elif hasattr(visual, "trunk"):
                visual.head = nn.Identity()
        if hasattr(visual, "output_tokens"):
            visual.output_tokens = True
            self.fields = ("pooled", "tokens")
        elif hasattr(visual, "trunk"):
            self.fields = ("pooled", "tokens")
        size = visual.image_size
        self.image_size = size[0] if isinstance(size, (tuple, list)) else size
        preprocess = open_clip.get_model_preprocess_cfg(model)
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        self.resize = {"squash": "squash", "longest": "pad"}.get(preprocess.get("resize_mode"), "shortest")
        self.settle(part)
        with torch.no_grad():
            self.eval()
            out = self.forward(torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8))
            self.width, self.token_width = out["pooled"].shape[-1], out.get("tokens", out["pooled"]).shape[-1]
            self.train()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.normalise(images)
        if hasattr(self.visual, "trunk"):  # a timm model inside open_clip
            maps = self.visual.trunk.forward_features(x)
            pooled = self.visual.head(self.visual.trunk.forward_head(maps))
            return {"pooled": pooled, "tokens": flatten_tokens(maps, getattr(self.visual.trunk, "num_prefix_tokens", 0))}
        out = self.visual(x)
        return dict(zip(self.fields, out if isinstance(out, tuple) else (out,), strict=True))

    def save_assets(self, folder: Path) -> None:
        _save(self, "vision_cfg", folder)

    def as_open_clip(self, head: Tensor | None, folder: Path) -> tuple[dict, dict[str, Tensor]] | None:
        section, state = dict(self.section), self.visual.state_dict()
        if head is not None and hasattr(self.visual, "trunk"):
            section |= {"timm_proj": "linear", "timm_proj_bias": False}
            state["head.proj.weight"] = head
        elif head is not None:
            if not hasattr(self.visual, "proj"):
                return None
            state["proj"] = head.T
        return section, state

    def as_transformers(self) -> nn.Module | None:
        return clip_layout.vision(self.visual) if isinstance(self.visual, open_clip.transformer.VisionTransformer) else None

    def head(self) -> Tensor | None:
        own = getattr(self.visual, "proj", None)
        return None if own is None else own.detach().T

    def as_library(self) -> nn.Module:
        return self.visual


class OpenClipText(TextTower):
    """The text half, with a forward of ours that takes trimmed texts: the library's own adds
    positions at full length. Under a causal mask the outcome is the same to the last bit."""

    fields = ("pooled", "tokens")
    at_output = ("text.text_projection",)

    def __init__(self, part: TextPart):
        super().__init__(part)
        model = _library_model(part, "text_cfg", context_length=part.context_length)
        self.section = _section(part, "text_cfg", context_length=part.context_length)
        self.part, self.pretrained = part, _is_pretrained(part)
        self.scalars = _scalars(model) if self.pretrained else {}
        self.text = text = model.text
        text.output_tokens = True
        self.own_transformer = hasattr(text, "token_embedding")  # open_clip's own; else a transformers model inside it
        if self.own_transformer:
            self.causal = text.attn_mask is not None
            self.pad_id = text.pad_id
            # An appended class token (CoCa) sits at a position of its own, and a bidirectional
            # tower without padding mask (SigLIP) reads the padding: trimming would change both.
            self.trim_exact = text.cls_emb is None and (self.causal or text.use_pad_mask) and text.pool_type != "last"
            own = text.text_projection is not None and part.projection == "none"
            self.width = text.output_dim if own else text.width
            if not own:
                text.text_projection = None
        else:
            self.causal, self.trim_exact, self.pad_id = False, True, text.config.pad_token_id
            self.width = text.output_dim if part.projection == "none" else text.config.hidden_size
            if part.projection == "linear":
                text.proj = nn.Identity()
        self.token_width = text.width if self.own_transformer else text.config.hidden_size
        self.context_length = text.context_length
        try:
            self.tokenizer = open_clip.get_tokenizer(_named(part)[0], context_length=self.context_length)
        except (OSError, ValueError) as error:
            raise UserError(f"{part.tower}: its tokenizer could not be had: {str(error).splitlines()[0]}") from error
        self.start_id, self.end_id = (getattr(self.tokenizer, name, None) for name in ("sot_token_id", "eot_token_id"))

    @property
    def embedding(self) -> Tensor:
        return self.text.token_embedding.weight if self.own_transformer else self.text.transformer.get_input_embeddings().weight

    def words(self, ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in self.tokenizer.all_special_ids]).strip()

    def tokenize(self, texts: list[str], trimmed: bool | None = None) -> Tensor:
        ids = self.tokenizer(texts)
        return trim(ids, self.pad_id) if (self.trim_exact if trimmed is None else trimmed) else ids

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        text = self.text
        if not (self.own_transformer and self.trim_exact and self.causal):
            return dict(zip(("pooled", "tokens"), text(ids), strict=True))
        length = ids.shape[1]
        x = text.token_embedding(ids) + text.positional_embedding[:length]  # [B, T, W]
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        x = text.ln_final(x)
        pooled = open_clip.transformer.text_global_pool(x, ids, text.pool_type, eos_token_id=text.eos_id)  # [B, W]
        if text.text_projection is not None:
            projection = text.text_projection
            pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return {"pooled": pooled, "tokens": x}

    def save_assets(self, folder: Path) -> None:
        _save(self, "text_cfg", folder)
        if _named(self.part)[1] and hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)

    @staticmethod
    def dual(rest: str) -> tuple[str, str | None, DecoderPart | None]:
        """``FOLDER``, or ``NAME/TAG-OR-FILE``."""
        if Path(rest).expanduser().is_dir():
            return str(Path(rest).expanduser()), None, None
        name, _, tag = rest.partition("/")
        return name, tag or None, decoder_part(name, tag)

    def as_open_clip(self, head: Tensor | None, folder: Path) -> tuple[dict, dict[str, Tensor]] | None:
        section, state = dict(self.section), self.text.state_dict()
        if head is not None and self.own_transformer:
            section |= {"proj_type": "linear", "proj_bias": False}
            state["text_projection"] = head.T
        elif head is not None:
            section["hf_proj_type"] = "linear"
            state["proj.weight"] = head
        return section, state

    def as_transformers(self) -> nn.Module | None:
        plain = self.own_transformer and self.causal and self.trim_exact and hasattr(self.tokenizer, "bpe_ranks")
        return clip_layout.text(self.text) if plain else None

    def save_tokenizer(self, folder: Path) -> None:
        if hasattr(self.tokenizer, "bpe_ranks"):
            clip_layout.tokenizer(self.tokenizer).save_pretrained(folder)

    def head(self) -> Tensor | None:
        own = getattr(self.text, "text_projection", None)
        return own.detach().T if isinstance(own, nn.Parameter) else None if own is None else own.weight.detach()

    def as_library(self) -> nn.Module:
        return self.text


def decoder_part(name: str, pretrained: str | None) -> DecoderPart | None:
    """The decoder of an open_clip model as a recipe says it, or None for a model without one."""
    config = open_clip.get_model_config(name) or {}
    if "multimodal_cfg" not in config:
        return None
    shape = {k: config["multimodal_cfg"][k] for k in ("layers", "heads")}
    return DecoderPart(**shape, pretrained=pretrained and f"open_clip:{name}/{pretrained}")


def decoder_weights(spec: str) -> dict[str, Tensor]:
    """``open_clip:NAME/TAG-OR-FILE`` → the weights of that model's decoder. Errors: ``UserError`` where it has none."""
    name, _, tag = spec.removeprefix("open_clip:").partition("/")
    if decoder_part(name, None) is None or not tag:
        raise UserError(f"{spec}: no weights of an open_clip CoCa model; write open_clip:NAME/TAG, as open_clip:coca_ViT-B-32/TAG.")
    return _library_model(TextPart(tower=f"open_clip:{name}", pretrained=tag), "text_cfg").text_decoder.state_dict()
