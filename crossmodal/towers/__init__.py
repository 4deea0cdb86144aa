"""Image and text towers, one library a file; built by ``LIBRARY:NAME``."""

from __future__ import annotations

from crossmodal import registry
from crossmodal.errors import UserError
from crossmodal.recipe import ImagePart, TextPart
from crossmodal.towers.base import ImageTower, TextTower


def _class(part: ImagePart | TextPart, base: str) -> type:
    library, colon, name = part.tower.partition(":")
    if not colon or not name:
        raise UserError(f"tower {part.tower!r} is not LIBRARY:NAME, such as timm:vit_small_patch16_224 or open_clip:ViT-B-32.")
    return registry.find("towers", library, base)


def build_image(part: ImagePart, image_size: int | None) -> ImageTower:
    """The image tower a recipe names, its weights loaded and frozen as the recipe says."""
    tower = _class(part, "ImageTower")(part, image_size)
    tower.freeze(part.freeze)
    return tower


def build_text(part: TextPart) -> TextTower:
    """The text tower a recipe names, its weights loaded and frozen as the recipe says."""
    tower = _class(part, "TextTower")(part)
    tower.freeze(part.freeze)
    return tower
