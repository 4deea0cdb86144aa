"""Every sample exactly once an epoch, over shards that do not divide by processes and workers, stopped in mid-epoch and resumed."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import COLOURS, encoded, shape, write_tar

PROGRAM = Path(__file__).with_name("epochs_program.py")
SHARDS = (5, 7, 11)  # 23 samples: with batches of 4, an epoch ends within a batch


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    numbers = itertools.count()
    for place, size in enumerate(SHARDS):
        members = {}
        for n in itertools.islice(numbers, size):
            members |= {f"{n:03d}.png": encoded(shape(COLOURS[n % 6], "circle", n)), f"{n:03d}.txt": f"number {n}".encode()}
        write_tar(folder / f"{place}.tar", members)
    return f"wds:{folder}/{{0..2}}.tar"


def draw(spec, processes, workers, start, stop, out) -> list[tuple[str, ...]]:
    """The keys of each step, all processes' together in rank order."""
    command = [str(PROGRAM), spec, "4", str(workers), str(start), str(stop), str(out)]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *command]
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}
    subprocess.run([sys.executable, *command], env=os.environ | env, check=True, timeout=120, capture_output=True)
    ranks = [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(processes)]
    return [tuple(itertools.chain(*step)) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_and_resumed_in_mid_epoch(shards, tmp_path, processes, workers):
    steps = draw(shards, processes, workers, 0, 9, tmp_path / "first") + draw(shards, processes, workers, 9, 23, tmp_path / "second")
    keys = [key for step in steps for key in step]
    epochs = [Counter(keys[start : start + 23]) for start in range(0, 23 * 4, 23)]
    assert all(epoch == {f"{n:03d}": 1 for n in range(23)} for epoch in epochs)
    assert len({tuple(keys[start : start + 23]) for start in range(0, 23 * 4, 23)}) == 4, "every epoch has an order of its own"
    if processes == 1 and workers == 0:
        assert steps == draw(shards, 1, 0, 0, 23, tmp_path / "whole")
