"""Recall against a loop, indexes against exact search, grids as pictures."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal.data.sources import open_source
from crossmodal.embed import Embeddings, encode
from crossmodal.errors import UserError
from crossmodal.retrieval.index import Index
from crossmodal.retrieval.recall import recall
from crossmodal.retrieval.search import grid, search, thumbnail
from tests.test_model import tiny_model


def random_pairs(n: int, captions: list[int], width: int = 6) -> Embeddings:
    owner = torch.tensor([i for i, c in enumerate(captions) for _ in range(c)])
    image = F.normalize(torch.randn(n, width), dim=1)
    text = F.normalize(image[owner] + 0.8 * torch.randn(len(owner), width), dim=1)
    return Embeddings(image, text, owner, list(range(n)), [f"k{i}" for i in range(n)], [f"t{i}" for i in range(len(owner))], [None] * n)


def naive(pairs: Embeddings, k: int) -> tuple[float, float]:
    """One query at a time, every caption counted, a picture found by any of its own captions."""
    scores = (pairs.text @ pairs.image.T).tolist()
    owner = pairs.owner.tolist()
    hits = 0
    for row, own in zip(scores, owner, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        hits += own in order[:k]
    found, asked = 0, 0
    for picture in range(len(pairs)):
        if picture in owner:
            asked += 1
            order = sorted(range(len(owner)), key=lambda t: (-scores[t][picture], t))
            found += any(owner[t] == picture for t in order[:k])
    return hits / len(owner), found / asked


@pytest.mark.parametrize("captions", [[1] * 9, [5] * 9, [0, 3, 1, 2, 0, 1, 4, 1, 1]])
def test_recall_equals_the_loop(captions):
    torch.manual_seed(0)
    pairs = random_pairs(9, captions)
    figures = recall(pairs, (1, 2, 5), block=4)
    for k in (1, 2, 5):
        to_image, to_text = naive(pairs, k)
        assert figures[f"image_retrieval_recall@{k}"] == pytest.approx(to_image)
        assert figures[f"text_retrieval_recall@{k}"] == pytest.approx(to_text)


def test_a_collapsed_model_is_at_chance():
    """Equal scores everywhere must not count as found."""
    pairs = random_pairs(10, [2] * 10)
    pairs.image, pairs.text = torch.ones(10, 1), torch.ones(20, 1)
    figures = recall(pairs, (1, 5))
    assert figures == {
        "image_retrieval_recall@1": 0.1,
        "image_retrieval_recall@5": 0.5,
        "text_retrieval_recall@1": 0.1,
        "text_retrieval_recall@5": pytest.approx(0.3),
    }


def test_index_finds_what_exact_search_finds(tmp_path):
    torch.manual_seed(0)
    pairs = random_pairs(200, [1] * 200, 16)
    index = Index.build(pairs, {"model": "m", "source": "s", "fingerprint": "f"})
    index.save(tmp_path / "i")
    again = Index.load(tmp_path / "i")
    scores, found = again.search(pairs.text, 7)
    exact = (pairs.text @ pairs.image.T).topk(7)
    assert torch.equal(found, exact.indices) and torch.allclose(scores, exact.values, atol=1e-5)
    assert again.items[3] == {"key": "k3", "row": 3, "label": None, "captions": ["t3"]}
    approximate = Index.build(pairs, kind="HNSW16").search(pairs.image, 1)[1][:, 0]
    assert (approximate == torch.arange(200)).float().mean() > 0.95


def test_index_mistakes_are_sentences(tmp_path):
    pairs = random_pairs(10, [1] * 10)
    with pytest.raises(UserError, match="faiss cannot build an index of kind 'Nonsense'"):
        Index.build(pairs, kind="Nonsense")
    with pytest.raises(UserError, match="holds no index"):
        Index.load(tmp_path)
    with pytest.raises(UserError, match="come from different models"):
        Index.build(pairs).search(torch.ones(1, 3))
    with pytest.raises(UserError, match="exists already and is no index"):
        Index.build(pairs).save(tmp_path)


def test_search_by_words_and_by_picture(pairs):
    model, source = tiny_model(), open_source(str(pairs))
    index = Index.build(encode(model, source))
    hits = search(index, model, pairs.parent / "05.jpg", 3)
    assert hits[0].key == "05.jpg" and hits[0].score == pytest.approx(1, abs=1e-4)
    assert hits[0].score >= hits[1].score >= hits[2].score
    assert len(search(index, model, "anything", 100)) == 48
    sheet = grid("a query " * 40, [(thumbnail(source, h.row), h.key) for h in hits], columns=2)
    assert sheet.size == (2 * 172 + 12, 44 + 2 * 194)
    assert sheet.getextrema() != ((255, 255),) * 3
