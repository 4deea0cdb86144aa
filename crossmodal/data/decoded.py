"""Pictures decoded once, before training, for data that fit on the disk, and best into memory: ``data.cache_pictures``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from crossmodal import distributed
from crossmodal.batch import Sample
from crossmodal.data.sources.base import Source
from crossmodal.data.strings import Groups, Strings
from crossmodal.data.views import BrokenPicture, load_picture
from crossmodal.errors import UserError

SOME = 100  # pictures after which it is clear how much room all will take


class Decoded(Source):
    """Another source with its pictures as uint8 [3, H, W], as ``load_picture`` decodes them; a broken one stays what it was.

    They stand in one file, mapped into memory, that all processes and workers of a machine share and that ends with them. It is made
    in the system's folder for temporary files ($TMPDIR). Errors: ``UserError`` where they do not fit there.
    """

    def __init__(self, source: Source, at_least: int, workers: int):
        self.source, self.classes, self.templates = source, source.classes, source.templates
        makes = os.environ.get("LOCAL_RANK", "0") == "0"  # one process on each machine
        made = (socket.gethostname(), makes, tempfile.mkdtemp(prefix="crossmodal-") if makes else "")
        folder = Path(next(f for host, has, f in distributed.all_objects(made) if has and host == made[0]))
        try:
            problem = _write(source, at_least, workers, folder) if makes else None
            problem = next(filter(None, distributed.all_objects(problem)), None)
            if problem:
                raise UserError(problem)
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            self.shapes = np.array(about["shapes"], dtype=np.int32)  # [N, 2]; 0 × 0 for what is broken
            self.starts = np.concatenate([[0], np.cumsum(3 * np.prod(self.shapes, axis=1, dtype=np.int64))])
            self.keys, self.captions = Strings(about["keys"]), Groups(about["captions"])
            whole = int(self.starts[-1])
            self.pixels = torch.from_file(str(folder / "pixels"), size=whole, dtype=torch.uint8) if whole else torch.empty(0)
            distributed.barrier()
        finally:
            if makes:  # mapped, it lives until the last process ends
                shutil.rmtree(folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        start, stop = self.starts[index : index + 2]
        if start == stop:
            return self.source[index]
        picture = self.pixels[start:stop].view(3, *self.shapes[index].tolist())
        return Sample(self.keys[index], picture, self.captions[index])


class _Pictures(Dataset):
    """Index → (key, captions, picture or an empty tensor)."""

    def __init__(self, source: Source, at_least: int):
        self.source, self.at_least = source, at_least

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, tuple[str, ...], Tensor]:
        try:
            sample = self.source[index]
            return sample.key, sample.captions, load_picture(sample.image, self.at_least)
        except (OSError, BrokenPicture):
            return "", (), torch.empty(3, 0, 0, dtype=torch.uint8)


def _write(source: Source, at_least: int, workers: int, folder: Path) -> str | None:
    """``pixels`` and ``about.json``; returns what stood in the way."""
    about: dict[str, list] = {"keys": [], "captions": [], "shapes": []}
    quiet, total = not (distributed.is_main() and sys.stderr.isatty()), len(source)
    loader = DataLoader(_Pictures(source, at_least), 16, collate_fn=list, num_workers=workers, generator=torch.Generator())
    try:
        with (folder / "pixels").open("wb") as out, tqdm(total=total, unit="picture", desc="decode", disable=quiet, leave=False) as bar:
            for batch in loader:
                for key, captions, picture in batch:
                    out.write(picture.numpy().tobytes())
                    about["keys"].append(key)
                    about["captions"].append(captions)
                    about["shapes"].append(picture.shape[1:])
                done = len(about["keys"])
                room, needed = shutil.disk_usage(folder).free, out.tell() // done * (total - done)
                if done >= SOME and needed > room:
                    return (
                        f"data.cache_pictures: the pictures need about {needed / 2**30:,.1f} GiB more in {folder.parent}, which has "
                        f"{room / 2**30:,.1f} free; set TMPDIR to a larger disk, or leave it out."
                    )
                bar.update(len(batch))
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        return f"data.cache_pictures: {folder}: {error.strerror or error}."
    return None
