"""InfoNCE against loops written from CLIP's pseudo-code."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossmodal import pairwise
from crossmodal.objectives.contrastive import Contrastive


def naive(image: torch.Tensor, text: torch.Tensor, scale: float, image_id: list | None = None, text_id: list | None = None) -> float:
    """Radford et al. 2021, figure 3, one pair at a time; mean log-probability over positives where there are several."""
    n = len(image)
    image_id, text_id = image_id or list(range(n)), text_id or list(range(n))
    total = 0.0
    for i in range(n):
        positives = [j for j in range(n) if image_id[i] == image_id[j] or text_id[i] == text_id[j]]
        row = [scale * float(image[i] @ text[j]) for j in range(n)]
        column = [scale * float(image[j] @ text[i]) for j in range(n)]
        for scores in (row, column):
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
            total += sum(log_sum - scores[j] for j in positives) / len(positives)
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


@pytest.mark.parametrize("tile", [1, 14, 2**22])
def test_gradients_equal_finite_differences(tile, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    leaves = [x.clone().requires_grad_() for x in (image, text, torch.tensor([2.0], dtype=torch.float64))]
    Contrastive().batch_terms({"image": leaves[0], "text": leaves[1]}, {"logit_scale": leaves[2]})["contrastive"].backward()
    step = 1e-5

    def moved(which: int, place: int, by: float) -> float:
        at = [leaf.detach().clone() for leaf in leaves]
        at[which].view(-1)[place] += by
        return naive(at[0], at[1], math.exp(at[2].item()))

    for which, leaf in enumerate(leaves):
        by_hand = [(moved(which, n, step) - moved(which, n, -step)) / (2 * step) for n in range(leaf.numel())]
        assert leaf.grad.flatten().tolist() == pytest.approx(by_hand, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("tile", [1, 14, 2**22])
def test_equal_pictures_and_texts_are_positives(tile, monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", tile)
    torch.manual_seed(3)
    image, text = (F.normalize(torch.randn(7, 4), dim=1) for _ in range(2))
    image_id, text_id = [0, 1, 2, 0, 4, 5, 6], [9, 8, 7, 6, 8, 9, 9]  # of different kinds, overlapping
    gathered = {"image": image, "text": text, "image_id": torch.tensor(image_id), "text_id": torch.tensor(text_id)}
    log_scale = torch.tensor([math.log(20.0)])
    assert Contrastive().batch_terms(gathered, {"logit_scale": log_scale})["contrastive"].item() == pytest.approx(
        naive(image, text, 20.0, image_id, text_id), rel=1e-5
    )
    assert set(Contrastive(duplicates="negative").project({f"{v}:{f}": image for v in ("image", "text") for f in ("embed", "id")})) == {
        "image",
        "text",
    }


def test_accuracy_inside_the_batch_is_tracked():
    image, text = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    objective = Contrastive()
    objective.batch_terms({"image": image, "text": text}, {"logit_scale": torch.zeros(1)})
    assert objective.figures["image_to_text_in_batch"] == objective.figures["text_to_image_in_batch"] == 0.5
