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
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossmodal import distributed, files
from crossmodal.errors import UserError
from crossmodal.training.task import Task


def path(out: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps stands."""
    return out / "checkpoints" / f"step-{step:06d}"


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [p for p in (out / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and (p / "state.json").is_file()]
    return max(found, key=lambda p: int(p.name.removeprefix("step-")), default=None)


def save(out: Path, step: int, task: Task, optimizer: torch.optim.Optimizer, extra: dict, keep_last: int) -> None:
    """Write the checkpoint after ``step`` steps and let old ones go. Every process calls this; one writes."""
    generators = distributed.all_objects(_generators())
    if distributed.is_main():
        target = path(out, step)
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole_folder(target) as folder:
            task.model.save(folder / "model")
            save_file(_objective_state(task), folder / "objectives.safetensors")
            tensors, groups = _pack(optimizer.state_dict())
            save_file(tensors, folder / "optimizer.safetensors")
            named = {f"{rank}.{name}": t for rank, own in enumerate(generators) for name, t in own.items()}
            save_file(named, folder / "random.safetensors")
            files.write_json(folder / "state.json", {"step": step, "optimizer": groups, **extra})
        for old in sorted(target.parent.glob("step-*"))[:-keep_last]:
            shutil.rmtree(old)
    distributed.barrier()


def restore(folder: Path, task: Task, optimizer: torch.optim.Optimizer) -> dict:
    """Put model, objectives, optimiser and this process's generators back; returns ``state.json``.

    Errors: ``UserError`` where the checkpoint is of another model or optimiser.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    try:
        task.model.load_state_dict(load_file(folder / "model" / "model.safetensors"))
        task.objectives.load_state_dict(load_file(folder / "objectives.safetensors"))
        optimizer.load_state_dict(_unpack(load_file(folder / "optimizer.safetensors"), state["optimizer"]))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: does not fit this recipe's model: {str(error).splitlines()[0]}") from error
    generators = load_file(folder / "random.safetensors")
    own = {n.partition(".")[2]: t for n, t in generators.items() if n.startswith(f"{distributed.rank()}.")}
    if own:  # on more processes than before, the new ones keep their own seed
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    return state


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _objective_state(task: Task) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous().clone() for k, v in task.objectives.state_dict().items()}


def _pack(state: dict) -> tuple[dict[str, Tensor], list[dict]]:
    """An optimiser's state as flat tensors ("7.exp_avg") and its groups as JSON."""
    tensors = {
        f"{index}.{name}": torch.as_tensor(v).detach().cpu().contiguous()
        for index, own in state["state"].items()
        for name, v in own.items()
    }
    return tensors, [
        {k: v for k, v in group.items() if isinstance(v, (int, float, str, bool, list, tuple, type(None)))}
        for group in state["param_groups"]
    ]


def _unpack(tensors: dict[str, Tensor], groups: list[dict]) -> dict:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}
