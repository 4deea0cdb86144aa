"""Planted near-duplicates are found, and nothing else is."""

import io
import json

import pytest
from PIL import Image, ImageOps

from crossmodal.batch import Sample
from crossmodal.cli import main
from crossmodal.data.sources import open_source
from crossmodal.data.sources.base import Source
from crossmodal.evaluation.leaks import duplicates
from tests.conftest import COLOURS, SHAPES, needs_shared, shape


class Listed(Source):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def spoilt(data: bytes, n: int) -> bytes:
    """Resized, re-encoded, mirrored, or several of these."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if n % 2:
        picture = ImageOps.mirror(picture)
    if n % 3 == 1:
        picture = picture.resize((64, 64))
    elif n % 3 == 2:
        picture = picture.resize((200, 150))
    out = io.BytesIO()
    picture.save(out, "JPEG" if n % 5 else "WEBP", quality=(85, 50, 30)[n % 3])
    return out.getvalue()


def test_ten_planted_among_eight_thousand():
    """6,000 photos to train on, 1,000 photos and 934 drawings to test on, and ten photos planted."""
    train = open_source(str(needs_shared("flickr8k-train-128.tar")))
    tests = [open_source(str(needs_shared(f"{name}.tar"))) for name in ("flickr8k-val-128", "tuxpaint-stamps-128")]
    samples = [source[i] for source in tests for i in range(len(source))]
    planted = {f"planted {n}": train[599 * n] for n in range(10)}
    samples[5:5] = [Sample(key, spoilt(sample.image, n)) for n, (key, sample) in enumerate(planted.items())]
    found = duplicates(Listed(samples), train, workers=2)
    assert {each.key: each.train_key for each in found} == {key: sample.key for key, sample in planted.items()}
    assert [each.mirrored for each in found] == [bool(n % 2) for n in range(10)]


@pytest.fixture
def leaky(tmp_path):
    """Two folders of classes, which share three pictures, one of them mirrored."""
    for place in ("train", "test"):
        for k, form in enumerate(SHAPES[:2]):
            (tmp_path / place / form).mkdir(parents=True)
            for n in range(4):
                own = 10 if place == "train" else 0
                shape(COLOURS[n], form, own + n + 4 * k).save(tmp_path / place / form / f"{n}.png")
    for n, form in ((0, SHAPES[0]), (1, SHAPES[0]), (2, SHAPES[1])):
        picture = Image.open(tmp_path / "test" / form / f"{n}.png")
        (ImageOps.mirror(picture) if n == 1 else picture.resize((128, 112))).save(tmp_path / "train" / form / f"copy{n}.png")
    return tmp_path


def test_figures_with_and_without(leaky, tmp_path, capsys):
    from tests.test_model import tiny_model

    tiny_model().eval().save(tmp_path / "m")
    out = tmp_path / "o.json"
    command = ["zeroshot", tmp_path / "m", "--data", leaky / "test", "--against", leaky / "train", "--output", out]
    assert main([str(c) for c in command]) == 0
    said = json.loads(out.read_text())
    pairs = {(d["key"], d["train_key"]) for d in said["leaks"]["duplicates"]}
    assert {(f"{SHAPES[0]}/0.png", f"{SHAPES[0]}/copy0.png"), (f"{SHAPES[1]}/2.png", f"{SHAPES[1]}/copy2.png")} <= pairs
    assert {"acc1", "acc5"} == set(said["leaks"]["without"])
    assert "stand in" in said["warnings"][-1] and "without leaks" in capsys.readouterr().out
