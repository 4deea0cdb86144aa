"""Prompts, classifier and figures against hand-computed ones."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal.data.sources import open_source
from crossmodal.embed import encode
from crossmodal.errors import UserError
from crossmodal.zeroshot.classifier import ZeroShotClassifier, score
from crossmodal.zeroshot.labels import match
from crossmodal.zeroshot.metrics import average_precision, bin_means, calibration_error, classification, fit_temperature, ranks
from crossmodal.zeroshot.prompts import fill, prompts, read_classes, read_descriptions, read_ids, read_templates
from crossmodal.zeroshot.templates import rank
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
    for row, said in enumerate((["a cat.", "the cat", "a kitty.", "the kitty"], ["a dog.", "the dog"])):
        by_hand = F.normalize(torch.stack([model.encode_text(p)[0] for p in said]).mean(0), dim=0)
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


def test_scoring_a_folder(class_folder):
    model = tiny_model()
    source = open_source(str(class_folder))
    pictures = encode(model, source, texts=False)
    figures = score(ZeroShotClassifier(model, source.classes), pictures)
    assert set(figures) == {"acc1", "acc5", "mean_per_class_recall"} and len(pictures) == 12
    by_hand = (
        model.encode_image([class_folder / k for k in pictures.keys])
        @ ZeroShotClassifier(model, ["circle", "cross", "square", "triangle"]).weights.T
    ).argmax(1)
    assert figures["acc1"] == pytest.approx((by_hand == torch.tensor(pictures.labels)).float().mean().item())


def test_templates_of_open_clip():
    import open_clip.zero_shot_metadata as metadata

    openai = read_templates(["open_clip:openai"])
    assert len(openai) == 80 and [t.replace("{}", "x") for t in openai] == [t("x") for t in metadata.OPENAI_IMAGENET_TEMPLATES]
    assert len(read_templates(["open_clip:simple", "one {}"])) == 8


def test_classes_from_everywhere(tmp_path):
    assert read_classes(["cat", ["dog", "hound"]]) == [("cat",), ("dog", "hound")]
    (tmp_path / "names.txt").write_text("# animals\ncat\tkitty\ndog\n")
    assert read_classes(str(tmp_path / "names.txt")) == [("cat", "kitty"), ("dog",)]
    names, ids = read_classes("open_clip:imagenet"), read_ids("timm:imagenet")
    assert len(names) == len(ids) == 1000 and (names[0], ids[0]) == (("tench",), "n01440764")
    assert len(read_ids("timm:imagenet_a")) == len(read_ids("timm:imagenet_r")) == 200
    with pytest.raises(UserError, match="no such file of class names"):
        read_classes(str(tmp_path / "none.txt"))


def test_descriptions_stand_in_for_templates(tmp_path):
    (tmp_path / "d.json").write_text('{"cat": ["a small beast", "it purrs"], "dog": ["it barks"]}')
    said = read_descriptions(tmp_path / "d.json")
    assert prompts([("kitty", "cat"), "dog"], ["a {}"], said) == [["a small beast", "it purrs"], ["it barks"]]
    with pytest.raises(UserError, match="none for the class 'cow'"):
        prompts(["cow"], [], said)
    (tmp_path / "d.json").write_text('{"cat": "a small beast"}')
    with pytest.raises(UserError, match="descriptions are one mapping"):
        read_descriptions(tmp_path / "d.json")


def test_labels_are_matched_by_id_name_or_number():
    classes, ids = [("tench",), ("great white shark", "white shark"), ("hen",)], ["n01", "n02", "n03"]
    assert match([("n03",), ("n01",)], classes, ids) == ([2, 0], "WordNet id")
    assert match([("White_Shark",), ("hen",)], classes) == ([1, 2], "name")
    assert match([("0",), ("2",)], classes) == ([0, 2], "number")
    assert match(None, classes) == ([0, 1, 2], "number")
    with pytest.raises(UserError, match=r"the data's class 'hens' is none of the 3 classes.*did you mean 'hen'"):
        match([("tench",), ("hens",)], classes, ids)
    with pytest.raises(UserError, match="3 classes but 1 WordNet ids"):
        match([("tench",)], classes, ["n01"])


def test_labels_outside_the_classes_are_refused(tmp_path):
    from tests.conftest import write_tar

    tar = write_tar(tmp_path / "l.tar", {"7.png": encoded(shape("red", "cross")), "7.json": b'{"label": 5}'})
    source = open_source(f"{tar}")
    with pytest.raises(UserError, match="7: its label is 5, but there are 2 classes"):
        score(ZeroShotClassifier(tiny_model(), ["a", "b"]), encode(tiny_model(), source, texts=False))


def test_templates_are_ranked_alone_and_together(class_folder):
    model = tiny_model()
    source = open_source(str(class_folder))
    templates = ["a {}", "the {} here", "{}", "one more {}"]
    found = rank(model, source, templates, most=3)
    by_hand = {t: score(ZeroShotClassifier(model, source.classes, [t]), encode(model, source))["acc1"] for t in templates}
    assert dict(found.alone) == pytest.approx(by_hand)
    assert [a for _, a in found.alone] == sorted(by_hand.values(), reverse=True)
    together = score(ZeroShotClassifier(model, source.classes, found.chosen), encode(model, source))["acc1"]
    assert found.together == pytest.approx(together) and found.together >= found.alone[0][1]


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.15])
    hits = torch.tensor([True, False, True, False])
    # bins of 1/10: 0.95 twice, half of them right; 0.55 right; 0.15 wrong
    assert calibration_error(confidence, hits, 10) == pytest.approx((2 * 0.45 + 0.45 + 0.15) / 4)
    assert [n for *_, n in bin_means(confidence, hits, 10)] == [1, 1, 2]


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_fitted_temperature_has_the_least_loss(true):
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=chance) * 2
    y = torch.multinomial(logits.softmax(1), 1, generator=chance)[:, 0]
    found = fit_temperature(logits * true, y)
    loss = lambda t: F.cross_entropy(logits.double() * true / t, y).item()
    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))
    assert found == pytest.approx(true, rel=0.1)
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert F.cross_entropy(sure / fit_temperature(sure, torch.tensor([0, 1])), torch.tensor([0, 1])) < 1e-6  # no minimum: very sharp


def test_average_precision_by_hand_and_by_scikit_learn():
    from sklearn.metrics import average_precision_score

    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    truth = torch.tensor([[1], [0], [1], [0]])
    assert average_precision(scores, truth).item() == pytest.approx((1 + 2 / 3) / 2)
    chance = torch.Generator().manual_seed(1)
    scores, truth = torch.rand(200, 7, generator=chance), torch.rand(200, 7, generator=chance) < 0.2
    theirs = [average_precision_score(truth[:, c], scores[:, c]) for c in range(7)]
    assert average_precision(scores, truth.long()).tolist() == pytest.approx(theirs)
