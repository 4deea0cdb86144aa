"""Encode once: the embeddings of a source's pictures and captions, in memory or as a folder.

Zero-shot, retrieval, probes and indexes all read ``Embeddings``. On disk they are shards: ``part-00000.safetensors``
(tensors) beside ``part-00000.jsonl`` (keys, captions, labels), each written whole, and ``embeddings.json``
when all are there. A broken-off run goes on at the first shard that is missing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from crossmodal import distributed, files
from crossmodal.data.loader import evaluation_batches
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError
from crossmodal.model import Model


@dataclass
class Embeddings:
    """N pictures and their M captions in one space, unit length, fp32."""

    image: Tensor  # [N, D]
    text: Tensor  # [M, D]
    owner: Tensor  # int64 [M]: which picture (0 … N - 1) a caption belongs to
    rows: list[int]  # N: the picture's index in the source
    keys: list[str]  # N
    captions: list[str]  # M
    labels: list[int | tuple[int, ...] | None]  # N
    broken: list[tuple[str, str]] = field(default_factory=list)  # (key, why) of pictures left out

    def __len__(self) -> int:
        return len(self.keys)


def join(parts: list[Embeddings]) -> Embeddings:
    """Several one after another, as one."""
    start, owners = 0, []
    for part in parts:
        owners.append(part.owner + start)
        start += len(part)
    chain = lambda name: [x for p in parts for x in getattr(p, name)]
    return Embeddings(
        torch.cat([p.image for p in parts]),
        torch.cat([p.text for p in parts]),
        torch.cat(owners),
        *(chain(n) for n in ("rows", "keys", "captions", "labels", "broken")),
    )


@torch.inference_mode()
def encode(
    model: Model,
    source: Source,
    *,
    texts: bool = True,
    rows: range | None = None,
    batch_size: int = 64,
    workers: int = 0,
    title: str = "encode",
    view: Callable[[Tensor], Tensor] | None = None,
) -> Embeddings:
    """Every picture of ``source`` (or of its ``rows``) and, if ``texts``, every caption. Pictures that do not
    decode are left out and listed in ``broken``. ``view`` stands in for the model's own preprocessing. Under several processes
    each encodes its share of the rows, in the batches that one process would have made, and all of them get the whole."""
    rows = range(len(source)) if rows is None else rows
    world, rank = distributed.world_size(), distributed.rank()
    batches = -(-len(rows) // batch_size)
    share = rows[batches * rank // world * batch_size : batches * (rank + 1) // world * batch_size]
    model.eval()
    images: list[Tensor] = []
    found = Embeddings(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.long), [], [], [], [])
    owner: list[int] = []
    quiet = not (distributed.is_main() and sys.stderr.isatty())
    with tqdm(total=len(share), unit="picture", desc=title, disable=quiet, leave=False) as bar:
        for items in evaluation_batches(source, view or model.eval_view(), share, batch_size, workers):
            whole = [(i, picture, sample) for i, picture, sample, _ in items if picture is not None]
            found.broken += [(sample.key, why) for _, picture, sample, why in items if picture is None]
            if whole:
                images.append(model.embed_images(torch.stack([p for _, p, _ in whole])).cpu())
            for index, _, sample in whole:
                owner += [len(found.keys)] * len(sample.captions)
                found.rows.append(index)
                found.keys.append(sample.key)
                found.labels.append(sample.label)
                found.captions += sample.captions
            bar.update(len(items))
    width = model.part.embed_dim
    found.image = torch.cat(images) if images else torch.empty(0, width)
    found.owner = torch.tensor(owner, dtype=torch.long)
    if not texts:
        found.captions, found.owner = [], torch.empty(0, dtype=torch.long)
    found.text = model.encode_text(found.captions) if found.captions else torch.empty(0, width)
    whole = join(distributed.all_objects(found))
    if len(whole) == 0:
        why = f"; the first, {whole.broken[0][0]}: {whole.broken[0][1]}" if whole.broken else ""
        raise UserError(f"none of the {len(rows)} pictures can be decoded{why}.")
    return whole


def fingerprint(model: Model) -> str:
    """16 hex digits that name a model's weights and preprocessing."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((model.image_size, model.image.resize, model.image.mean, model.image.std)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_fingerprint(source: Source) -> str:
    """16 hex digits that name what a source holds: every sample's key, picture, captions and label, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    quiet = not (distributed.is_main() and sys.stderr.isatty())
    for index in tqdm(range(len(source)), unit="sample", desc="fingerprint of the data", disable=quiet, leave=False):
        try:
            sample = source.identity(index)
            digest.update(repr((sample.key, len(sample.image), sample.captions, sample.label)).encode())
            digest.update(sample.image)
        except OSError as error:
            digest.update(str(error).encode())
    return digest.hexdigest()


def write(
    model: Model,
    model_ref: str,
    source: Source,
    spec: str,
    out: Path,
    *,
    shard: int = 8192,
    workers: int = 0,
    view: Callable[[Tensor], Tensor] | None = None,
) -> Path:
    """Encode a source into the folder ``out``, shard by shard; goes on where an earlier run broke off. Under several processes all of them
    encode and the first one writes.

    Errors: ``UserError`` when ``out`` holds the embeddings of another model or source.
    """
    about = {
        "format": 1,
        "model": _absolute(model_ref),
        "fingerprint": fingerprint(model),
        "source": _absolute(spec),
        "count": len(source),
        "shard": shard,
    }
    begun = out / "begun.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; -o names a folder.")
    if out.is_dir() and any(out.iterdir()):
        old = json.loads(begun.read_text(encoding="utf-8")) if begun.is_file() else None
        if old != about:
            raise UserError(f"{out}: exists already and holds something else than these embeddings; choose another -o or delete it.")
    starts = list(enumerate(range(0, len(source), shard)))
    missing = [(n, start) for n, start in starts if not (out / f"part-{n:05d}.safetensors").is_file()]
    distributed.barrier()  # every process has seen the same parts before the first writes another
    if distributed.is_main():
        files.write_json(begun, about)
    for number, start in missing:
        stem = out / f"part-{number:05d}"
        rows = range(start, min(start + shard, len(source)))
        part = encode(model, source, rows=rows, workers=workers, title=stem.name, view=view)
        if distributed.is_main():
            _write_part(stem, part)
    if distributed.is_main():
        broken = []
        for stem in sorted(out.glob("part-*.jsonl")):
            broken += json.loads(stem.read_text(encoding="utf-8").splitlines()[0])["broken"]
        files.write_json(out / "embeddings.json", {**about, "broken": broken})
    distributed.barrier()
    return out


def _write_part(stem: Path, part: Embeddings) -> None:
    captions: list[list[str]] = [[] for _ in part.keys]
    for caption, owner in zip(part.captions, part.owner.tolist(), strict=True):
        captions[owner].append(caption)
    lines = [{"broken": part.broken}]
    lines += [
        {"row": r, "key": k, "label": label, "captions": c}
        for r, k, label, c in zip(part.rows, part.keys, part.labels, captions, strict=True)
    ]
    files.write_text(stem.with_suffix(".jsonl"), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    files.write_bytes(stem.with_suffix(".safetensors"), save({"image": part.image, "text": part.text, "owner": part.owner}))


def read(folder: str | Path) -> tuple[Embeddings, dict]:
    """(the embeddings in a folder, what ``embeddings.json`` says of them). Errors: ``UserError``."""
    folder = Path(folder)
    if not (folder / "embeddings.json").is_file():
        raise UserError(f"{folder}: holds no finished embeddings (embeddings.json); make them with crossmodal embed.")
    about = json.loads((folder / "embeddings.json").read_text(encoding="utf-8"))
    parts = []
    for stem in sorted(folder.glob("part-*.safetensors")):
        tensors = load_file(stem)
        head, *lines = (json.loads(line) for line in stem.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines())
        parts.append(
            Embeddings(
                tensors["image"],
                tensors["text"],
                tensors["owner"],
                [x["row"] for x in lines],
                [x["key"] for x in lines],
                [c for x in lines for c in x["captions"]],
                [tuple(x["label"]) if isinstance(x["label"], list) else x["label"] for x in lines],
                [tuple(b) for b in head["broken"]],
            )
        )
    return join(parts), about


def _absolute(spec: str) -> str:
    """A spec that still means the same from another folder: a path in it becomes absolute, a name stays."""
    head, colon, path = spec.rpartition(":")
    file, question, options = path.partition("?")
    place = Path(file).expanduser()
    names_a_file = place.exists() or (len(place.parts) > 1 and place.parent.is_dir())  # x/{0..9}.tar does not exist itself
    return f"{head}{colon}{place.absolute()}{question}{options}" if names_a_file else spec
