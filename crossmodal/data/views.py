"""Pictures from bytes to a square uint8 tensor, for training (varied) and evaluation (not).

Everything here works on uint8 [3, H, W] RGB; towers normalise later, on the device. What varies is
a function of a seed given from outside, so that it does not depend on processes or workers.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from crossmodal.recipe import Augment

MAX_PIXELS = 100_000_000  # a file that unpacks to more is a mistake or an attack
WHITE = 255


class BrokenPicture(Exception):
    """A picture that cannot be decoded; the message says why."""


def load_picture(picture: Image.Image | Tensor | str | Path | bytes, at_least: int | None = None) -> Tensor:
    """A PIL picture, a path or an encoded file's bytes → uint8 [3, H, W], RGB. What is decoded already stays as it is.

    Transparency is composited on white, EXIF rotation applied. A JPEG of which ``at_least`` pixels a side are
    enough is decoded at ½, ¼ or ⅛ of its size, which JPEG's own transform gives nearly for nothing.
    Errors: ``BrokenPicture`` for what is no picture, is cut short or unpacks to over ``MAX_PIXELS``.
    """
    try:
        if isinstance(picture, Tensor):
            return picture
        if isinstance(picture, Image.Image):
            return _from_pil(picture)
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        with Image.open(io.BytesIO(data)) as opened:  # reads the header only
            if opened.width * opened.height > MAX_PIXELS:
                raise BrokenPicture(f"{opened.width}×{opened.height} pixels, more than {MAX_PIXELS:,}")
            if at_least and min(opened.size) >= 2 * at_least:
                opened.draft("RGB", (at_least, at_least))
            elif opened.format == "JPEG" and opened.mode in ("RGB", "L"):
                raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True)  # twice PIL's speed
            return _from_pil(opened)
    except BrokenPicture:
        raise
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UnidentifiedImageError):
            raise BrokenPicture("no picture format is recognised") from error
        raise BrokenPicture(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _from_pil(picture: Image.Image) -> Tensor:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode != "RGB":
        if picture.mode.startswith("I;16"):
            picture = picture.point(lambda v: v / 256).convert("L")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture)
            picture = white
        picture = picture.convert("RGB")
    return T.pil_to_tensor(picture)


class EvalView:
    """uint8 [3, H, W] → uint8 [3, S, S] without chance: shortest side and middle crop, squash, or pad with white."""

    def __init__(self, size: int, resize: str = "shortest"):
        self.size, self.resize = size, resize

    def __call__(self, picture: Tensor) -> Tensor:
        bicubic = v2.InterpolationMode.BICUBIC
        if self.resize == "squash":
            return T.resize(picture, [self.size, self.size], bicubic, antialias=True)
        if self.resize == "pad":
            height, width = picture.shape[-2:]
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            picture = T.pad(picture, [left, top, side - width - left, side - height - top], fill=WHITE)
            return T.resize(picture, [self.size, self.size], bicubic, antialias=True)
        return T.center_crop(T.resize(picture, [self.size], bicubic, antialias=True), [self.size, self.size])


class TrainView:
    """uint8 [3, H, W] → uint8 [3, S, S], varied as ``Augment`` says and as the seed decides."""

    def __init__(self, size: int, augment: Augment, resize: str = "shortest"):
        steps: list = []
        if augment.rotate or augment.shift or augment.zoom:
            shift = (augment.shift, augment.shift) if augment.shift else None
            bilinear = v2.InterpolationMode.BILINEAR
            steps.append(v2.RandomAffine(augment.rotate, shift, augment.zoom, interpolation=bilinear, fill=WHITE))
        if augment.crop:
            bicubic = v2.InterpolationMode.BICUBIC
            steps.append(_Crop(size, augment.crop, interpolation=bicubic, antialias=True))
        else:
            steps.append(EvalView(size, resize))
        if augment.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augment.jitter:
            steps.append(v2.RandomApply([v2.ColorJitter(*augment.jitter)], augment.jitter_p))
        if augment.grey:
            steps.append(v2.RandomGrayscale(augment.grey))
        if augment.blur:
            kernel = 2 * round(2 * augment.blur[1]) + 1
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, augment.blur)], augment.blur_p))
        self.steps = steps
        # Pixels a side that a picture should have, so that a crop of the least area still has ``size``.
        self.at_least = math.ceil(size / math.sqrt(augment.crop[0] if augment.crop else 1))

    def __call__(self, picture: Tensor, seed: int) -> Tensor:
        # torchvision draws from the global generator. (torch.random.fork_rng asks every kind of device, which takes longer than a flip.)
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(seed)
        try:
            for step in self.steps:
                picture = step(picture)
        finally:
            generator.set_state(before)
        return picture


class _Crop(v2.RandomResizedCrop):
    """As its parent, to the last bit: a cut-out has gaps in memory, and resizing is half as long again with them."""

    def transform(self, picture: Tensor, where: dict[str, int]) -> Tensor:
        cut = T.crop(picture, **where).unsqueeze(0).contiguous(memory_format=torch.channels_last)[0]
        return T.resize(cut, self.size, self.interpolation, antialias=True)
