"""A searchable index of pictures: faiss, with what it takes to show a hit.

A folder: ``index.faiss``, ``items.jsonl`` (a line a picture) and ``index.json`` (model, source, kind).
"""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from crossmodal import files
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError


class Index:
    """N unit-length picture embeddings, searched by inner product (cosine similarity).

    Attributes:
        items: N mappings with "key", "row" (in the source), "label" and "captions".
        about: where the embeddings came from: "model", "source", "fingerprint".
    """

    def __init__(self, index: faiss.Index, items: list[dict], about: dict):
        assert index.ntotal == len(items)
        self.index, self.items, self.about = index, items, about

    @classmethod
    def build(cls, pictures: Embeddings, about: dict | None = None, kind: str = "Flat") -> Index:
        """Index embedded pictures. ``kind`` is a faiss factory string: "Flat" is exact, "HNSW32" and
        "IVF1024,Flat" are faster and approximate. Errors: ``UserError`` for a kind faiss does not know
        or has too few pictures to train."""
        vectors = np.ascontiguousarray(pictures.image.numpy(), dtype=np.float32)
        try:
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(vectors)
            index.add(vectors)
        except RuntimeError as error:
            raise UserError(
                f"faiss cannot build an index of kind {kind!r} over {len(vectors)} pictures: {str(error).splitlines()[-1].strip()}"
            ) from error
        captions: list[list[str]] = [[] for _ in pictures.keys]
        for caption, owner in zip(pictures.captions, pictures.owner.tolist(), strict=True):
            captions[owner].append(caption)
        items = [
            {"key": k, "row": r, "label": label, "captions": c}
            for k, r, label, c in zip(pictures.keys, pictures.rows, pictures.labels, captions, strict=True)
        ]
        return cls(index, items, {**(about or {}), "kind": kind})

    def search(self, queries: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
        """Unit-length queries [Q, D] → (cosine similarities [Q, k], item numbers [Q, k]; -1 where fewer than k were found)."""
        if queries.shape[-1] != self.index.d:
            raise UserError(f"the query has width {queries.shape[-1]}, the index {self.index.d}: they come from different models.")
        scores, found = self.index.search(np.ascontiguousarray(queries.numpy(), dtype=np.float32), min(k, len(self.items)))
        return torch.from_numpy(scores), torch.from_numpy(found)

    def save(self, folder: str | Path) -> None:
        """Write the index as a folder, whole."""
        folder = Path(folder)
        if folder.exists() and not (folder / "index.json").is_file():
            raise UserError(f"{folder}: exists already and is no index; choose another -o.")
        with files.whole_folder(folder) as inside:
            faiss.write_index(self.index, str(inside / "index.faiss"))
            files.write_text(inside / "items.jsonl", "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in self.items))
            files.write_json(inside / "index.json", {"format": 1, **self.about})

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Read an index. Errors: ``UserError`` when the folder holds none."""
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise UserError(f"{folder}: holds no index (index.json); make one with crossmodal index build.")
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
        return cls(faiss.read_index(str(folder / "index.faiss")), items, about)
