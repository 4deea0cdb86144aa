"""Sharded over two gloo processes = one process; gradient checkpointing and compilation change nothing but memory and time."""

import pytest
import torch
from safetensors.torch import load_file

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.loading import load
from crossmodal.towers import base
from crossmodal.training import task
from crossmodal.training.gradcache import backward
from crossmodal.training.loop import fit
from crossmodal.training.micro_batch import choose
from tests.conftest import launch, metrics
from tests.training.test_task import batch_for


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_sharded_equals_whole_and_resumes(tiny, tmp_path):
    common = ["train", str(tiny), "train.steps=6", "train.checkpoint_every=3", "eval.every=4", "data.micro_batch=4"]
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    for processes, out, more in ((1, one, []), (2, two, ["train.shard=true"]), (2, again, ["train.shard=true"])):
        done = launch(processes, *common, f"out={out}", *more)
        assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
    (again / "checkpoints" / "step-000006" / "state.json").unlink()  # as if it had never been written
    (again / "checkpoints" / "step-000004" / "state.json").unlink()
    done = launch(2, *common, f"out={again}", "train.shard=true", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(torch.equal(weights(two)[k], v) for k, v in weights(again).items())
    assert all(torch.allclose(weights(one)[k], v, atol=2e-4) for k, v in weights(two).items())
    assert [p.name for p in sorted((two / "checkpoints").iterdir())] == ["step-000003", "step-000004", "step-000006"]
    load(two).encode_text("a red circle")


def test_sharding_needs_several_processes_and_a_number(tiny, tmp_path):
    with pytest.raises(UserError, match="there is one; start more with accelerate launch"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.shard=true"]))
    with pytest.raises(UserError, match=r"with train\.shard: true give a number"):
        recipe.read(tiny, ["train.shard=true", "data.micro_batch=auto"])


def gradients(tiny, *overrides: str, micro: int = 6, compiled: bool = False) -> dict[str, torch.Tensor]:
    from accelerate import Accelerator

    torch.manual_seed(0)
    built = task.build(recipe.read(tiny, overrides))
    built.train()
    if compiled:
        built.model.compile_blocks()
    torch.manual_seed(1)
    batch = batch_for(built)
    batch.seeds = torch.arange(6) * 7919
    torch.manual_seed(2)
    backward(built, built, batch.split(micro), Accelerator())
    return {n: p.grad for n, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [6, 4])
def test_checkpointed_blocks_give_the_same_gradient(tiny, micro):
    tiny.write_text(tiny.read_text().replace("kwargs: {depth: 1}", "kwargs: {depth: 2, drop_path_rate: 0.5, proj_drop_rate: 0.3}"))
    both = ["model.image.gradient_checkpointing=true", "model.text.gradient_checkpointing=true"]
    plain, ours = gradients(tiny, micro=micro), gradients(tiny, *both, micro=micro)
    assert plain.keys() == ours.keys() and all(torch.equal(plain[k], ours[k]) for k in plain)


@pytest.mark.slow  # compiling takes half a minute
def test_compiled_blocks_give_the_same_gradient(tiny):
    plain, ours = gradients(tiny), gradients(tiny, compiled=True)
    largest = max(g.abs().max() for g in plain.values())
    assert all(torch.allclose(plain[k], ours[k], rtol=1e-4, atol=1e-5 * largest) for k in plain)


@pytest.mark.parametrize(
    "tower", ["timm:vit_tiny_patch16_224", "timm:tf_efficientnet_lite0", "open_clip:ViT-B-32", "timm:swin_tiny_patch4_window7_224"]
)
def test_every_tower_has_blocks(tower):
    from crossmodal.recipe import ImagePart
    from crossmodal.towers import build_image

    built = build_image(ImagePart(tower=tower), None)
    blocks = base.blocks(built)
    inside = sum(p.numel() for b in blocks for p in b.parameters())
    assert len(blocks) > 1 and inside > 0.6 * sum(p.numel() for p in built.parameters())


def test_auto_finds_a_micro_batch(tiny, monkeypatch):
    from accelerate import Accelerator

    from crossmodal.training import micro_batch

    built = task.build(recipe.read(tiny))
    asked = []
    sample = lambda size: asked.append(size) or batch_for(built, size)
    assert choose("auto", built, sample, 24, Accelerator()) == 24 and asked == [4, 8, 16, 24]
    assert all(p.grad is None for p in built.parameters())
    assert choose(None, built, sample, 24, Accelerator()) == 24 and choose(5, built, sample, 24, Accelerator()) == 5
    peaks = iter([100e6, 180e6, 340e6])  # 20 MB a pair: 16 pairs take 340 MB, 32 would take 660
    monkeypatch.setattr(micro_batch, "_free", lambda device: 500e6 / micro_batch.SHARE)
    monkeypatch.setattr(micro_batch, "used_memory", lambda: next(peaks))
    monkeypatch.setattr(micro_batch, "_try", lambda *_: next(peaks))
    peaks = iter([0.0, 100e6, 180e6, 340e6])
    assert choose("auto", built, sample, 64, Accelerator()) == 16
