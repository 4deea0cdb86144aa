"""Class names × templates → prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crossmodal import resources
from crossmodal.errors import UserError

#: One class: its name, or several names for it.
ClassNames = str | Sequence[str]


def fill(names: ClassNames, templates: Sequence[str]) -> list[str]:
    """Every name of a class in every template: ["a photo of a cat.", "a drawing of a cat.", …]."""
    every = [names] if isinstance(names, str) else list(names)
    return [template.replace("{}", name) for name in every for template in templates]


def read_templates(said: Sequence[str]) -> list[str]:
    """Inline templates (with ``{}``), files of one a line, or names of packaged sets, in any mixture.

    Errors: ``UserError`` for a template without ``{}`` or a file that is not there.
    """
    templates: list[str] = []
    for item in said:
        if "{}" in item:
            templates.append(item)
            continue
        if " " in item and not Path(item).is_file():
            raise UserError(f"the template {item!r} lacks {{}} for the class name; write it as in 'a photo of a {{}}.'")
        path = Path(resources.resource("eval/templates", item, ".txt"))
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                if "{}" not in line:
                    raise UserError(f"{path}, line {number}: the template {line!r} lacks {{}} for the class name.")
                templates.append(line)
    if not templates:
        raise UserError("no templates given; write at least one, such as 'a photo of a {}.'")
    return templates
