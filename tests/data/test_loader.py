"""Order and randomness depend on seed and step alone; broken pictures are replaced and reported."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from crossmodal.batch import ViewSpec
from crossmodal.data.loader import TrainingPairs, check_batch, evaluation_batches, sentences, training_batches
from crossmodal.data.order import Order
from crossmodal.data.sources import open_source
from crossmodal.data.views import EvalView
from crossmodal.errors import UserError
from crossmodal.recipe import Augment, DataPart
from tests.conftest import encoded, shape, write_tar

VIEWS = {"image": ViewSpec("image"), "text": ViewSpec("text")}


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(t)] for t in texts])


def batches(source, *, batch_size=10, workers=0, start=0, stop=10, seed=0, **data):
    part = DataPart(image_size=16, batch_size=batch_size, workers=workers, augment=Augment(crop=(0.5, 1.0)), **data)
    pairs = TrainingPairs(source, VIEWS, part, "shortest", seed)
    return list(sentences(training_batches(pairs, source, part, tokenize, seed, start, stop)))


def test_every_sample_once_an_epoch_in_another_order():
    order = Order(48, seed=3)
    epochs = [[order[48 * e + i] for i in range(48)] for e in range(3)]
    assert all(sorted(e) == list(range(48)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [order[i] for i in range(48)] == epochs[0]  # going back is the same sequence


def test_no_partial_batch_is_lost(pairs):
    seen = Counter(i for b in batches(open_source(str(pairs)), stop=24) for i in b.index.tolist())
    assert set(seen.values()) == {5}  # 24 steps of 10 are 5 epochs of 48


def test_resuming_and_workers_change_nothing(pairs):
    source = open_source(str(pairs))
    whole = batches(source)
    for other in (batches(source, start=6), batches(source, workers=2)[6:]):
        for a, b in zip(whole[6:], other, strict=True):
            assert torch.equal(a.images["image"], b.images["image"])
            assert torch.equal(a.texts["text"], b.texts["text"])
            assert torch.equal(a.index, b.index)
    assert not torch.equal(whole[0].index, batches(source, seed=1)[0].index)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_decoded_once_are_the_same_pictures(pairs, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    members = {f"{n}.jpg": encoded(shape("red", "circle", n).resize((90 + 9 * n, 70)), "JPEG") for n in range(20)}
    members |= {f"{n}.txt": f"number {n}".encode() for n in range(20)} | {"3.jpg": b"no picture", "5.txt": b""}
    source = open_source(str(write_tar(tmp_path / "some.tar", members)))
    part = DataPart(image_size=16, batch_size=6, workers=workers, augment=Augment(crop=(0.5, 1.0)))
    drawn = []
    for once in (False, True):
        pairs = TrainingPairs(source, VIEWS, part, "shortest", 0)
        if once:
            pairs.decode_once(workers)
            assert isinstance(pairs.source[0].image, torch.Tensor) and pairs.source[3].image == b"no picture"
        drawn.append(list(sentences(training_batches(pairs, source, part, tokenize, 0, 0, 6))))
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a.images["image"], b.images["image"]) and a.keys == b.keys and a.broken == b.broken
        assert torch.equal(a.texts["text"], b.texts["text"])
    assert [f.name for f in tmp_path.iterdir()] == ["some.tar"], "the file goes when it is mapped"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr("crossmodal.data.decoded.SOME", 4)
    with pytest.raises(UserError, match=r"need about 0.0 GiB more in .*, which has 0.0 free; set TMPDIR to a larger disk"):
        TrainingPairs(source, VIEWS, part, "shortest", 0).decode_once(0)


def test_captions_vary_over_epochs(pairs):
    drawn = {b.texts["text"][row].item() for b in batches(open_source(str(pairs)), stop=40) for row in range(10) if b.index[row] == 0}
    assert len(drawn) == 2


def test_broken_pictures_are_replaced_and_named(tmp_path):
    members = {}
    for n in range(8):
        members[f"{n}.png"] = b"broken" if n == 3 else encoded(shape("red", "circle", n))
        members[f"{n}.txt"] = f"number {n}".encode()
    source = open_source(str(write_tar(tmp_path / "some.tar", members)))
    found = batches(source, batch_size=8, stop=1)[0]
    assert [k for k, _ in found.broken] == ["3"]
    assert found.images["image"].shape == (8, 3, 16, 16)
    items = [item for several in evaluation_batches(source, EvalView(16), range(8)) for item in several]
    assert [i for i, picture, _, _ in items if picture is None] == [3]


def test_nothing_usable_is_a_sentence(tmp_path):
    members = {f"{n}.{e}": b"broken" for n in range(4) for e in ("png", "txt")}
    source = open_source(str(write_tar(tmp_path / "bad.tar", members)))
    for workers in (0, 2):
        with pytest.raises(UserError, match="samples all over the data cannot be used, the first") as caught:
            batches(source, batch_size=2, stop=1, workers=workers)
        assert "\n" not in str(caught.value)


def test_too_large_a_batch_is_refused():
    with pytest.raises(UserError, match=r"data.batch_size is 60, but p.csv has only 48 pictures"):
        check_batch(DataPart(train="p.csv", batch_size=60), 48)
