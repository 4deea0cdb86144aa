"""The one training loop, on accelerate.

It stands below zero-shot and retrieval: periodic evaluation is handed in (``fit(…, evaluate=…)``) and
put together in ``cli.py``. A run folder holds ``recipe.yaml``, ``metrics.jsonl`` (a line a step),
``eval.jsonl`` (a line an evaluation), ``broken.jsonl`` (pictures that did not decode), ``checkpoints/`` and,
when training has ended, ``model/``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from crossmodal import distributed, files
from crossmodal.allocator import keep_freed_memory
from crossmodal.chance import seed_of
from crossmodal.data.loader import FrozenPairs, TrainingPairs, check_batch, sentences, training_batches
from crossmodal.data.sources import open_source
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.recipe import Recipe
from crossmodal.training import checkpoint, folder, gradcache, optim, task

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", None: None}
Evaluate = Callable[[Model], dict[str, float]]


def fit(recipe: Recipe, *, evaluate: Evaluate | None = None, resume: bool = False, overwrite: bool = False) -> Path:
    """Train as the recipe says; returns the run folder.

    Args:
        evaluate: called on every process with the model, every ``eval.every`` steps and at the end;
            returns figures by name.
        resume: go on from the newest complete checkpoint of ``recipe.out``.
        overwrite: throw an existing ``recipe.out`` away first.

    Errors: ``UserError`` for whatever the user can mend.
    """
    if not recipe.data.train:
        raise UserError("data.train is not set; say what to train on, such as data.train=my.csv.")
    keep_freed_memory()
    out = Path(recipe.out)
    accelerator = _accelerator(recipe)
    folder.check(out, recipe, resume, overwrite)
    source = open_source(recipe.data.train)
    check_batch(recipe.data, len(source))
    torch.manual_seed(recipe.seed)  # the same weights on every process
    plain = task.build(recipe)
    plain.to(accelerator.device)
    optimizer = optim.build(plain, recipe.optim)
    wrapped, optimizer = accelerator.prepare(plain, optimizer)
    torch.manual_seed(seed_of(recipe.seed, "process", distributed.rank()))  # dropout differs between processes
    done = folder.claim(out, recipe, resume)
    state = checkpoint.restore(done, plain, optimizer.optimizer) if done else {"step": 0, "seconds": 0.0}
    plain.model.training_record = {"steps": state["step"], "seconds": round(state["seconds"], 1)}
    log = folder.Log(out, recipe, accelerator, state["step"])
    broken = folder.Broken(out, recipe.data.max_broken)
    began = time.monotonic() - state["seconds"]
    pairs = TrainingPairs(source, plain.views, recipe.data, plain.model.image.resize, recipe.seed)
    if recipe.data.cache_views:
        pairs = _frozen(pairs, plain, recipe, accelerator)
        broken.add(pairs.broken)
    batches = training_batches(pairs, len(source), recipe.data, plain.model.text.tokenize, recipe.seed, state["step"], recipe.train.steps)

    def evaluated(step: int) -> None:
        plain.eval()
        figures = evaluate(plain.model)
        plain.train()
        log.evaluation(step, figures)

    plain.train()
    micro = recipe.data.micro_batch or recipe.data.batch_size
    step = state["step"]
    waited = time.monotonic()
    for batch in sentences(batches):
        begun = time.monotonic()
        broken.add(batch.broken)
        lr = optim.rate(step, recipe.optim, recipe.train.steps)
        optim.set_rate(optimizer, lr)
        loss, terms = gradcache.backward(plain, wrapped, batch.split(micro), accelerator)
        if not math.isfinite(loss.item()):
            where = checkpoint.newest(out)
            good = f"the last good checkpoint is {where}" if where else "no checkpoint was written before it"
            raise UserError(f"step {step + 1}: the loss is {loss.item()} ({_terms(terms)}); {good}. A lower optim.lr usually helps.")
        if recipe.optim.clip:
            accelerator.clip_grad_norm_(plain.parameters(), recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        plain.after_step(step)
        now = time.monotonic()
        log.step(
            {
                "step": step,
                "loss": loss.item(),
                **{k: v.item() for k, v in terms.items()},
                "lr": lr,
                "logit_scale": plain.model.logit_scale.exp().item(),
                "pairs_per_second": recipe.data.batch_size / (now - waited),
                "data_wait": (begun - waited) / (now - waited),
                "seconds": now - began,
            }
        )
        last = step == recipe.train.steps
        if evaluate and not last and recipe.eval.every and step % recipe.eval.every == 0:
            evaluated(step)
        if last or (recipe.train.checkpoint_every and step % recipe.train.checkpoint_every == 0):
            plain.model.training_record = {"steps": step, "seconds": round(now - began, 1)}
            checkpoint.save(out, step, plain, optimizer.optimizer, {"seconds": now - began}, recipe.train.keep_last)
        waited = time.monotonic()
        began += waited - now  # evaluation and checkpoints are not training
    if evaluate:
        evaluated(step)
    log.close()
    if distributed.is_main():
        with files.whole_folder(out / "model") as inside:
            plain.model.save(inside)
    distributed.barrier()
    accelerator.free_memory()
    return out


def _accelerator(recipe: Recipe) -> Accelerator:
    AcceleratorState._reset_state()  # a notebook's second run may want another precision
    try:
        return Accelerator(
            mixed_precision=PRECISIONS[recipe.train.precision],
            log_with=recipe.train.trackers or None,
            project_dir=recipe.out,
            step_scheduler_with_optimizer=False,
        )
    except (ValueError, ImportError) as error:
        wanted = f"train.precision={recipe.train.precision} or train.trackers={recipe.train.trackers}"
        raise UserError(f"{wanted} cannot be had here: {error}") from error


def _frozen(pairs: TrainingPairs, plain: task.Task, recipe: Recipe, accelerator: Accelerator) -> FrozenPairs:
    """The pairs with the frozen image tower's outputs computed. Errors: ``UserError`` where an objective wants more than those."""
    for need in plain.needs:
        view, _, field = need.partition(":")
        if view in pairs.images and field not in ("id", "embed", "pooled"):
            raise UserError(f"data.cache_views keeps pooled features only, but an objective needs {need!r}; set it to 0.")

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return plain.model.image.eval()(images.to(accelerator.device))["pooled"]

    return FrozenPairs(pairs, encode, recipe.data.cache_views, recipe.data.workers)


def _terms(terms: dict) -> str:
    return ", ".join(f"{k} {v.item():.4g}" for k, v in terms.items())
