"""Image towers of timm, by its model names: ``timm:tf_efficientnet_lite0``, ``timm:vit_small_patch16_224``.

``kwargs`` go to the model's constructor; where one is the name of a layer of timm's ViT (``block_fn: ParallelScalingBlock``), that layer.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.layers import DropPath
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from crossmodal import chance
from crossmodal.errors import UserError, nearest
from crossmodal.recipe import ImagePart
from crossmodal.towers.base import ImageTower, flatten_tokens, load_weights


class TimmImage(ImageTower):
    """Any timm model without its classifier; ``pooled`` is what the classifier would read."""

    fields = ("pooled", "tokens")
    memory_format = torch.channels_last  # what convolutions on a CPU want; no cost elsewhere

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__(part, image_size)
        name = part.tower.partition(":")[2]
        if name.partition(".")[0] not in timm.list_models():
            raise UserError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
        file = part.pretrained if isinstance(part.pretrained, str) and ("/" in part.pretrained or ":" in part.pretrained) else None
        if isinstance(part.pretrained, str) and not file:
            name = f"{name.partition('.')[0]}.{part.pretrained}"
        self.model = self._create(name, bool(part.pretrained) and not file, image_size, part.kwargs)
        self.name, self.kwargs = name.partition(".")[0], part.kwargs
        config = self.model.pretrained_cfg
        full = {k: v.shape for k, v in self.model.state_dict().items()}
        self.model.reset_classifier(0)
        chance.by_row(self.model, lambda m: isinstance(m, DropPath), lambda m, salt: chance.DropPath(m.drop_prob, salt))
        if file:
            load_weights(self.model, file, full)
        self.pretrained = bool(part.pretrained)
        self.width = self.model.head_hidden_size if hasattr(self.model, "head_hidden_size") else self.model.num_features
        self.token_width = self.model.num_features
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        if isinstance(self.model, VisionTransformer):
            rate = getattr(self.model.patch_drop, "prob", 0.0)
            self.patches = self.model.patch_drop = chance.PatchDropout(rate, self.prefix, chance.seed_of("patch_drop"))
            self.patch_size = self.model.patch_embed.patch_size[0]
        self.channels_last_map = str(getattr(self.model, "output_fmt", "NCHW")).upper().endswith("NHWC")
        self.image_size = image_size or config["input_size"][-1]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.settle(part)

    @staticmethod
    def _create(name: str, pretrained: bool, image_size: int | None, kwargs: dict) -> torch.nn.Module:
        kwargs = {key: _layer(value) for key, value in kwargs.items()}
        try:
            try:  # transformers are built for a size of picture, convolutions take any
                return timm.create_model(name, pretrained=pretrained, **{"img_size": image_size, **kwargs})
            except TypeError:
                return timm.create_model(name, pretrained=pretrained, **kwargs)
        except TypeError as error:
            raise UserError(f"timm:{name}: its constructor does not take these kwargs: {error}.") from error
        except (RuntimeError, OSError) as error:
            raise UserError(f"timm:{name}: could not be built or its weights not be had: {error}") from error

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.model.forward_features(self.normalise(images))
        pooled = self.model.forward_head(x, pre_logits=True)  # [B, W]
        return {"pooled": pooled, "tokens": flatten_tokens(x, self.prefix, self.channels_last_map)}

    def as_open_clip(self, head: Tensor | None, folder: Path) -> tuple[dict, dict[str, Tensor]] | None:
        plain = timm.create_model(self.name, num_classes=0)  # open_clip passes neither sizes nor kwargs on
        if _shapes(plain) != _shapes(self.model) or head is None:
            return None
        size = {"image_size": self.image_size, "timm_pool": "", "timm_proj": "linear", "timm_proj_bias": False}
        state = {f"trunk.{name}": x for name, x in self.model.state_dict().items()}
        return {"timm_model_name": self.name, "timm_model_pretrained": False, **size}, state | {"head.proj.weight": head}

    def as_transformers(self) -> torch.nn.Module | None:
        import transformers

        sized = {"img_size": self.image_size, **self.kwargs}
        for kwargs in (sized, self.kwargs):
            config = transformers.TimmWrapperConfig(architecture=self.name, model_args=dict(kwargs), hidden_size=self.width, num_labels=0)
            try:
                made = transformers.TimmWrapperModel(config).eval()
            except (TypeError, AttributeError, ImportError):
                continue
            if _shapes(made.timm_model) == _shapes(self.model):
                made.timm_model.load_state_dict(self.model.state_dict())
                return made
        return None

    def as_library(self) -> torch.nn.Module:
        return self.model


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in model.state_dict().items()}


def _layer(value: object) -> object:
    """The layer of timm's ViT that a text names, or what was given."""
    found = getattr(vision_transformer, value, None) if isinstance(value, str) else None
    return found if isinstance(found, type) and issubclass(found, torch.nn.Module) else value
