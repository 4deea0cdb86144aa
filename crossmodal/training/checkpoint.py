"""Checkpoints: complete or absent.

``checkpoints/step-NNNNNN/`` holds ``model/`` (what ``crossmodal.load`` reads), ``objectives.safetensors``,
``optimizer.safetensors``, ``random.safetensors`` (every process's generators) and ``state.json``. A
checkpoint is written beside its place and renamed into it, so one that has its name is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossmodal import distributed, files
from crossmodal.chance import random_state, set_random_state
from crossmodal.errors import UserError, nearest
from crossmodal.training.sharding import like, whole
from crossmodal.training.task import Task


def path(out: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps stands."""
    return out / "checkpoints" / f"step-{step:06d}"


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(iter(_all(out)[::-1]), None)


def _all(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [p for p in (out / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and (p / "state.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def save(out: Path, step: int, task: Task, optimizer: torch.optim.Optimizer, extra: dict, keep_last: int) -> Path:
    """Write the checkpoint after ``step`` steps and let old ones go, but for the best. Every process calls this; one writes.

    Errors: ``UserError``, on every process, where it could not be written; older checkpoints are as they were.
    """
    generators = distributed.all_objects(random_state())
    model = {k: whole(v) for k, v in task.model.state_dict().items()}
    objectives = {k: whole(v).detach().cpu().contiguous().clone() for k, v in task.objectives.state_dict().items()}
    moments, groups = _pack(optimizer.state_dict())
    target, problem = path(out, step), None
    if distributed.is_main():
        try:
            with files.whole_folder(target) as folder:
                task.model.save(folder / "model", model)
                save_file(objectives, folder / "objectives.safetensors")
                save_file(moments, folder / "optimizer.safetensors")
                named = {f"{rank}.{name}": t for rank, own in enumerate(generators) for name, t in own.items()}
                save_file(named, folder / "random.safetensors")
                files.write_json(folder / "state.json", {"step": step, "optimizer": groups, **extra})
            best = _best(out)
            for old in _all(out)[:-keep_last]:
                if old.name != best.get("checkpoint"):
                    shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            last = newest(out)
            kept = f"{last} is whole, and --resume goes on from it" if last else "there is none before it"
            problem = f"{target}: the checkpoint could not be written ({error}); {kept}."
    problem = distributed.all_objects(problem)[0]
    if problem:
        raise UserError(problem)
    return target


def mark_best(out: Path, step: int, figure: str, figures: dict[str, float]) -> None:
    """Note the checkpoint of ``step`` in ``best.json`` if none was better so far. Errors: ``UserError`` for an unknown figure."""
    if figure not in figures:
        raise UserError(f"train.keep_best is {figure!r}, which the evaluation does not give; {nearest(figure, figures)}")
    if figures[figure] > _best(out).get(figure, float("-inf")) and path(out, step).is_dir():
        files.write_json(out / "best.json", {"checkpoint": path(out, step).name, "step": step, figure: figures[figure]})


def _best(out: Path) -> dict:
    return json.loads((out / "best.json").read_text(encoding="utf-8")) if (out / "best.json").is_file() else {}


def restore(folder: Path, task: Task, optimizer: torch.optim.Optimizer) -> dict:
    """Put model, objectives, optimiser and this process's generators back; returns ``state.json``.

    Errors: ``UserError`` where the checkpoint is of another model or optimiser.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    try:
        _load(task.model, load_file(folder / "model" / "model.safetensors"))
        _load(task.objectives, load_file(folder / "objectives.safetensors"))
        optimizer.load_state_dict(_unpack(load_file(folder / "optimizer.safetensors"), state["optimizer"], optimizer))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: does not fit this recipe's model: {str(error).splitlines()[0]}") from error
    generators = load_file(folder / "random.safetensors")
    own = {n.partition(".")[2]: t for n, t in generators.items() if n.startswith(f"{distributed.rank()}.")}
    if own:  # on more processes than before, the new ones keep their own seed
        set_random_state(own)
    return state


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({k: like(v, own[k]) if k in own and own[k].shape == v.shape else v for k, v in state.items()})


def _pack(state: dict) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimiser's state as flat tensors ("7.exp_avg") and its groups as JSON."""
    tensors = {
        f"{index}.{name}": whole(torch.as_tensor(v)).detach().cpu().contiguous()
        for index, own in state["state"].items()
        for name, v in own.items()
    }
    return tensors, [
        {k: v for k, v in group.items() if isinstance(v, (int, float, str, bool, list, tuple, type(None)))}
        for group in state["param_groups"]
    ]


def _unpack(tensors: dict[str, Tensor], groups: list[dict], optimizer: torch.optim.Optimizer) -> dict:
    """The reverse. Moments get their parameter's sharding and memory layout: files hold neither, and a fused step goes by memory."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        own = parameters[int(index)] if int(index) < len(parameters) else tensor
        state.setdefault(int(index), {})[name] = like(tensor, own) if own.shape == tensor.shape else tensor
    return {"state": state, "param_groups": groups}
