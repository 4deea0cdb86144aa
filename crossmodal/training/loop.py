"""The one training loop, on accelerate.

It stands below zero-shot and retrieval: periodic evaluation is handed in (``fit(…, evaluate=…)``) and
put together in ``commands/training.py``. A run folder holds ``recipe.yaml``, ``metrics.jsonl`` (a line a step),
``eval.jsonl`` (a line an evaluation), ``broken.jsonl`` (pictures that did not decode), ``checkpoints/`` and,
when training has ended, ``model/``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import Dataset

from crossmodal import distributed, files
from crossmodal.allocator import keep_freed_memory
from crossmodal.batch import Batch
from crossmodal.chance import seed_of
from crossmodal.data.loader import FrozenPairs, KnownTexts, TrainingPairs, check_batch, sentences, training_batches
from crossmodal.data.sources import open_source
from crossmodal.data.sources.base import Source
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.recipe import Recipe
from crossmodal.training import checkpoint, folder, gradcache, micro_batch, optim, sharding, task
from crossmodal.training.health import Health, gradient_norm, memory, numbers, what_is_not_finite
from crossmodal.training.stop import STATUS, Stop

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
    with Stop() as stop:
        return _fit(recipe, evaluate, resume, overwrite, stop)


def _fit(recipe: Recipe, evaluate: Evaluate | None, resume: bool, overwrite: bool, stop: Stop) -> Path:
    out = Path(recipe.out)
    accelerator = _accelerator(recipe)
    folder.check(out, recipe, resume, overwrite)
    source = open_source(recipe.data.train)
    check_batch(recipe.data, len(source))
    torch.manual_seed(recipe.seed)  # the same weights on every process
    plain = task.build(recipe)
    if not recipe.train.shard:
        plain.to(accelerator.device)
    done = folder.claim(out, recipe, resume)
    broken = folder.Broken(out, recipe.data.max_broken)
    began = time.monotonic()  # encoding with a frozen tower is part of training
    pairs = TrainingPairs(source, plain.views, recipe.data, plain.model.image.resize, recipe.seed)
    if recipe.data.cache_pictures:
        pairs.decode_once(recipe.data.workers)
    if recipe.data.cache_views:
        pairs = _frozen(pairs, plain, recipe, accelerator)
        broken.add(pairs.broken)
    if recipe.data.cache_texts:
        pairs = _known_texts(pairs, source, plain, accelerator)
    tokenize = plain.model.text.tokenize
    micro = _micro_batch(recipe, plain, pairs, source, out, accelerator)
    if recipe.train.compile:
        plain.model.compile_blocks()
    wrapped = sharding.shard(plain, accelerator) if recipe.train.shard else accelerator.prepare(plain)
    optimizer = accelerator.prepare(optim.build(plain, recipe.optim))
    torch.manual_seed(seed_of(recipe.seed, "process", distributed.rank()))  # dropout differs between processes
    state = checkpoint.restore(done, plain, optimizer.optimizer) if done else {"step": 0, "seconds": 0.0}
    step = state["step"]
    data = {"samples": len(source), "data": source.glimpse()}
    if done and any(state.get(key, now) != now for key, now in data.items()):
        raise UserError(
            f"{recipe.data.train}: holds other samples than {out} began with ({len(source):,}, there were {state['samples']:,}); "
            "resume with the same data, or choose another out."
        )
    log = folder.Log(out, recipe, accelerator, step)
    health = Health(plain, recipe.data.batch_size)
    began -= state["seconds"]
    batches = training_batches(pairs, source, recipe.data, tokenize, recipe.seed, step, recipe.train.steps)

    def is_due(every: int) -> bool:
        return bool(every) and step % every == 0 and 0 < step < recipe.train.steps

    def save(now: float) -> Path:
        plain.model.training_record = {"steps": step, "seconds": round(now - began, 1)}
        return checkpoint.save(out, step, plain, optimizer.optimizer, {"seconds": now - began, **data}, recipe.train.keep_last)

    def evaluated() -> None:
        plain.eval()
        with sharding.gathered(plain):
            figures = evaluate(plain.model)
        plain.train()
        log.evaluation(step, figures)
        if recipe.train.keep_best and distributed.is_main():
            checkpoint.mark_best(out, step, recipe.train.keep_best, figures)

    plain.train()
    plain.model.training_record = {"steps": step, "seconds": round(state["seconds"], 1)}
    if evaluate and is_due(recipe.eval.every) and not log.has_evaluation(step):  # broken off between checkpoint and evaluation
        evaluated()
    leave, waited = False, time.monotonic()
    for batch in stop.batches(sentences(batches)):
        begun = time.monotonic()
        with stop.whole():
            broken.add(batch.broken)
            lr = optim.rate(step, recipe.optim, recipe.train.steps)
            optim.set_rate(optimizer, lr)
            loss, terms = gradcache.backward(plain, wrapped, batch.split(micro), accelerator)
            if not math.isfinite(loss.item()):
                where = checkpoint.newest(out)
                good = f"the last good checkpoint is {where}" if where else "no checkpoint was written before it"
                raise UserError(
                    f"step {step + 1}: the loss is {loss.item()} ({what_is_not_finite(terms, batch.keys)}); {good}. "
                    "A lower optim.lr usually helps."
                )
            norm = accelerator.clip_grad_norm_(plain.parameters(), recipe.optim.clip) if recipe.optim.clip else gradient_norm(plain)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            plain.after_step(step)
            figures = {"loss": loss, **terms, "logit_scale": plain.model.logit_scale.exp(), "gradient_norm": norm, **plain.figures}
            line = numbers(figures)
            now = time.monotonic()
            speed = {"pairs_per_second": recipe.data.batch_size / (now - waited), "data_wait": (begun - waited) / (now - waited)}
            log.step({"step": step, **line, "lr": lr, **speed, "memory": memory(), "seconds": now - began})
            log.say(health.plateau(line))
            leave = stop.everywhere(accelerator.device)
            if leave or step == recipe.train.steps or is_due(recipe.train.checkpoint_every) or (evaluate and is_due(recipe.eval.every)):
                save(now)
        if leave:
            break
        if evaluate and is_due(recipe.eval.every):
            evaluated()
        waited = time.monotonic()
        began += waited - now  # evaluation and checkpoints are not training
    if leave or step < recipe.train.steps:
        with stop.whole():
            last = save(time.monotonic()) if not checkpoint.path(out, step).is_dir() and step else checkpoint.newest(out)
        log.say(f"stopped by SIGTERM after step {step}; " + (f"--resume goes on from {last}." if last else "there is nothing to resume."))
        log.close()
        raise SystemExit(STATUS)
    if evaluate:
        evaluated()
    log.close()
    state = {k: sharding.whole(v) for k, v in plain.model.state_dict().items()}
    if distributed.is_main():
        with files.whole_folder(out / "model") as inside:
            plain.model.save(inside, state)
    distributed.barrier()
    accelerator.free_memory()
    return out


def _micro_batch(recipe: Recipe, plain: task.Task, pairs: Dataset, source: Source, out: Path, accelerator: Accelerator) -> int:
    """What ``data.micro_batch`` says; what "auto" has found is kept in the run folder, so that a resumed run computes the same."""
    file = out / "micro_batch.json"
    if recipe.data.micro_batch == "auto" and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["micro_batch"]

    def sample(size: int) -> Batch:
        data = recipe.data.model_copy(update={"batch_size": size * distributed.world_size(), "workers": 0})
        return next(iter(training_batches(pairs, source, data, plain.model.text.tokenize, recipe.seed, 0, 1)))

    local = recipe.data.batch_size // distributed.world_size()
    found = micro_batch.choose(recipe.data.micro_batch, plain, sample, local, accelerator)
    if recipe.data.micro_batch == "auto" and distributed.is_main():
        files.write_json(file, {"micro_batch": found})
    return found


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
    wanted = {view: {n.partition(":")[2] for n in plain.needs if n.partition(":")[0] == view} - {"id"} for view in pairs.images}
    for view, fields in wanted.items():
        if "pixels" in fields:
            raise UserError(
                f"data.cache_views keeps what the tower makes of pictures, but an objective reads {view!r} itself; set it to 0."
            )

    @torch.inference_mode()
    def encode(view: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
        # On a CPU in full precision: it is done once, and depthwise convolutions are slower there in bf16.
        with nullcontext() if accelerator.device.type == "cpu" else accelerator.autocast():
            out = plain.model.image.eval()(images.to(accelerator.device))
        return {field: out[field] for field in plain.model.tower_fields("image", wanted[view])}

    return FrozenPairs(pairs, encode, recipe.data.cache_views, recipe.data.workers)


def _known_texts(pairs: TrainingPairs | FrozenPairs, source: Source, plain: task.Task, accelerator: Accelerator) -> KnownTexts:
    """The pairs with the frozen text tower's outputs computed. Errors: ``UserError`` where an objective wants more than those."""
    fields = {n.partition(":")[2] for n in plain.needs if n.partition(":")[0] in pairs.texts} - {"id"}
    if "tokens" in fields:
        raise UserError(
            "data.cache_texts keeps what the text tower makes of a whole caption, but an objective reads its words; leave it out."
        )

    @torch.inference_mode()
    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        with accelerator.autocast():
            out = plain.model.text.eval()(plain.model.text.tokenize(texts).to(accelerator.device))
        return {field: out[field].float().cpu() for field in plain.model.tower_fields("text", fields)}

    return KnownTexts(pairs, (caption for index in range(len(source)) for caption in source.identity(index).captions), encode)
