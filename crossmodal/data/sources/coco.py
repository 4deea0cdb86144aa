"""COCO's captions: ``coco:captions_val2017.json?images=val2017`` (Lin et al. 2014), pictures in the file's order."""

from __future__ import annotations

import json

from crossmodal.data.sources.base import Listed
from crossmodal.errors import UserError, in_short


class CocoSource(Listed):
    """``images`` (id, file_name) and ``annotations`` (image_id, caption). Without ``images`` the pictures stand beside the file."""

    def __init__(self, path: str, *, images: str | None = None):
        file = self.list_at(path, images)
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            captions: dict[object, list[str]] = {image["id"]: [] for image in said["images"]}
            for each in said["annotations"]:
                if each["image_id"] in captions and isinstance(each["caption"], str) and each["caption"].strip():
                    captions[each["image_id"]].append(each["caption"].strip())
            names = [(image["file_name"], tuple(captions[image["id"]])) for image in said["images"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not COCO's layout of captions (images, annotations): {in_short(error)}.") from error
        self.keep((name, name, said) for name, said in names)
        self.check_first(path)
