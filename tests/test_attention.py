"""Which way attention takes, and that what is computed again takes the same."""

import pytest
import torch

from crossmodal import attention
from crossmodal.recipe import ImagePart
from crossmodal.towers import build_image


def allowed() -> bool:
    return torch.backends.cuda.flash_sdp_enabled()  # the one switch for tiled kernels, of CPUs too


@pytest.mark.parametrize(
    "dtype, keys, plain", [("bf16", 16, True), ("bf16", 100, True), ("bf16", 101, False), ("bf16", 0, False), ("fp32", 16, False)]
)
def test_short_sequences_in_bf16_take_plain_matrices(dtype, keys, plain):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"), attention.fitting(torch.device("cpu"), keys):
        assert attention.is_plain() == plain and allowed() != plain
        with attention.fitting(torch.device("cpu"), 1000):
            assert attention.is_plain() == plain, "a part of a plain one stays plain"
    assert not attention.is_plain() and allowed()


def test_checkpointed_blocks_are_computed_again_the_same_way():
    pictures = torch.randint(0, 255, (4, 3, 96, 96), dtype=torch.uint8)
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        tower = build_image(ImagePart(tower="timm:vit_tiny_patch16_224", kwargs={"depth": 2}, gradient_checkpointing=again), 96).train()
        with torch.autocast("cpu", torch.bfloat16):
            tower(pictures)["pooled"].float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)
