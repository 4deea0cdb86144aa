"""N processes × k micro-batches = one big batch: the gradient of every parameter, logit scale and bias included.

One table over objective × processes × micro-batches × tile × precision. The reference is one process, one micro-batch, no
tiles, in fp64.
"""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

TOWERS = """\
out: runs/exact
model:
  embed_dim: 24
  image: {tower: timm:test_vit, kwargs: {depth: 2, dynamic_img_size: true, drop_path_rate: 0.3, patch_drop_rate: 0.25}}
  text:
    tower: open_clip:ViT-B-32
    context_length: 24
    kwargs: {layers: 1, width: 64, heads: 2}
  init_logit_scale: 20.0
objectives: {contrastive: {}}
data: {image_size: 64}
"""
LIMITS = {"torch.float32": 1e-5, "torch.float64": 1e-10}


@pytest.fixture(scope="module")
def gradients(tmp_path_factory) -> dict[int, dict[str, torch.Tensor]]:
    """By number of processes: {"case/parameter": gradient}."""
    folder = tmp_path_factory.mktemp("exact")
    (folder / "towers.yaml").write_text(TOWERS)
    for processes in (1, 2, 4):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        program = [str(ROOT / "tests" / "exactness_program.py"), str(folder / "towers.yaml"), str(folder / f"{processes}.safetensors")]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*start, *program], capture_output=True, text=True, timeout=300, env=env)
        assert done.returncode == 0, done.stderr[-4000:]
    return {processes: load_file(folder / f"{processes}.safetensors") for processes in (1, 2, 4)}


def by_case(found: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    cases: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in found.items():
        case, _, parameter = key.rpartition("/")
        cases.setdefault(case, {})[parameter] = value
    return cases


def difference(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The largest over all parameters of max|Δ| ÷ max(max|reference|, a thousandth of the model's largest gradient)."""
    assert ours.keys() == reference.keys()
    floor = 1e-3 * max(r.abs().max().item() for r in reference.values())
    return max(((ours[k] - r).abs().max() / max(r.abs().max().item(), floor)).item() for k, r in reference.items())


def test_any_processes_and_micro_batches_give_the_gradient_of_one_batch(gradients):
    reference = by_case(gradients[1])
    lines, worst = [], dict.fromkeys(LIMITS, 0.0)
    for processes, found in gradients.items():
        for case, ours in by_case(found).items():
            name, precision, tile, micro = case.split("/")
            away = difference(ours, reference[f"{name}/torch.float64/dense/1"])
            worst[precision] = max(worst[precision], away)
            lines.append(f"{name:<28}{precision:<15}{processes} processes  {micro} micro-batches  {tile:<6} {away:.1e}")
    print("\n" + "\n".join(lines))
    # Processes × precisions × (micro-batches × tiles); mae and dino have no tiles, synced norm one micro-batch.
    assert len(lines) == 3 * 2 * (10 * 2 * 2 + 2 * 2 + 2)
    for precision, limit in LIMITS.items():
        assert worst[precision] <= limit, [line for line in lines if precision in line and float(line.split()[-1]) > limit]


def test_the_table_holds_every_objective(gradients):
    from crossmodal import registry

    named = {name for key in gradients[1] for name in key.split("/")[0].split(",")[0].split(" + ")}
    assert set(registry.names("objectives")) <= named
    scalars = [k for k in gradients[1] if k.endswith(("model.logit_scale", "model.logit_bias", "slope"))]
    assert scalars and all(gradients[1][k].abs().max() > 0 for k in scalars)
