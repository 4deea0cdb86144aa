"""The figures against CLIP_benchmark's and open_clip's own functions: the same weights and data, to the last sample."""

import math

import open_clip
import open_clip_train.zero_shot
import pytest
import torch
import torch.nn.functional as F
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval

from crossmodal.data.sources import open_source
from crossmodal.data.views import load_picture
from crossmodal.embed import Embeddings, encode
from crossmodal.evaluation.tasks.base import Case
from crossmodal.evaluation.tasks.classification import Classification
from crossmodal.evaluation.tasks.composition import Composition
from crossmodal.evaluation.tasks.multilabel import MultiLabel
from crossmodal.evaluation.tasks.retrieval import Retrieval
from crossmodal.retrieval.recall import ranks, recall
from crossmodal.zeroshot.classifier import ZeroShotClassifier
from crossmodal.zeroshot.metrics import ranks as class_ranks
from tests.conftest import COLOURS, needs_shared
from tests.test_model import tiny_model

CLASSES = [f"{colour} {form}" for colour in COLOURS for form in ("circle", "cross")]


class TheirModel(torch.nn.Module):
    """Ours under open_clip's signature."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode_image(self, images, normalize=False):
        return self.model.embed_images(images)

    def encode_text(self, ids, normalize=False):
        return self.model._embed("text", self.model.text(ids)["pooled"])


class Loader:
    """A data loader of CLIP_benchmark: batches of pictures with labels or captions, and the classes."""

    def __init__(self, model, source, truth, classes=None, size=16):
        self.model, self.source, self.truth, self.size = model, source, truth, size
        self.dataset = type("Dataset", (), {"classes": classes or []})

    def __iter__(self):
        view = self.model.eval_view()
        for start in range(0, len(self.source), self.size):
            samples = [self.source[i] for i in range(start, min(start + self.size, len(self.source)))]
            told = [self.truth(s, start + n) for n, s in enumerate(samples)]
            yield torch.stack([view(load_picture(s.image)) for s in samples]), torch.stack(told) if torch.is_tensor(told[0]) else told

    def __len__(self):
        return math.ceil(len(self.source) / self.size)


@pytest.fixture
def old_float(monkeypatch):
    """Both libraries' ``accuracy`` asks ``float`` of an array of one number, which numpy has ceased to give."""
    for module in (zeroshot_classification, open_clip_train.zero_shot):
        monkeypatch.setattr(module, "float", lambda x: x.item() if hasattr(x, "item") else float(x), raising=False)


def case(model, source, **more) -> Case:
    pictures = encode(model, source)
    return Case(model, source, pictures=lambda: pictures, features=lambda: None, **more)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model().eval()


def test_classification_is_clip_benchmarks(model, class_folder, old_float):
    """acc1, acc5 and mean per-class recall, with several templates; classes of one to three pictures."""
    source, templates = open_source(f"{class_folder}?limit=11"), ["a {} here", "the {}", "{}"]
    mine = Classification().answer(
        case(model, source, templates=templates, classes=[(c,) for c in ("circle", "cross", "square", "triangle", "heart")])
    )
    names = ["circle", "cross", "square", "triangle", "heart"]
    loader = Loader(model, source, lambda s, n: torch.tensor(s.label), names)
    theirs = zeroshot_classification.evaluate(
        TheirModel(model), loader, model.text.tokenize, names, [t.replace("{}", "{c}") for t in templates], "cpu", amp=False
    )
    assert {k: mine.metrics[k] for k in theirs} == pytest.approx(theirs, abs=1e-9)


def test_multilabel_is_clip_benchmarks(model, pairs):
    source = open_source(str(pairs))
    names = [*COLOURS, "circle", "cross"]
    truth = lambda s: torch.tensor([int(any(name in c for c in s.captions)) for name in names])
    kept = case(model, source, classes=[(n,) for n in names], templates=["a {}"])
    pictures = kept.pictures()
    pictures.labels = [tuple(truth(source[row]).nonzero()[:, 0].tolist()) for row in pictures.rows]
    mine = MultiLabel().answer(kept)
    loader = Loader(model, source, lambda s, n: truth(s), names)
    theirs = zeroshot_classification.evaluate(TheirModel(model), loader, model.text.tokenize, names, ["a {c}"], "cpu", amp=False)
    assert mine.metrics["mean_average_precision"] == pytest.approx(theirs["mean_average_precision"], abs=1e-6)


