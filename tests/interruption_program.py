"""Run by test_interruption: trains in forked processes, kills them, resumes them, and prints a JSON line for each case.

Everything is imported once; each run is a process of its own that is killed for good.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

import crossmodal.towers.open_clip
import crossmodal.towers.timm
import crossmodal.training.loop  # noqa: F401  all imported once, before any fork
from crossmodal.cli import main
from crossmodal.data.loader import TrainingPairs
from crossmodal.training import checkpoint

torch.set_num_threads(1)
RECIPE, FOLDER = sys.argv[1], Path(sys.argv[2])
CHANCE = random.Random(int(sys.argv[3]))
STEPS = 8
CHECKPOINT_EVERY = 2


def start(out: Path, processes: int, workers: int, trap=None, *more: str) -> list[int]:
    """Fork the processes of a training run; ``trap`` is called in each before it begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ.update({k: str(v) for k, v in names.items()}, MASTER_ADDR="127.0.0.1")
            log = os.open(FOLDER / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = 70
            try:
                if trap:
                    trap(rank)
                status = main(["train", RECIPE, f"out={out}", f"data.workers={workers}", "--resume", *more])
            except SystemExit as leave:
                status = leave.code
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


def ended(children: list[int], limit: float = 60) -> list[int]:
    """Exit statuses (negative: the signal). Whoever hangs is killed and counts as 99."""
    statuses, until = {}, time.monotonic() + limit
    while len(statuses) < len(children):
        for child in set(children) - statuses.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                statuses[child] = 99
        time.sleep(0.002)
    return [statuses[child] for child in children]


def after_lines(out: Path, lines: int, delay: float, children: list[int], which: slice, number: int) -> None:
    """Send a signal when ``metrics.jsonl`` has so many lines, and a little later."""
    file, until = out / "metrics.jsonl", time.monotonic() + 60
    while (file.read_text().count("\n") if file.is_file() else 0) < lines and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(delay)
    for child in children[which]:
        os.kill(child, number)


def dies_while_writing(call: int, half: bool):
    """Kills the writing process at the n-th safetensors file of its checkpoints, before it or when half of it is written."""

    def trap(rank: int) -> None:
        calls, real = [0], checkpoint.save_file

        def save_file(tensors, path):
            calls[0] += 1
            if calls[0] == call:
                if half:
                    real(tensors, path)
                    os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            real(tensors, path)

        checkpoint.save_file = save_file

    return trap


def waits(step: int):
    """Makes the data of a later step take a second, so that a signal finds training waiting for it."""

    def trap(rank: int) -> None:
        real = TrainingPairs.__getitem__

        def slow(self, ticket):
            if ticket.step >= step:
                time.sleep(0.2)
            return real(self, ticket)

        TrainingPairs.__getitem__ = slow

    return trap


def dies_at_rename(call: int):
    """Kills the process just before a finished checkpoint is put into its place."""

    def trap(rank: int) -> None:
        calls, real = [0], Path.rename

        def rename(self, target):
            calls[0] += "step-" in Path(target).name
            if "step-" in Path(target).name and calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)

        Path.rename = rename

    return trap


def same(out: Path, reference: Path) -> bool:
    ours, theirs = (load_file(o / "model" / "model.safetensors") for o in (out, reference))
    moments = [load_file(o / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.safetensors") for o in (out, reference)]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    equal = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in ((ours, theirs), moments))
    return equal and steps == list(range(1, STEPS + 1))


def run() -> None:
    references = {}
    for processes, workers in ((1, 0), (2, 2)):
        references[processes] = FOLDER / f"whole-{processes}"
        assert ended(start(references[processes], processes, workers)) == [0] * processes, (FOLDER / "log.txt").read_text()[-3000:]
    cases = [("killed in a step", 1, 0, signal.SIGKILL, n, None) for n in (0, 1, 2, 3, 5, 7)]
    cases += [
        (f"killed at file {c}{', half written' * h}", 1, 0, None, 0, dies_while_writing(c, h))
        for c, h in ((1, False), (2, True), (4, True), (5, False), (8, True))
    ]
    cases += [("killed before the rename", 1, 0, None, 0, dies_at_rename(2))]
    cases += [("killed", 2, 2, signal.SIGKILL, n, None) for n in (1, 4)]
    cases += [("one of two killed", 2, 2, signal.SIGKILL, 3, None), ("killed in a file", 2, 2, None, 0, dies_while_writing(5, True))]
    cases += [("SIGTERM", 1, 0, signal.SIGTERM, 3, waits(3)), ("SIGTERM", 2, 2, signal.SIGTERM, 5, None)]
    cases += [("Ctrl-C", 1, 2, signal.SIGINT, 4, None), ("killed with workers", 1, 2, signal.SIGKILL, 5, None)]
    for number, (name, processes, workers, sent, lines, trap) in enumerate(cases):
        out = FOLDER / f"case-{number}"
        children = start(out, processes, workers, trap)
        if sent:
            which = slice(1, 2) if name == "one of two killed" else slice(None)
            after_lines(out, lines, CHANCE.uniform(0, 0.05), children, which, sent)
        statuses = ended(children)
        found = checkpoint.newest(out)
        resumed = ended(start(out, processes, workers))
        finished = all(s == 0 for s in resumed)
        told = {
            "case": name,
            "processes": processes,
            "workers": workers,
            "statuses": statuses,
            "checkpoint": found.name if found else None,
            "resumed": resumed,
            "same": finished and same(out, references[processes]),
            "leftovers": [str(p) for p in out.rglob(".*.tmp-*")],
        }
        print(json.dumps(told), flush=True)
    # On another number of processes: the same global batches, so the same losses but for rounding (and but for nn.Dropout).
    plain = "model.image.kwargs.proj_drop_rate=0"
    whole, fewer = FOLDER / "whole", FOLDER / "fewer"
    assert ended(start(whole, 2, 0, None, plain)) == [0, 0]
    children = start(fewer, 2, 2, None, plain)
    after_lines(fewer, 5, 0, children, slice(None), signal.SIGKILL)
    ended(children)
    statuses = ended(start(fewer, 1, 0, None, plain))
    losses = [[json.loads(line)["loss"] for line in (o / "metrics.jsonl").read_text().splitlines()] for o in (whole, fewer)]
    away = max(abs(a - b) for a, b in zip(*losses, strict=True)) if statuses == [0] else None
    print(json.dumps({"case": "resumed on one process", "statuses": statuses, "largest loss difference": away}), flush=True)


run()
