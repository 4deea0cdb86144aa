"""Image and text towers, one library a file; built by ``LIBRARY:NAME``."""

from __future__ import annotations

from crossmodal import registry
from crossmodal.errors import UserError
from crossmodal.recipe import ImagePart, TextPart, TowerPart
from crossmodal.towers.base import ImageTower, TextTower, Tower


def _class(part: ImagePart | TextPart, base: str) -> type:
    library, colon, name = part.tower.partition(":")
    if not colon or not name:
        raise UserError(f"tower {part.tower!r} is not LIBRARY:NAME, such as timm:vit_small_patch16_224 or open_clip:ViT-B-32.")
    return registry.find("towers", library, base)


def build_image(part: ImagePart, image_size: int | None) -> ImageTower:
    """The image tower a recipe names, its weights loaded and frozen as the recipe says."""
    return _as_said(_class(part, "ImageTower")(part, image_size), part)


def build_text(part: TextPart) -> TextTower:
    """The text tower a recipe names, its weights loaded and frozen as the recipe says."""
    return _as_said(_class(part, "TextTower")(part), part)


def _as_said(tower: Tower, part: TowerPart) -> Tower:
    tower.freeze(part.freeze)
    if part.gradient_checkpointing:
        tower.checkpoint_blocks()
    return tower
