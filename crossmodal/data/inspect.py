"""What a source holds, before anyone trains on it: counts, captions, pictures that are broken or repeated, what a batch will be like."""

from __future__ import annotations

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from tqdm import tqdm

from crossmodal.data.convert import kind
from crossmodal.data.sources.base import Source
from crossmodal.data.views import BrokenPicture, load_picture
from crossmodal.errors import UserError

SHOWN = 5  # keys that stand for a cause


@dataclass
class Found:
    """What ``look`` found. Lengths are sorted, so that quantiles can be read off."""

    samples: int = 0
    classes: int = 0
    captions: int = 0
    without_caption: int = 0
    labels: Counter = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)  # of each caption
    tokens: list[int] = field(default_factory=list)  # of each caption, start and end included, before truncation
    sides: list[tuple[int, int]] = field(default_factory=list)  # width and height of each whole picture
    formats: Counter = field(default_factory=Counter)
    broken: dict[str, list[str]] = field(default_factory=dict)  # cause → keys
    repeated_pictures: list[tuple[str, str]] = field(default_factory=list)  # (key, the first key with the very same file)
    repeated_captions: int = 0  # captions that stood before
    in_batch: float = 0.0  # rows of a batch that expect another row with the same caption
    bytes: int = 0


def look(source: Source, count_tokens: Callable[[list[str]], list[int]] | None = None, batch_size: int = 256) -> Found:
    """Read every sample and decode every picture. ``count_tokens`` maps captions to their lengths in tokens."""
    found = Found(samples=len(source), classes=len(source.classes or ()))
    seen: dict[bytes, str] = {}
    texts: Counter[str] = Counter()
    holders: Counter[str] = Counter()  # how many pictures have a caption
    drawn: Counter[str] = Counter()  # how often a caption is the one of its picture that a batch shows, in expectation
    for index in tqdm(range(len(source)), unit="sample", desc="inspect", disable=not sys.stderr.isatty(), leave=False):
        try:
            sample = source[index]
        except OSError as error:
            found.broken.setdefault(_cause(str(error)), []).append(f"sample {index}")
            continue
        found.bytes += len(sample.image)
        digest = hashlib.blake2b(sample.image, digest_size=16).digest()
        if digest in seen:
            found.repeated_pictures.append((sample.key, seen[digest]))
        seen.setdefault(digest, sample.key)
        try:
            load_picture(sample.image)
            with Image.open(io.BytesIO(sample.image)) as opened:
                found.sides.append(opened.size)
            found.formats[kind(sample.image) or opened.format or "?"] += 1
        except BrokenPicture as error:
            found.broken.setdefault(_cause(str(error)), []).append(sample.key)
        found.captions += len(sample.captions)
        found.without_caption += not sample.captions
        if isinstance(sample.label, int):
            found.labels[sample.label] += 1
        texts.update(sample.captions)
        for caption in sample.captions:
            drawn[caption] += 1 / len(sample.captions)
        holders.update(set(sample.captions))
    found.words = sorted(len(text.split()) for text, n in texts.items() for _ in range(n))
    found.repeated_captions = found.captions - len(texts)
    if count_tokens and texts:
        said = list(texts)
        lengths = [n for start in range(0, len(said), 4096) for n in count_tokens(said[start : start + 4096])]
        found.tokens = sorted(n for n, text in zip(lengths, said, strict=True) for _ in range(texts[text]))
    # A row shows caption c with the chance d / N, where d adds up 1 / (captions of the picture) over the pictures that have c; one
    # of the other B - 1 rows shows it too unless all of them are other pictures, or say something else of these.
    total, rest = max(found.samples, 1), batch_size - 1
    found.in_batch = batch_size / total * sum(d * (1 - (1 - (d - d / holders[c]) / total) ** rest) for c, d in drawn.items())
    return found


def quantile(values: list[int], share: float) -> int:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


#: What the libraries' messages have in common, and what they mean.
CAUSES = {
    "pixels, more than": "too many pixels",
    "decompression bomb": "too many pixels",
    "truncated": "cut short",
    "Truncated": "cut short",
    "Premature end": "cut short",
    "unexpected end": "cut short",
    "decoder object": "damaged",
    "broken data": "damaged",
    "no picture format": "no picture format is recognised",
    "cannot identify": "no picture format is recognised",
    "No such file": "no such file",
    "HTTP Error": "the address does not give it",
    "were expected": "a shard holds fewer samples than it was counted for",
    ": no such file": "no such file",
}


def _cause(message: str) -> str:
    """A message without what is the sample's own, so that like causes are counted together."""
    return next((cause for part, cause in CAUSES.items() if part in message), message.split(": ")[-1])


def token_counter(said: str) -> Callable[[list[str]], list[int]]:
    """Lengths in tokens, start and end included, by CLIP's tokenizer (``clip``) or that of ``hf:ID-OR-FOLDER``. Errors: ``UserError``."""
    if said == "clip":
        from open_clip.tokenizer import SimpleTokenizer

        tokenizer = SimpleTokenizer()
        return lambda texts: [len(tokenizer.encode(text)) + 2 for text in texts]
    from transformers import AutoTokenizer

    try:
        library = AutoTokenizer.from_pretrained(said.removeprefix("hf:"))
    except (OSError, ValueError) as error:
        raise UserError(f"{said}: no tokenizer there: {str(error).splitlines()[0]}") from error
    return lambda texts: [len(ids) for ids in library(texts)["input_ids"]]
