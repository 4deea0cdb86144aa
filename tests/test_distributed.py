"""Gathering with gradient: the loss and gradient of 2 processes are those of one, in double precision."""

import subprocess
import sys

import torch

from crossmodal import distributed

PROGRAM = """
import sys, torch, torch.distributed as dist
from crossmodal import distributed
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
x, w = torch.randn(6, 3, dtype=torch.double), torch.randn(3, 3, dtype=torch.double, requires_grad=True)
rows = 6 // world
mine = x[rank * rows : (rank + 1) * rows] @ w
everyone = distributed.gather(mine)
loss = torch.logsumexp(everyone @ everyone.T, 1).mean()
loss.backward()
dist.all_reduce(w.grad); w.grad /= world  # what DDP does
alone = torch.randn(0)
v = w.detach().clone().requires_grad_()
whole = torch.logsumexp((x @ v) @ (x @ v).T, 1).mean()
whole.backward()
assert abs(loss.item() - whole.item()) < 1e-12
assert (w.grad - v.grad).abs().max() < 1e-12, (w.grad - v.grad).abs().max()
assert distributed.all_sum(torch.tensor(1.0)).item() == world
assert distributed.all_objects(rank) == list(range(world))
assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (rank, world, rank == 0)
dist.destroy_process_group()
"""


def test_gather_has_the_gradient_of_one_process(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for processes in (2, 3):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run([*command, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]


def test_one_process_is_the_identity():
    x = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.all_objects(5) == [5] and distributed.is_main()
    distributed.barrier()
