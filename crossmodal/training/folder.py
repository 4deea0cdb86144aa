"""The run folder: who may have it, and what training writes into it step by step.

``recipe.yaml``, ``metrics.jsonl`` (a line a step), ``eval.jsonl`` (a line an evaluation), ``broken.jsonl`` (pictures
that could not be used). Every process calls these; one writes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator
from tqdm import tqdm

from crossmodal import distributed, files
from crossmodal import recipe as recipes
from crossmodal.errors import UserError
from crossmodal.recipe import Recipe
from crossmodal.training import checkpoint

#: What a resumed run may change: nothing that its weights depend on.
FREE = {
    "out": True,
    "data": {"workers", "cache_pictures", "val", "max_broken"},
    "train": {"checkpoint_every", "keep_last", "keep_best", "trackers"},
    "eval": True,
}


def check(out: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse an ``out`` that may not be used, before anything long is done. Errors: ``UserError``."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; out must be a folder that does not exist yet.")
    if not out.is_dir() or all(".tmp-" in inside.name for inside in out.iterdir()):
        return
    if not resume and not overwrite:
        raise UserError(f"{out}: exists already; choose another with out=…, or add --resume to go on or --overwrite to start anew.")
    saved = out / "recipe.yaml"
    if not saved.is_file():
        raise UserError(f"{out}: is not a run folder (it has no recipe.yaml); choose another with out=….")
    if resume:
        old, new = (r.model_dump(mode="json", exclude=FREE) for r in (recipes.read(saved), recipe))
        differs = [f"{s}.{k}".rstrip(".") for s in old for k in _keys(old[s], new[s])]
        if differs:
            raise UserError(
                f"{differs[0]} differs from the recipe {out} was started with ({saved}); resume with the same, or choose another out."
            )


def _keys(old: object, new: object) -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [""] if old != new else []
    return [k for k in {**old, **new} if old.get(k) != new.get(k)]


def claim(out: Path, recipe: Recipe, resume: bool) -> Path | None:
    """Make the folder, or empty it, or take it up; returns the checkpoint to go on from, if any."""
    done = None
    if distributed.is_main():
        done = checkpoint.newest(out) if resume else None
        if out.is_dir() and not resume:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        for half in [*out.glob(".*.tmp-*"), *out.glob("checkpoints/.*.tmp-*")]:  # a killed run's unfinished writing
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        files.write_text(out / "recipe.yaml", recipe.yaml())
    return distributed.all_objects(done)[0]


class Broken:
    """Counts pictures that did not decode, by key, and stops the run past the limit."""

    def __init__(self, out: Path, limit: int):
        self.file, self.limit, self.keys = out / "broken.jsonl", limit, {}

    def add(self, found: tuple[tuple[str, str], ...]) -> None:
        for key, why in found:
            if key in self.keys:
                continue
            self.keys[key] = why
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"key": key, "why": why}, ensure_ascii=False) + "\n")
            print(f"crossmodal: {key} was replaced by another sample: {why}", file=sys.stderr)
        if len(self.keys) > self.limit:
            first = "; ".join(f"{k} ({w})" for k, w in list(self.keys.items())[:3])
            raise UserError(
                f"{len(self.keys)} pictures cannot be used, more than data.max_broken={self.limit}: {first} … all in {self.file}."
            )


class Log:
    """metrics.jsonl, eval.jsonl, the trackers and the progress bar; silent on all processes but one."""

    def __init__(self, out: Path, recipe: Recipe, accelerator: Accelerator, start: int):
        self.accelerator, self.main, self.out = accelerator, distributed.is_main(), out
        if recipe.train.trackers:
            try:
                accelerator.init_trackers("tensorboard", config={"out": recipe.out, "seed": recipe.seed})
            except (ValueError, ImportError) as error:
                raise UserError(f"train.trackers: {recipe.train.trackers} cannot be used: {error}") from error
        if self.main:
            self.metrics = _resumed(out / "metrics.jsonl", start)
            self.evals = _resumed(out / "eval.jsonl", start - (start == recipe.train.steps))  # the last one is made anew
        terminal = sys.stderr.isatty() and "PYTEST_CURRENT_TEST" not in os.environ
        self.bar = tqdm(total=recipe.train.steps, initial=start, unit="step", desc=out.name, disable=not (self.main and terminal))

    def step(self, line: dict) -> None:
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])
        if self.main:
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
            shown = {"loss": f"{line['loss']:.3f}", "pairs_s": f"{line['pairs_per_second']:.0f}", "data_wait": f"{line['data_wait']:.0%}"}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        self.accelerator.log({f"eval/{k}": v for k, v in figures.items()}, step=step)
        if self.main:
            self.evals.write(json.dumps({"step": step, **figures}) + "\n")
            self.evals.flush()
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after ``step`` is written; the same answer on every process."""
        found = self.main and any(json.loads(line)["step"] == step for line in (self.out / "eval.jsonl").read_text().splitlines())
        return distributed.all_objects(found)[0]

    def say(self, sentence: str | None) -> None:
        if sentence and self.main:
            tqdm.write(f"crossmodal: {sentence}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        # Not end_training: it takes the process group down, and every process then thinks itself the first.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.main:
            self.metrics.close()
            self.evals.close()


def _resumed(path: Path, start: int) -> TextIO:
    """A file of JSON lines, opened to append, without what a broken-off run wrote after ``start``."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= start:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # half a line, cut off with its run
    files.write_text(path, "".join(kept))
    return path.open("a", encoding="utf-8")
