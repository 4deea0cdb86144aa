"""Synced batch-norm on one process is batch-norm; over processes, test_exactness has it."""

import copy

import pytest
import timm
import torch
from torch import nn

from crossmodal import synced_norm


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 5, 3)], ids=["1d", "sequence", "2d"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_equals_torchs(shape, momentum):
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    theirs = kind(4, momentum=momentum).double()
    nn.init.normal_(theirs.weight)
    ours = copy.deepcopy(theirs)
    synced_norm.convert(ours)
    assert type(ours) is synced_norm.SyncedBatchNorm
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.double, requires_grad=True)
        weight = torch.randn(shape, dtype=torch.double)
        outs = [norm(x) for norm in (ours, theirs)]
        grads = [
            torch.autograd.grad((out * weight).sum(), (x, norm.weight, norm.bias)) for out, norm in zip(outs, (ours, theirs), strict=True)
        ]
        assert torch.allclose(*outs, atol=1e-10)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_activations_inside_stay():
    torch.manual_seed(0)
    theirs = timm.create_model("test_efficientnet").train()
    ours = copy.deepcopy(theirs)
    synced_norm.convert(ours)
    x = torch.randn(4, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert not any(type(m) in (nn.BatchNorm2d, timm.layers.BatchNormAct2d) for m in ours.modules())