def test_retrieval_is_clip_benchmarks(model, pairs):
    """Both ways, two captions a picture. Equal captions score alike, so the order of ties would matter: each gets a word of its own."""
    source = open_source(str(pairs))
    said = {sample.key: [f"{c} number {n}" for c in sample.captions] for n, sample in enumerate(source[i] for i in range(len(source)))}
    kept = encode(model, source)
    kept.captions = [c for key in kept.keys for c in said[key]]
    kept.text = model.encode_text(kept.captions)
    mine = recall(kept, ks=[1, 5, 10])
    loader = Loader(model, source, lambda s, n: said[s.key])
    theirs = zeroshot_retrieval.evaluate(TheirModel(model), loader, model.text.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert mine == pytest.approx(theirs, abs=1e-6)
    answer = Retrieval().answer(Case(model, source, pictures=lambda: kept, features=lambda: None))
    assert {k: answer.metrics[k] for k in theirs} == pytest.approx(theirs, abs=1e-6)


def test_open_clips_training_metrics_count_one_caption_of_several():
    """open_clip's own ``get_clip_metrics`` pairs row n with row n, one caption a picture. With one caption it agrees with ours; with five
    it is fed each picture five times, takes the copies of the right picture for wrong, and calls a perfect model wrong in four of five."""
    from open_clip_train.train import get_clip_metrics

    image, text = (F.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(n)), dim=1) for n in (0, 1))
    text = F.normalize(image + 0.7 * text, dim=1)
    one = Embeddings(image, text, torch.arange(60), list(range(60)), [str(n) for n in range(60)], [str(n) for n in range(60)], [None] * 60)
    theirs, mine = get_clip_metrics(image, text, torch.tensor(100.0)), recall(one)
    for k in (1, 5, 10):
        assert mine[f"image_retrieval_recall@{k}"] == pytest.approx(theirs[f"text_to_image_R@{k}"])
        assert mine[f"text_retrieval_recall@{k}"] == pytest.approx(theirs[f"image_to_text_R@{k}"])
    owner = torch.arange(60).repeat_interleave(5)
    captions = F.normalize(image[owner] + 0.01 * torch.randn(300, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    five = Embeddings(image, captions, owner, list(range(60)), [str(n) for n in range(60)], [str(n) for n in range(300)], [None] * 60)
    assert recall(five)["text_retrieval_recall@1"] == 1 == recall(five)["image_retrieval_recall@1"]
    assert get_clip_metrics(image[owner], captions, torch.tensor(100.0))["image_to_text_R@1"] < 0.5


def test_composition_is_clip_benchmarks_apart_from_ties():
    """CLIP_benchmark takes the first of equal scores for the answer, and in SugarCrepe's layout the right caption stands first: a model
    that sees no difference at all scores 100 %. Winoground's paper asks for strictly greater; then it scores nothing."""
    image = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = F.normalize(image + torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), dim=1)

    class Fixed(torch.nn.Module):
        def encode_image(self, x):
            return image[x[:, 0, 0, 0].long()]

        def encode_text(self, ids):
            return text[ids]

    batch = torch.arange(40.0).view(20, 2, 1, 1, 1)
    loader = [(batch, [[2 * n, 2 * n + 1] for n in range(20)])]
    theirs = image_caption_selection.evaluate(Fixed(), loader, torch.tensor, "cpu", amp=False)
    keys = [f"{n // 2}/{n % 2}" for n in range(40)]
    pairs = Embeddings(image, text, torch.arange(40), list(range(40)), keys, [str(n) for n in range(40)], [None] * 40)
    mine = Composition().answer(Case(None, None, pictures=lambda: pairs, features=lambda: None))
    assert mine.metrics == pytest.approx(theirs)
    image[:], text[:] = image[:1].clone(), text[:1].clone()
    blind = [(batch[:, :1], loader[0][1])]  # one picture, two captions
    assert image_caption_selection.evaluate(Fixed(), blind, torch.tensor, "cpu", amp=False)["text_acc"] == 1
    one = Embeddings(image[:20], text, torch.arange(40) // 2, list(range(20)), [f"{n}/0" for n in range(20)], list("ab" * 20), [None] * 20)
    assert Composition().answer(Case(None, None, pictures=lambda: one, features=lambda: None)).metrics == {"text_acc": 0}


def test_classifier_is_open_clips(model, old_float):
    """``build_zero_shot_classifier`` and ours: the same weights, and by its ``accuracy`` the same top-1 and top-5."""
    accuracy = open_clip_train.zero_shot.accuracy
    names, templates = [f"thing {n}" for n in range(12)], ["a photo of a {}.", "{}, drawn", "many {}"]
    mine = ZeroShotClassifier(model, names, templates)
    theirs = open_clip.build_zero_shot_classifier(
        TheirModel(model).eval(), model.text.tokenize, names, [lambda c, t=t: t.replace("{}", c) for t in templates]
    )
    assert torch.allclose(mine.weights, theirs.T, atol=1e-6)
    image = F.normalize(torch.randn(50, theirs.shape[0], generator=torch.Generator().manual_seed(0)), dim=1)
    y = torch.randint(12, (50,), generator=torch.Generator().manual_seed(1))
    rank = class_ranks(mine.scores(image), y)
    assert [(rank < k).sum().item() for k in (1, 5)] == [float(x) for x in accuracy(100 * image @ theirs, y, topk=(1, 5))]


def test_on_real_photos(model):
    """1,000 photos with five captions, random weights: recall to the last sample."""
    tar = needs_shared("flickr8k-val-128.tar")
    source = open_source(f"{tar}?limit=200")
    pairs = encode(model, source)
    loader = Loader(model, source, lambda s, n: list(s.captions), size=64)
    theirs = zeroshot_retrieval.evaluate(TheirModel(model), loader, model.text.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    if len(set(pairs.captions)) == len(pairs.captions):
        assert recall(pairs) == pytest.approx(theirs, abs=1e-6)
    collapsed = ranks(pairs, collapsed=True)
    assert len(collapsed.to_image) == len(set(pairs.captions))
