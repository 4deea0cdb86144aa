"""Prompts, classifier and figures against hand-computed ones."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal.data.sources import open_source
from crossmodal.errors import UserError
from crossmodal.zeroshot import benchmark
from crossmodal.zeroshot.classifier import ZeroShotClassifier
from crossmodal.zeroshot.metrics import classification, ranks
from crossmodal.zeroshot.prompts import fill, read_templates
from tests.conftest import encoded, shape
from tests.test_model import tiny_model


def test_fill_takes_every_name_in_every_template():
    assert fill(("cat", "kitty"), ["a {}.", "the {}"]) == ["a cat.", "the cat", "a kitty.", "the kitty"]


def test_templates_from_everywhere(tmp_path):
    (tmp_path / "t.txt").write_text("# mine\none {}\n\ntwo {}\n")
    assert read_templates(["zero {}", str(tmp_path / "t.txt")]) == ["zero {}", "one {}", "two {}"]
    assert "a photo of a {}." in read_templates(["simple"])
    (tmp_path / "t.txt").write_text("fine {}\nnot fine\n")
    with pytest.raises(UserError, match="line 2: the template 'not fine' lacks"):
        read_templates([str(tmp_path / "t.txt")])


def test_class_weights_are_normalised_means_of_normalised_prompts():
    model = tiny_model()
    classifier = ZeroShotClassifier(model, [("cat", "kitty"), "dog"], ["a {}.", "the {}"])
    for row, prompts in enumerate((["a cat.", "the cat", "a kitty.", "the kitty"], ["a dog.", "the dog"])):
        by_hand = F.normalize(torch.stack([model.encode_text(p)[0] for p in prompts]).mean(0), dim=0)
        assert torch.allclose(classifier.weights[row], by_hand, atol=1e-6)
    named = classifier.predict([shape("red", "circle")], k=5)
    assert len(named[0]) == 2 and sum(p for _, p in named[0]) == pytest.approx(1)


def test_figures_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.1, 0.7], [0.5, 0.5, 0.1], [0.5, 0.5, 0.1]])
    labels = torch.tensor([0, 1, 0, 1])
    rank = ranks(scores, labels)
    assert rank.tolist() == [0, 2, 0, 1]  # of equal scores the earlier class stands first
    figures = classification(rank, labels, 3)
    assert figures == {"acc1": 0.5, "acc5": 1.0, "mean_per_class_recall": 0.5}
    assert classification(torch.tensor([0, 0, 5]), torch.tensor([0, 0, 1]), 3)["mean_per_class_recall"] == 0.5


def test_scoring_a_folder(class_folder, tmp_path):
    model = tiny_model()
    figures, pictures = benchmark.score_source(model, open_source(str(class_folder)))
    assert set(figures) == {"acc1", "acc5", "mean_per_class_recall"} and len(pictures) == 12
    by_hand = (
        model.encode_image([class_folder / k for k in pictures.keys])
        @ ZeroShotClassifier(model, ["circle", "cross", "square", "triangle"]).weights.T
    ).argmax(1)
    assert figures["acc1"] == pytest.approx((by_hand == torch.tensor(pictures.labels)).float().mean().item())


def test_packaged_benchmarks_are_readable_and_mistakes_are_sentences(tmp_path, pairs):
    assert benchmark.find("openmoji").source == "emoji:openmoji"
    with pytest.raises(UserError, match="did you mean 'openmoji'"):
        benchmark.find("openmojo")
    (tmp_path / "b.yaml").write_text("sourc: x\n")
    with pytest.raises(UserError, match="not a benchmark"):
        benchmark.find(str(tmp_path / "b.yaml"))
    with pytest.raises(UserError, match="has no classes"):
        benchmark.score_source(tiny_model(), open_source(str(pairs)))


def test_labels_outside_the_classes_are_refused(tmp_path):
    from tests.conftest import write_tar

    tar = write_tar(tmp_path / "l.tar", {"7.png": encoded(shape("red", "cross")), "7.json": b'{"label": 5}'})
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="7: its label is 5, but there are 2 classes"):
        benchmark.score_source(tiny_model(), open_source(f"{tar}?classes={tmp_path / 'names.txt'}"))
