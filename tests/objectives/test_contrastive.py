"""InfoNCE against loops written from CLIP's pseudo-code."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal.objectives.contrastive import Contrastive


def naive(image: torch.Tensor, text: torch.Tensor, scale: float) -> float:
    """Radford et al. 2021, figure 3, one pair at a time."""
    n = len(image)
    total = 0.0
    for i in range(n):
        row = [scale * float(image[i] @ text[j]) for j in range(n)]
        column = [scale * float(image[j] @ text[i]) for j in range(n)]
        for scores in (row, column):
            top = max(scores)
            total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[i]
    return total / (2 * n)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equals_the_naive_loop(scale):
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(9, 5), dim=1) for _ in range(2))
    log_scale = torch.tensor([math.log(scale)])
    terms = Contrastive().batch_terms({"image": image, "text": text}, {"logit_scale": log_scale})
    assert terms["contrastive"].item() == pytest.approx(naive(image, text, scale), rel=1e-5)
    assert terms["contrastive"].shape == ()


def test_both_ways_count():
    """One text that draws every picture: picture → text is sure of itself, text → picture is not."""
    image = torch.eye(4)
    text = torch.eye(4)[[0, 0, 0, 0]]
    ours = Contrastive().batch_terms({"image": image, "text": text}, {"logit_scale": torch.zeros(1)})["contrastive"].item()
    assert ours == pytest.approx(naive(image, text, 1.0), rel=1e-6)


def test_chance_is_log_n_and_scale_100_does_not_overflow():
    same = F.normalize(torch.ones(64, 8), dim=1)
    log_scale = torch.tensor([math.log(100.0)], requires_grad=True)
    loss = Contrastive().batch_terms({"image": same, "text": same}, {"logit_scale": log_scale})["contrastive"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(64), abs=1e-4)
    assert torch.isfinite(log_scale.grad).all()


def test_gradient_of_the_scale_equals_finite_differences():
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(6, 4, dtype=torch.float32), dim=1) for _ in range(2))
    log_scale = torch.tensor([2.0], requires_grad=True)
    Contrastive().batch_terms({"image": image, "text": text}, {"logit_scale": log_scale})["contrastive"].backward()
    step = 1e-4
    by_hand = (naive(image, text, math.exp(2 + step)) - naive(image, text, math.exp(2 - step))) / (2 * step)
    assert log_scale.grad.item() == pytest.approx(by_hand, rel=1e-3)
