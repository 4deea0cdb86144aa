"""Words (or a picture) in, pictures out; and the hits as one picture to look at."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as T

from crossmodal.data.sources.base import Source
from crossmodal.data.views import BrokenPicture, EvalView, load_picture
from crossmodal.model import Model
from crossmodal.retrieval.index import Index


@dataclass(frozen=True)
class Hit:
    """One picture found."""

    score: float  # cosine similarity
    key: str
    row: int  # in the source
    captions: tuple[str, ...]


def search(index: Index, model: Model, query: str | Path | Image.Image, k: int = 10) -> list[Hit]:
    """The k pictures nearest to a text, or to a picture given as ``Path`` or PIL image, best first."""
    vector = model.encode_text([query]) if isinstance(query, str) else model.encode_image([query])
    scores, found = index.search(vector, k)
    items = [(s, index.items[i]) for s, i in zip(scores[0].tolist(), found[0].tolist(), strict=True) if i >= 0]
    return [Hit(score, item["key"], item["row"], tuple(item["captions"])) for score, item in items]


def thumbnail(source: Source, row: int, side: int = 160) -> Image.Image:
    """A source's picture, padded to a square of ``side`` pixels; grey where it cannot be decoded."""
    try:
        return T.to_pil_image(EvalView(side, "pad")(load_picture(source[row].image)))
    except (BrokenPicture, OSError):
        return Image.new("RGB", (side, side), "lightgrey")


def grid(title: str, pictures: list[tuple[Image.Image, str]], columns: int = 5, side: int = 160) -> Image.Image:
    """Thumbnails with a line of text each, under a title, as one picture."""
    gap, line = 12, 22
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, 44 + rows * (side + line + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font(title, 20)
    draw.text((gap, 10), _fit(draw, title, font, sheet.width - 2 * gap), "black", font)
    for number, (picture, text) in enumerate(pictures):
        x, y = gap + number % columns * (side + gap), 44 + number // columns * (side + line + gap)
        sheet.paste(picture.resize((side, side)) if picture.size != (side, side) else picture, (x, y))
        small = _font(text, 13)
        draw.text((x, y + side + 3), _fit(draw, text, small, side), "dimgrey", small)
    return sheet


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or for other scripts one that the system's fontconfig finds, where there is any."""
    strange = "".join(sorted({c for c in text if ord(c) > 0xFF}))
    found = _font_file(strange) if strange else None
    return ImageFont.truetype(found, size) if found else ImageFont.load_default(size)


@cache
def _font_file(characters: str) -> str | None:
    wanted = ":charset=" + " ".join(f"{ord(c):x}" for c in characters)
    try:
        said = subprocess.run(["fc-match", "-f", "%{file}", wanted], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said if said.lower().endswith((".ttf", ".otf", ".ttc")) and Path(said).is_file() else None


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())
    while text and draw.textlength(text, font) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
