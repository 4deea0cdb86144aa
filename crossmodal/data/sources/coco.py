"""COCO's captions: ``coco:captions_val2017.json?images=val2017`` (Lin et al. 2014), pictures in the file's order."""

from __future__ import annotations

import json
from pathlib import Path

from crossmodal.batch import Sample
from crossmodal.data import pictures
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError


class CocoSource(Source):
    """``images`` (id, file_name) and ``annotations`` (image_id, caption). Without ``images`` the pictures stand beside the file."""

    def __init__(self, path: str, *, images: str | None = None):
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{path}: no such file.")
        self.root = Path(images).expanduser() if images else file.parent
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            captions: dict[object, list[str]] = {image["id"]: [] for image in said["images"]}
            for each in said["annotations"]:
                if each["image_id"] in captions:
                    captions[each["image_id"]].append(each["caption"].strip())
            self.samples = [(image["file_name"], tuple(captions[image["id"]])) for image in said["images"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not COCO's layout of captions (images, annotations): {error!r}.") from error
        self.samples = [(name, said) for name, said in self.samples if said]
        pictures.check_first(self.samples[0][0] if self.samples else None, self.root, path)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        name, captions = self.samples[index]
        return Sample(name, pictures.read(name, self.root), captions)
