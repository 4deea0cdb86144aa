"""Towers of transformers by folder or hub id: ``hf:PATH-OR-ID``, single encoders and halves of dual ones.

A folder that holds only ``config.json`` (and, for text, a tokenizer) gives random weights, as does
``pretrained: false``; with that, the name of an architecture will do (``hf:cvt``). ``kwargs`` override entries of the configuration.
No remote code is ever run.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import open_clip
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from crossmodal import chance, resources
from crossmodal.errors import UserError, nearest
from crossmodal.recipe import ImagePart, TextPart
from crossmodal.towers.base import ImageTower, TextTower, flatten_tokens

ALIASES = ("hf",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _library_model(part: ImagePart | TextPart, image_size: int | None = None) -> tuple[nn.Module, str, bool]:
    """(the library's model, where it came from, whether it has pretrained weights). Random weights are made for ``image_size``."""
    spec = part.tower.partition(":")[2]
    place = str(resources.local_path(spec))
    if isinstance(part.pretrained, str):
        raise UserError(f"{part.tower}: pretrained is true or false here; the weights are those of the folder or hub id itself.")
    try:
        if _is_architecture(part):
            _check_kwargs(part, transformers.AutoConfig.for_model(place))
            config = transformers.AutoConfig.for_model(place, **part.kwargs)
            return transformers.AutoModel.from_config(_sized(config, part, image_size)), "", False
        _check_kwargs(part, transformers.AutoConfig.from_pretrained(place, trust_remote_code=False))
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **part.kwargs)
        local = Path(place).is_dir()
        pretrained = any((Path(place) / w).is_file() for w in WEIGHTS) if local else True
        if part.pretrained and not pretrained:
            raise UserError(f"{part.tower}: pretrained is true, but the folder holds no weights ({', '.join(WEIGHTS[:2])} …).")
        pretrained = pretrained and part.pretrained is not False
        bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            if pretrained:
                model = transformers.AutoModel.from_pretrained(place, config=config, dtype=torch.float32)
            else:
                model = transformers.AutoModel.from_config(_sized(config, part, image_size))
        finally:
            if bars:
                transformers.utils.logging.enable_progress_bar()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{part.tower}: transformers finds no model there (a folder with config.json, or a hub id): {reason}") from error
    return model, place, pretrained


def _is_architecture(part: ImagePart | TextPart) -> bool:
    """Whether the tower is named by its architecture alone, which has no weights."""
    name = part.tower.partition(":")[2]
    return part.pretrained is False and name in transformers.CONFIG_MAPPING and not Path(name).is_dir()


def _check_kwargs(part: ImagePart | TextPart, config: transformers.PretrainedConfig) -> None:
    """Configurations of transformers keep whatever they are given. Errors: ``UserError`` for a key that this one has no use for."""
    for key in part.kwargs:
        if not hasattr(config, key):
            raise UserError(f"{part.tower}: does not take {key!r} in kwargs; {nearest(key, config.to_dict())}")


def _sized(config: transformers.PretrainedConfig, part: ImagePart | TextPart, image_size: int | None) -> transformers.PretrainedConfig:
    if image_size and "image_size" not in part.kwargs and isinstance(getattr(config, "image_size", None), int):
        config.image_size = image_size
    return config


def _scalars(model: nn.Module) -> dict[str, float]:
    scalars = {}
    if getattr(model, "logit_scale", None) is not None:
        scalars["logit_scale"] = model.logit_scale.detach().exp().item()
    if getattr(model, "logit_bias", None) is not None:
        scalars["logit_bias"] = model.logit_bias.detach().item()
    return scalars


def _drop(model: nn.Module, *names: str) -> None:
    """Modules that no output of ours depends on: DDP would wait for their gradients."""
    for name in names:
        if isinstance(getattr(model, name, None), (nn.Module, nn.Parameter)):
            setattr(model, name, None)


