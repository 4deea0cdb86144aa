"""Training that is killed and resumed ends with the weights of the run that never was, bit for bit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from crossmodal.training import checkpoint
from tests.conftest import ROOT, run

RECIPE = """\
out: runs/killed
model:
  embed_dim: 16
  image: {{tower: timm:test_vit, kwargs: {{depth: 1, drop_path_rate: 0.3, proj_drop_rate: 0.2}}}}
  text:
    tower: open_clip:ViT-B-32
    context_length: 16
    kwargs: {{layers: 1, width: 64, heads: 1}}
objectives: {{contrastive: {{}}}}
data: {{train: {train}, image_size: 32, batch_size: 8, micro_batch: 3}}
optim: {{lr: 1.0e-3, warmup: 2}}
train: {{steps: 8, checkpoint_every: 2, keep_last: 2, precision: fp32, trackers: []}}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, pairs) -> list[dict]:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "recipe.yaml").write_text(RECIPE.format(train=pairs))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "interruption_program.py"), str(folder / "recipe.yaml"), str(folder), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    log = (folder / "log.txt").read_text()[-3000:] if (folder / "log.txt").is_file() else ""
    assert done.returncode == 0, done.stderr[-3000:] + log
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_and_resumed_is_never_killed(told):
    cases = told[:-1]
    assert len(cases) == 20
    assert sum("file" in c["case"] or "rename" in c["case"] for c in cases) >= 5, "inside checkpoint writing"
    assert sum(c["processes"] == 2 and c["workers"] == 2 for c in cases) >= 5
    assert all(any(c["statuses"]) for c in cases), "every run was in fact broken off"
    assert [c for c in cases if not c["same"]] == []
    assert [c for c in cases if c["leftovers"]] == [], "what a killed run half wrote is cleared away"
    assert not any(99 in c["statuses"] for c in cases), "nothing hangs"


def test_sigterm_writes_a_checkpoint_and_exits_with_143(told):
    stopped = [c for c in told[:-1] if c["case"] == "SIGTERM"]
    assert {c["processes"] for c in stopped} == {1, 2}
    for case in stopped:
        assert case["statuses"] == [143] * case["processes"]
        # On one process it was waiting for the fourth step's data: no checkpoint was due after the third.
        assert case["checkpoint"] == "step-000003" if case["processes"] == 1 else case["checkpoint"] >= "step-000005"
    assert all(c["statuses"] == [130] for c in told[:-1] if c["case"] == "Ctrl-C")


def test_resuming_on_another_number_of_processes(told):
    assert told[-1]["largest loss difference"] < 1e-5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that holds two checkpoints and not three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here; it takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, pairs, small_disk):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(train=pairs))
    train = ["crossmodal", "train", str(tmp_path / "recipe.yaml"), "data.workers=0", "train.keep_last=9"]
    whole, out = tmp_path / "whole", small_disk / "run"
    assert run(*train, f"out={whole}").returncode == 0
    full = run(*train, f"out={out}")
    assert full.returncode == 2
    assert "step-000006: the checkpoint could not be written" in full.stderr and "step-000004 is whole" in full.stderr
    assert "Traceback" not in full.stderr
    assert checkpoint.newest(out).name == "step-000004"
    assert len(list((out / "checkpoints").iterdir())) == 2, "nothing half written stays"
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    assert run(*train, f"out={out}", "--resume").returncode == 0
    ours, theirs = (load_file(o / "model" / "model.safetensors") for o in (out, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_limit_on_files_is_one_sentence(tmp_path, pairs):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(train=pairs))
    train = f"ulimit -f 4000; exec {sys.executable} -m crossmodal train {tmp_path / 'recipe.yaml'} out={tmp_path / 'run'} data.workers=0"
    done = subprocess.run(["bash", "-c", train], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "the checkpoint could not be written" in done.stderr and "there is none before it" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
