"""Class names, templates and descriptions → prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from crossmodal import resources
from crossmodal.errors import UserError, nearest

#: One class: its name, or several names for it.
ClassNames = str | Sequence[str]

#: What open_clip's metadata hold, under the names used here.
LIBRARY = {"open_clip:openai": "OPENAI_IMAGENET_TEMPLATES", "open_clip:simple": "SIMPLE_IMAGENET_TEMPLATES"}


def fill(names: ClassNames, templates: Sequence[str]) -> list[str]:
    """Every name of a class in every template: ["a photo of a cat.", "a drawing of a cat.", …]."""
    every = [names] if isinstance(names, str) else list(names)
    return [template.replace("{}", name) for name in every for template in templates]


def prompts(
    classes: Sequence[ClassNames], templates: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
) -> list[list[str]]:
    """The prompts of each class: its names in the templates, or its own ``descriptions`` instead (CuPL, Pratt et al. 2023,
    https://arxiv.org/abs/2209.03320: sentences that a language model wrote about the class).

    Errors: ``UserError`` for a class that has no description, and for a description that ``classes`` do not know.
    """
    if descriptions is None:
        return [fill(names, templates) for names in classes]
    out = []
    for names in ([c] if isinstance(c, str) else list(c) for c in classes):
        own = [sentence for name in names for sentence in descriptions.get(name, ())]
        if not own:
            raise UserError(f"the descriptions have none for the class {names[0]!r}; {nearest(names[0], descriptions)}")
        out.append(own)
    return out


def read_templates(said: Sequence[str]) -> list[str]:
    """Inline templates (with ``{}``), files of one a line, names of packaged sets, ``open_clip:openai`` (the 80 of Radford et al. 2021)
    and ``open_clip:simple`` (7 of them), in any mixture.

    Errors: ``UserError`` for a template without ``{}`` or a file that is not there.
    """
    templates: list[str] = []
    for item in said:
        if "{}" in item:
            templates.append(item)
            continue
        if item in LIBRARY:
            import open_clip.zero_shot_metadata as metadata

            templates += [template("{}") for template in getattr(metadata, LIBRARY[item])]
            continue
        if " " in item and not Path(item).is_file():
            raise UserError(f"the template {item!r} lacks {{}} for the class name; write it as in 'a photo of a {{}}.'")
        path = Path(resources.resource("eval/templates", item, ".txt"))
        for number, line in enumerate(_lines(path), 1):
            if line:
                if "{}" not in line:
                    raise UserError(f"{path}, line {number}: the template {line!r} lacks {{}} for the class name.")
                templates.append(line)
    if not templates:
        raise UserError("no templates given; write at least one, such as 'a photo of a {}.'")
    return templates


def read_classes(said: str | Sequence[ClassNames]) -> list[tuple[str, ...]]:
    """Class names in the order of their numbers: a list, a file (a class a line, several names of it between tabs),
    or ``open_clip:imagenet`` (the 1,000 names of OpenAI).

    Errors: ``UserError`` for a file that is not there or is empty.
    """
    if not isinstance(said, str):
        return [(c,) if isinstance(c, str) else tuple(c) for c in said]
    if said == "open_clip:imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return [(name,) for name in IMAGENET_CLASSNAMES]
    path = Path(said).expanduser()
    if not path.is_file():
        raise UserError(f"{said}: no such file of class names (one a line).")
    found = [tuple(name.strip() for name in line.split("\t") if name.strip()) for line in _lines(path) if line]
    if not found:
        raise UserError(f"{said}: holds no class names; write one a line.")
    return found


def read_ids(said: str | Sequence[str]) -> list[str]:
    """WordNet ids: a list, a file of one a line, or ``timm:imagenet``, ``timm:imagenet_a``, ``timm:imagenet_r``: those that timm ships."""
    if not isinstance(said, str):
        return list(said)
    name = said.removeprefix("timm:")
    path = resources.local_path(f"package:timm/data/_info/{name}_synsets.txt") if name != said else Path(said).expanduser()
    if not path.is_file():
        raise UserError(f"{said}: no such file of WordNet ids (one a line).")
    return [line.split()[0] for line in _lines(path) if line]


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """{class name: sentences} from a JSON file, as CuPL publishes them.

    Errors: ``UserError`` for a file that is not there or holds something else.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of descriptions.") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}).") from error
    sentences = lambda value: isinstance(value, list) and all(isinstance(s, str) for s in value)
    if not isinstance(found, dict) or not all(sentences(v) for v in found.values()):
        raise UserError(f'{path}: descriptions are one mapping, {{"class name": ["a sentence", …]}}.')
    return found


def _lines(path: Path) -> list[str]:
    """A text file's lines, stripped; comments (#) become empty, so that numbers stay."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return ["" if line.startswith("#") else line for line in lines]