class HFImage(ImageTower):
    """A vision model, or the vision half of a dual encoder (with its projection where ours is none)."""

    fields = ("pooled", "tokens")

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        model, place, self.pretrained = _library_model(part, image_size)
        self.config = model.config
        self.dual = hasattr(model, "get_image_features")
        self.own_head = self.dual and part.projection == "none"
        self.scalars = _scalars(model) if self.dual and self.pretrained else {}
        if self.dual:
            _drop(model, "text_model", "text_projection", "logit_scale", "logit_bias")
            model = model if self.own_head else model.vision_model
        # Every architecture there has a copy of this class under a name of its own.
        drops = lambda m: type(m).__name__.endswith("DropPath") and hasattr(m, "drop_prob")
        chance.by_row(model, drops, lambda m, salt: chance.DropPath(m.drop_prob, salt))
        self.model = model
        size = getattr(self._vision(), "image_size", None)
        inner = model.vision_model if self.own_head else model
        self.in_patches = "spatial_shapes" in inspect.signature(inner.forward).parameters  # SigLIP 2's NaFlex takes pictures cut up
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(place or "/", trust_remote_code=False)
            self.mean, self.std = tuple(processor.image_mean), tuple(processor.image_std)
            whole, cut = processor.size or {}, (getattr(processor, "crop_size", None) or {}) if processor.do_center_crop else {}
            if "height" in whole and not cut:
                self.resize = "squash"
            size = size or cut.get("height") or whole.get("height") or whole.get("shortest_edge")
        except (OSError, ValueError, AttributeError):
            pass  # no preprocessor_config.json: the base class's 0.5 stands, and the recipe may say better
        size = size or image_size or 224
        self.native_size = size[0] if isinstance(size, (list, tuple)) else size
        self.image_size = image_size or self.native_size
        self.settle(part)
        with torch.no_grad():
            self.eval()
            zeros = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
            out = self.forward(zeros)
            self.width, self.token_width = out["pooled"].shape[-1], out["tokens"].shape[-1]
            self.train()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        out = (self.model.get_image_features if self.own_head else self.model)(**self.inputs(images))
        hidden, pooled = out.last_hidden_state, getattr(out, "pooler_output", None)
        if pooled is None:  # a class token beside a map (CvT), a map, or a class token before a sequence
            beside = getattr(out, "cls_token_value", None)
            pooled = beside if beside is not None else hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]
        prefix = hidden.shape[1] - self._patches(images) if hidden.ndim == 3 else 0
        return {"pooled": pooled.flatten(1), "tokens": flatten_tokens(hidden, max(prefix, 0))}

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        x = self.normalise(images)
        if self.in_patches:
            return self._cut_up(x)
        return {"pixel_values": x} | ({"interpolate_pos_encoding": True} if self.image_size != self.native_size else {})

    def _cut_up(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] → patches [B, N, P · P · 3], all of them there, and their grid."""
        side = self._vision().patch_size
        patches = x.unfold(2, side, side).unfold(3, side, side)  # [B, 3, H/P, W/P, P, P]
        rows, columns = patches.shape[2:4]
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # [B, N, P · P · 3]
        there = torch.ones(patches.shape[:2], dtype=torch.long, device=x.device)
        grid = torch.tensor([[rows, columns]], device=x.device).expand(len(x), -1)
        return {"pixel_values": patches, "pixel_attention_mask": there, "spatial_shapes": grid}

    def _vision(self) -> transformers.PretrainedConfig:
        return getattr(self.config, "vision_config", self.config)

    def _patches(self, x: Tensor) -> int:
        patch = getattr(self._vision(), "patch_size", None)
        if not isinstance(patch, int):
            return 10**9  # a pyramid: no patch grid of its own, no class token either
        return (x.shape[-2] // patch) * (x.shape[-1] // patch)

    def save_assets(self, folder: Path) -> None:
        self.config.save_pretrained(folder)

    def as_transformers(self) -> nn.Module | None:
        return self.model if not self.own_head else None

    def as_library(self) -> nn.Module:
        return self.model


class HFText(TextTower):
    """A text model: mean-pooled over words, the last word's state where it is causal, or a dual
    encoder's own pooling."""

    fields = ("pooled", "tokens")

    def __init__(self, part: TextPart):
        super().__init__(part)
        model, place, self.pretrained = _library_model(part)
        self.config = model.config
        self.dual = hasattr(model, "get_text_features")
        self.own_head = self.dual and part.projection == "none"
        self.scalars = _scalars(model) if self.dual and self.pretrained else {}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{part.tower}: has no tokenizer that transformers can read (tokenizer.json, vocab files …).") from error
        if self.tokenizer.pad_token_id is None:  # GPT-2 and kin were made without padding
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.tokenizer.padding_side = "right"
        self.pad_id = self.tokenizer.pad_token_id
        if self.dual:
            _drop(model, "vision_model", "visual_projection", "logit_scale", "logit_bias")
            model = model if self.own_head else model.text_model
        elif getattr(self.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        else:
            _drop(model, "pooler")  # mean pooling does not read it
        self.model = model
        text = getattr(self.config, "text_config", self.config)
        longest = min(getattr(text, "max_position_embeddings", None) or 512, self.tokenizer.model_max_length)
        self.context_length = min(part.context_length or longest, longest)
        self.eval()
        with torch.no_grad():
            self.causal = self._is_causal()
            self._mark_ends()
            short, long = (self.forward(self.tokenize(["a picture"], trimmed)) for trimmed in (True, False))
            self.trim_exact = torch.allclose(short["pooled"], long["pooled"], atol=1e-5)
            self.width, self.token_width = short["pooled"].shape[-1], short["tokens"].shape[-1]
        self.train()

    def _is_causal(self) -> bool:
        """Asked of the model itself: does an earlier state change with a later word?"""
        probe = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
        states = self._hidden(probe, torch.ones_like(probe))
        return torch.allclose(states[0, :-1], states[1, :-1], atol=1e-6)

    def _mark_ends(self) -> None:
        """Which tokens begin and end every text. GPT-2's tokenizer and kin add none: those of causal towers are made to."""
        t = self.tokenizer
        start = t.bos_token_id if t.bos_token_id is not None else t.cls_token_id
        end = t.eos_token_id if t.eos_token_id is not None else t.sep_token_id
        marked = lambda: start is not None and end is not None and [(i := t("a")["input_ids"])[0], i[-1]] == [start, end]
        if self.causal and None not in (start, end) and not marked() and hasattr(t, "backend_tokenizer"):
            first, last = t.convert_ids_to_tokens([start, end])
            special = dict.fromkeys([(first, start), (last, end)])
            t.backend_tokenizer.post_processor = TemplateProcessing(single=[first, "$A", last], special_tokens=list(special))
        self.start_id, self.end_id = (start, end) if marked() else (None, None)

    @property
    def embedding(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def words(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        encoder = self.model.text_model if self.own_head else self.model
        return encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def tokenize(self, texts: list[str], trimmed: bool | None = None) -> Tensor:
        # The tokenizer itself pads to the longest. Cutting columns of the padding id would not do:
        # in CLIP's tokenizer that id also ends every text.
        padding = "longest" if (self.trim_exact if trimmed is None else trimmed) else "max_length"
        out = self.tokenizer(texts, padding=padding, truncation=True, max_length=self.context_length, return_tensors="pt")
        return out["input_ids"]

    def lengths(self, ids: Tensor) -> Tensor:
        # GPT-2's and CLIP's tokenizers pad with the id that ends a text: one of those belongs to it.
        return (super().lengths(ids) + int(self.end_id == self.pad_id)).clamp(max=ids.shape[1])

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        # Up to each text's last word: the padding id may also occur inside (GPT-2's end of text).
        mask = (torch.arange(ids.shape[1], device=ids.device) < self.lengths(ids)[:, None]).long()  # [B, T]
        if self.dual:
            # These read their padding as they were trained: CLIP's mask is causal, SigLIP's tower sees all.
            call = self.model.get_text_features if self.own_head else self.model
            out = call(input_ids=ids, attention_mask=mask if self.causal else None)
            return {"pooled": out.pooler_output, "tokens": out.last_hidden_state}
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, W]
        if self.causal:
            pooled = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        else:
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
        return {"pooled": pooled, "tokens": hidden}

    def save_assets(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def as_open_clip(self, head: Tensor | None, folder: Path) -> tuple[dict, dict[str, Tensor]] | None:
        if self.dual or self.causal or self.config.model_type not in open_clip.hf_configs.arch_dict:
            return None
        self.config.save_pretrained(folder / "text")
        self.tokenizer.save_pretrained(folder)
        state = {f"transformer.{name}": x for name, x in self.model.state_dict().items()}
        place = str((folder / "text").absolute())
        section = {
            "hf_model_name": place,
            "hf_tokenizer_name": str(folder.absolute()),
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear" if head is not None else None,
            "context_length": self.context_length,
        }
        return section, state | ({"proj.weight": head} if head is not None else {})

    def as_transformers(self) -> nn.Module | None:
        return self.model if self.dual and not self.own_head else None  # a mean over words is nobody's pooler_output there

    def save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.model_max_length = self.context_length
        if self.dual and not self.causal:  # SigLIP's reads its padding, and must not be given a mask
            self.tokenizer.model_input_names = ["input_ids"]
        self.tokenizer.save_pretrained(folder)

    def as_library(self) -> nn.Module:
        return self.model
