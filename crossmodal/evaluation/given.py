"""Embeddings from files, scored like a model's: a teacher that runs elsewhere, or not any more. ``embeddings:DIR`` in place of a model.

``DIR`` holds ``pictures.safetensors`` and ``texts.safetensors``, each with one tensor ``embeddings`` [N, D], and beside them
``pictures.json`` (a list of N keys, as the data source names them) and ``texts.json`` (a list of texts, prompts among them). ``about.json``
may say ``logit_scale`` (1 / temperature; 100 otherwise) and ``logit_bias``.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossmodal import files
from crossmodal.data.sources.base import Source
from crossmodal.data.views import EvalView
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError
from crossmodal.evaluation.result import digest


class GivenModel:
    """What the evaluator asks of a model, answered from files. Errors: ``UserError`` for files that are not there or do not fit."""

    templates = ("a photo of a {}.",)

    def __init__(self, folder: Path):
        self.folder = folder
        keys, self.pictures = self._read("pictures")
        texts, self.vectors = self._read("texts")
        self.by_key = {key: n for n, key in enumerate(keys)}
        self.by_text = {text: n for n, text in enumerate(texts)}
        if self.pictures.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"{folder}: pictures have {self.pictures.shape[1]} dimensions and texts {self.vectors.shape[1]}; they share one space."
            )
        about = files.read_json(folder / "about.json") if (folder / "about.json").is_file() else {}
        self.logit_scale = torch.tensor([math.log(about.get("logit_scale", 100.0))])
        self.logit_bias = torch.tensor([float(about.get("logit_bias", 0.0))])
        unknown = SimpleNamespace(tower="embeddings", pretrained=None)
        self.part = SimpleNamespace(image=unknown, text=unknown, embed_dim=self.vectors.shape[1])
        self.image = SimpleNamespace(resize="unknown", mean=(), std=())
        self.image_size, self.training_record = 0, {}

    def _read(self, name: str) -> tuple[list[str], Tensor]:
        tensors, names = self.folder / f"{name}.safetensors", self.folder / f"{name}.json"
        for file in (tensors, names):
            if not file.is_file():
                raise UserError(
                    f"{file}: no such file; embeddings are pictures and texts, each .safetensors (embeddings [N, D]) and .json (N names)."
                )
        try:
            found, said = load_file(tensors)["embeddings"].float(), files.read_json(names)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{tensors}: holds no tensor 'embeddings', or {names.name} no list ({error}).") from error
        if found.ndim != 2 or not isinstance(said, list) or len(said) != len(found):
            raise UserError(f"{tensors}: is of shape {list(found.shape)}, and {names.name} names {len(said):,}; it must be one row a name.")
        return said, F.normalize(found, dim=1)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts → unit-length [N, D]. Errors: ``UserError`` where the files lack some; they are then listed in ``missing.json``."""
        missing = list(dict.fromkeys(t for t in texts if t not in self.by_text))
        if missing:
            files.write_json(self.folder / "missing.json", missing)
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.folder}/texts.json lacks {missing[0]!r}{more}; all stand in {self.folder}/missing.json, to be embedded."
            )
        return self.vectors[[self.by_text[t] for t in texts]]

    def eval_view(self) -> EvalView:
        """Nothing is known of how pictures were made ready."""
        return EvalView(1)


class GivenStore:
    """In place of a ``Store``."""

    def __init__(self, ref: str, folder: Path):
        self.model, self.ref = GivenModel(folder), ref
        self.fingerprint = digest(list(self.model.by_key), self.model.pictures.sum(0).tolist(), self.model.vectors.sum(0).tolist())

    def embeddings(self, source: Source, *_: object) -> Embeddings:
        """The source's pictures that have a row, in the source's order; the others are ``broken``."""
        samples = [(row, source.identity(row)) for row in range(len(source))]
        has = [(row, s) for row, s in samples if s.key in self.model.by_key]
        broken = [(s.key, "has no embedding in the files") for _, s in samples if s.key not in self.model.by_key]
        if not has:
            raise UserError(f"{self.model.folder}/pictures.json: names none of the data's keys, such as {samples[0][1].key!r}.")
        captions = [c for _, s in has for c in s.captions]
        known = all(c in self.model.by_text for c in captions)
        return Embeddings(
            self.model.pictures[[self.model.by_key[s.key] for _, s in has]],
            self.model.encode_text(captions) if known and captions else torch.empty(0, self.model.part.embed_dim),
            torch.tensor([n for n, (_, s) in enumerate(has) for _ in s.captions] if known else [], dtype=torch.long),
            [row for row, _ in has],
            [s.key for _, s in has],
            captions if known else [],
            [s.label for _, s in has],
            broken,
        )

    def features(self, source: Source, *_: object) -> tuple[Tensor, list[str], list]:
        """The pictures' embeddings as features."""
        found = self.embeddings(source)
        return found.image, found.keys, found.labels
