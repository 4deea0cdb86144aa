"""Gradient caching: both passes see the same chance, statistics move once, counts are asked where the batch tells them."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from crossmodal import recipe
from crossmodal.objectives.base import Objective
from crossmodal.training import gradcache, task
from tests.training.test_task import batch_for


class Recorder(nn.Module):
    """A task that keeps what each of its forwards projected."""

    def __init__(self, built: task.Task):
        super().__init__()
        self.built, self.seen = built, []
        built.register_forward_hook(
            lambda module, inputs, out: self.seen.append((torch.is_grad_enabled(), out[0]["contrastive"]["image"].detach()))
        )

    def forward(self, *inputs):
        return self.built(*inputs)


def dropping(tiny) -> task.Task:
    kwargs = "{depth: 2, drop_path_rate: 0.5, proj_drop_rate: 0.5, patch_drop_rate: 0.5}"
    built = task.build(recipe.read(tiny, [f"model.image.kwargs={kwargs}"]))
    return built.train()


def test_both_passes_drop_the_same(tiny):
    built = dropping(tiny)
    recorder = Recorder(built)
    batch = batch_for(built)
    batch.seeds = torch.arange(6) * 104729
    gradcache.backward(built, recorder, batch.split(2), Accelerator())
    first = [p for with_gradient, p in recorder.seen if not with_gradient]
    second = [p for with_gradient, p in recorder.seen if with_gradient]
    assert len(first) == len(second) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(built(batch)[0]["contrastive"]["image"], torch.cat(first)), "dropout itself goes on"


def test_one_micro_batch_has_one_forward(tiny):
    built = dropping(tiny)
    recorder = Recorder(built)
    gradcache.backward(built, recorder, batch_for(built).split(100), Accelerator())
    assert [with_gradient for with_gradient, _ in recorder.seen] == [True]


def test_running_statistics_count_a_batch_once(tiny):
    said = recipe.read(tiny, ["model.image.tower=timm:test_resnet", "model.image.kwargs={}"])
    built = task.build(said).train()
    batches = batch_for(built).split(2)
    once = copy.deepcopy(built)
    for batch in batches:
        once(batch)
    gradcache.backward(built, built, batches, Accelerator())
    norm, expected = (next(m for m in t.modules() if isinstance(m, nn.BatchNorm2d)) for t in (built, once))
    assert norm.num_batches_tracked == 3 and norm.momentum == 0.1
    assert torch.equal(norm.running_mean, expected.running_mean) and torch.equal(norm.running_var, expected.running_var)


class Counted(Objective):
    """A pair term whose count the batch tells."""

    needs = ("image:pooled",)

    def __init__(self, tells: bool):
        super().__init__()
        self.tells, self.calls = tells, []

    def pair_terms(self, model, batch, encoded):
        self.calls.append(torch.is_grad_enabled())
        return {"size": (encoded["image:pooled"].square().mean(1).sum(), torch.tensor(len(batch)))}

    def pair_counts(self, batch):
        return {"size": torch.tensor(len(batch))} if self.tells else None


@pytest.mark.parametrize("tells", [True, False])
def test_pair_terms_are_run_once_where_the_batch_tells_their_count(tiny, tells):
    said = recipe.read(tiny)
    gradients = []
    for micro in (6, 4):
        torch.manual_seed(0)
        model = task.build(said).model
        objective = Counted(tells)
        built = task.Task(model, {"counted": objective}, {"counted": 2.0}).train()
        torch.manual_seed(1)
        loss, terms = gradcache.backward(built, built, batch_for(built).split(micro), Accelerator())
        assert loss.item() == pytest.approx(2 * terms["size"].item(), rel=1e-6)
        gradients.append({n: p.grad for n, p in built.named_parameters() if p.grad is not None} | {"loss": loss})
        assert objective.calls == ([True] if micro == 6 else [True, True] if tells else [False, False, True, True])
    assert all(torch.allclose(gradients[0][k], v, rtol=1e-5, atol=1e-7) for k, v in gradients[1].items())
