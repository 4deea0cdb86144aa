"""How good captions are: CIDEr and BLEU-4 against what people wrote, with intervals; and the baseline of copying one.

The metrics are kept libraries' (extra ``captions``): pycocoevalcap's CIDEr and sacrebleu's BLEU, on one tokenisation.
"""

from __future__ import annotations

import sys

import numpy as np
from tqdm import tqdm

from crossmodal import intervals
from crossmodal.data.loader import evaluation_batches
from crossmodal.data.sources.base import Source
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError
from crossmodal.model import Model

TOKENISER = "lower case, sacrebleu's 13a, punctuation left out"


def tokenised(text: str) -> str:
    """A caption as the metrics read it: words in lower case with a blank between, punctuation left out."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return " ".join(w for w in Tokenizer13a()(text.lower()).split() if any(c.isalnum() for c in w))


def score(said: list[str], references: list[list[str]], resamples: int = 1000, seed: int = 0) -> dict[str, float | list[float]]:
    """Captions of N pictures against each picture's references.

    Returns ``CIDEr`` (Vedantam et al. 2015; with CIDEr-D's clipping and length penalty, as pycocoevalcap computes it, document frequencies
    from these references) and ``BLEU-4`` (Papineni et al. 2002, of the corpus, 0 to 100), each with a 95 % interval over ``resamples``
    bootstrap samples of the pictures under ``… interval``, and ``distinct``, the share of captions that differ from all others before.

    Errors: ``UserError`` where the extra is not installed or a picture has no reference.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UserError(f"scoring captions needs {error.name}: pip install 'crossmodal[captions]'.") from error
    if not all(references):
        raise UserError("a picture has no caption to compare with; score captions on a source whose every picture has some.")
    hypotheses = [tokenised(s) for s in said]
    wanted = [[tokenised(r) for r in each] for each in references]
    rows = dict(enumerate(hypotheses))
    cider, each = Cider().compute_score(dict(enumerate(wanted)), {n: [h] for n, h in rows.items()})
    most = max(len(w) for w in wanted)
    streams = [[w[n] if n < len(w) else None for w in wanted] for n in range(most)]
    bleu = BLEU(tokenize="none", force=True)
    counts = np.array(bleu._extract_corpus_statistics(hypotheses, streams))  # [N, 2 + 2 · 4]: what a corpus score is added up from
    total = lambda pick: bleu._compute_score_from_stats(counts[pick].sum(0).tolist()).score
    interval = lambda figure: list(intervals.bootstrap(figure, len(said), resamples, seed))
    return {
        "CIDEr": float(cider),
        "CIDEr interval": interval(lambda pick: each[pick].mean()),
        "BLEU-4": total(np.arange(len(said))),
        "BLEU-4 interval": interval(total),
        "distinct": len(set(said)) / len(said),
    }


def caption(
    model: Model, source: Source, workers: int = 0, **search
) -> tuple[list[int], list[str], list[list[str]], list[tuple[str, str]]]:
    """(rows, captions, references, broken): every picture of a source described; ``search`` goes to ``Model.caption``."""
    rows: list[int] = []
    said: list[str] = []
    references: list[list[str]] = []
    broken: list[tuple[str, str]] = []
    with tqdm(total=len(source), unit="picture", desc="caption", disable=not sys.stderr.isatty(), leave=False) as bar:
        for items in evaluation_batches(source, model.eval_view(), range(len(source)), workers=workers):
            whole = [(row, picture, sample) for row, picture, sample, _ in items if picture is not None]
            broken += [(sample.key, why) for _, picture, sample, why in items if picture is None]
            said += model.caption([p for _, p, _ in whole], **search)
            rows += [row for row, _, _ in whole]
            references += [list(sample.captions) for _, _, sample in whole]
            bar.update(len(items))
    return rows, said, references, broken


def copied(pictures: Embeddings, train: Embeddings, source: Source) -> list[str]:
    """The baseline: for each picture the first caption of the picture of ``source`` whose embedding in ``train`` is nearest.

    Errors: ``UserError`` where no picture of the source has a caption.
    """
    out = []
    for near in (pictures.image @ train.image.T).argsort(1, descending=True).tolist():
        captions = (source[train.rows[n]].captions for n in near)
        out.append(next((each[0] for each in captions if each), None))
        if out[-1] is None:
            raise UserError("the pictures to copy from have no captions.")
    return out
