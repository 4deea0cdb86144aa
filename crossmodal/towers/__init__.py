"""Image and text towers, one library a file; built by ``LIBRARY:NAME``."""

from __future__ import annotations

from crossmodal import registry
from crossmodal.errors import UserError, in_short
from crossmodal.recipe import ImagePart, TextPart, TowerPart
from crossmodal.towers.base import ImageTower, TextTower, Tower


def _class(part: ImagePart | TextPart, base: str) -> type:
    library, colon, name = part.tower.partition(":")
    if not colon or not name:
        raise UserError(f"tower {part.tower!r} is not LIBRARY:NAME, such as timm:vit_small_patch16_224 or open_clip:ViT-B-32.")
    return registry.find("towers", library, base)


def _built(part: ImagePart | TextPart, base: str, *given: int | None) -> Tower:
    cls = _class(part, base)
    try:
        return cls(part, *given)
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What a library raises for sizes and kwargs that do not go together is any of these.
        said = f" with kwargs {part.kwargs}" if part.kwargs else ""
        size = f" for pictures of {given[0]} pixels" if given and given[0] else ""
        raise UserError(f"{part.tower}: could not be built{said}{size}: {in_short(error)}") from error


def build_image(part: ImagePart, image_size: int | None) -> ImageTower:
    """The image tower a recipe names, its weights loaded and frozen as the recipe says."""
    return _as_said(_built(part, "ImageTower", image_size), part)


def build_text(part: TextPart) -> TextTower:
    """The text tower a recipe names, its weights loaded and frozen as the recipe says."""
    return _as_said(_built(part, "TextTower"), part)


def _as_said(tower: Tower, part: TowerPart) -> Tower:
    tower.freeze(part.freeze)
    if part.gradient_checkpointing:
        tower.checkpoint_blocks()
    return tower
