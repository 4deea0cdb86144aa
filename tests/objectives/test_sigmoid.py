"""The sigmoid loss against loops written from SigLIP's algorithm 1."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal import pairwise
from crossmodal.objectives.sigmoid import Sigmoid


def naive(image: torch.Tensor, text: torch.Tensor, scale: float, bias: float, image_id: list, text_id: list) -> float:
    """Zhai et al. 2023, algorithm 1, one pair at a time."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            label = 1 if image_id[i] == image_id[j] or text_id[i] == text_id[j] else -1
            total += math.log1p(math.exp(-label * (scale * float(image[i] @ text[j]) + bias)))
    return total / len(image)


@pytest.mark.parametrize("tile", [1, 14, 2**22])
@pytest.mark.parametrize("text_id", [list(range(7)), [9, 8, 7, 6, 8, 9, 9]], ids=["distinct", "repeated"])
def test_equals_the_naive_loop(tile, text_id, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    image_id = [0, 1, 2, 0, 4, 5, 6]
    scalars = {"logit_scale": torch.tensor([math.log(10.0)]), "logit_bias": torch.tensor([-3.0])}
    gathered = {"image": image, "text": text, "image_id": torch.tensor(image_id), "text_id": torch.tensor(text_id)}
    ours = Sigmoid().batch_terms(gathered, scalars)["sigmoid"]
    assert ours.shape == ()
    assert ours.item() == pytest.approx(naive(image, text, 10.0, -3.0, image_id, text_id), rel=1e-5)


def test_starts_where_the_paper_does():
    assert Sigmoid.init == {"logit_scale": 10.0, "logit_bias": -10.0}
    same = F.normalize(torch.ones(64, 8), dim=1)
    scalars = {"logit_scale": torch.full((1,), math.log(100.0)), "logit_bias": torch.zeros(1)}
    assert torch.isfinite(Sigmoid(duplicates="negative").batch_terms({"image": same, "text": same}, scalars)["sigmoid"])
