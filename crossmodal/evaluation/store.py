"""Embeddings that several benchmarks, metrics and runs share: encoded once, kept by the fingerprints of model, preprocessing and data."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save

from crossmodal import distributed, embed, files, probe, resources
from crossmodal.data.sources.base import Source
from crossmodal.data.views import EvalView
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError
from crossmodal.model import Model

OVERWRITE = ("never", "missing", "always")


def default_root() -> Path:
    """The folder ``embeddings`` in the program's cache."""
    return resources.cache() / "embeddings"


class Store:
    """One model's embeddings of many sources, in folders ``ROOT/MODEL-PREPROCESSING/DATA``.

    Args:
        root: the folder; None: ``default_root``.
        overwrite: "missing" encodes what is not there, "always" encodes anew, "never" reads only and refuses to encode.
    """

    def __init__(self, model: Model, ref: str, root: Path | None = None, overwrite: str = "missing", workers: int = 0):
        self.model, self.ref, self.overwrite, self.workers = model, ref, overwrite, workers
        self.root = root or default_root()
        self.fingerprint = embed.fingerprint(model)
        self._made: set[Path] = set()  # "always" means once a run, not once a benchmark

    def embeddings(self, source: Source, data: str, view: EvalView, preprocessing: str) -> Embeddings:
        """A source's pictures and captions. ``data`` and ``preprocessing`` are fingerprints. Errors: ``UserError``."""
        folder = self._folder(data, preprocessing)
        if not self._stands(folder, folder / "embeddings.json"):
            embed.write(self.model, self.fingerprint, source, data, folder, workers=self.workers, view=view)
            self._made.add(folder)
        return embed.read(folder)[0]

    def features(self, source: Source, data: str, view: EvalView, preprocessing: str) -> tuple:
        """The image tower's pooled features [N, W], keys and labels of a source."""
        folder = self._folder(f"{data}-features", preprocessing)
        file = folder / "features.safetensors"
        if not self._stands(folder, file):
            x, keys, labels = probe.keyed_features(self.model.image, source, view, self.workers)
            if distributed.is_main():
                files.write_json(folder / "features.json", {"keys": keys, "labels": labels})
                files.write_bytes(file, save({"pooled": x}))
            distributed.barrier()
            self._made.add(folder)
        about = files.read_json(folder / "features.json")
        return load_file(file)["pooled"], about["keys"], about["labels"]

    def _folder(self, data: str, preprocessing: str) -> Path:
        return self.root / f"{self.fingerprint}-{preprocessing}" / data

    def _stands(self, folder: Path, whole: Path) -> bool:
        """Whether what is wanted stands in the store, whole; makes room for it where it does not."""
        if self.overwrite == "always" and folder not in self._made:
            distributed.barrier()
            if distributed.is_main():
                shutil.rmtree(folder, ignore_errors=True)
            distributed.barrier()
            return False
        if whole.is_file():
            return True
        if self.overwrite == "never":
            raise UserError(f"{folder}: holds no finished embeddings, and --overwrite never encodes none; use --overwrite missing.")
        return False
