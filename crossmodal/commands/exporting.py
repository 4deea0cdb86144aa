"""A model for other libraries, with its card; and to a hub."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crossmodal.commands import common
from crossmodal.errors import UserError, first_line


def export(options: argparse.Namespace) -> None:
    from crossmodal.export import export

    model = common.load(options.model, "cpu")
    if options.push:
        _check_name(options.push)
    write_card = lambda differences: card(options.model, model, options.to, differences)
    differences = export(model, options.to, options.out, write_card)
    print(f"{options.to}: {options.out} (largest difference: pictures {differences['image']:.1e}, texts {differences['text']:.1e})")
    if options.push:
        if place := stuck(options.out):
            raise UserError(f"{options.out}/{place} names files of this machine, so that nobody else could read it; it was not pushed.")
        print(f"pushed: {push(options.out, options.push)}")


def card(ref: str, model, kind: str, differences: dict[str, float]) -> str:
    """A model card: what it is, how it was trained, on what, and how well it does, from the run folder where there is one."""
    import torch

    from crossmodal import recipe
    from crossmodal.pages import markdown

    near = [Path(ref), *list(Path(ref).parents)[:3]] if Path(ref).is_dir() else []  # a run, its model/, a checkpoint, that one's model/
    run = next((folder for folder in near if (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()), None)
    said = recipe.read(run / "recipe.yaml") if run else None
    evaluations = run / "eval.jsonl" if run else None
    lines = evaluations.read_text(encoding="utf-8").splitlines() if evaluations and evaluations.is_file() else []
    figures = {k: v for k, v in json.loads(lines[-1]).items() if k != "step" and isinstance(v, int | float)} if lines else {}
    return markdown("card").render(
        name=run.name if run else Path(ref.rpartition(":")[2]).name or ref,
        logit_bias=model.logit_bias.item(),
        inputs=[
            key
            for key in model.image.inputs(torch.zeros(1, 3, model.image_size, model.image_size, dtype=torch.uint8))
            if key != "pixel_values"
        ],
        kind=kind,
        differences=differences,
        model=model.part,
        image_size=model.image_size,
        resize=model.image.resize,
        mean=[round(x, 4) for x in model.image.mean],
        std=[round(x, 4) for x in model.image.std],
        context_length=model.text.context_length,
        trim_exact=model.text.trim_exact,
        pad_id=model.text.pad_id,
        record=model.training_record or {},
        data=said.data.train if said else None,
        val=said.data.val if said else None,
        figures=figures,
        recipe=(run / "recipe.yaml").read_text(encoding="utf-8").strip() if run else None,
    )


def stuck(folder: Path) -> str | None:
    """A configuration in a folder that says where the folder stands, which would be untrue elsewhere."""
    return next((file.name for file in folder.glob("*.json") if str(folder.absolute()) in file.read_text(encoding="utf-8")), None)


def push(folder: Path, name: str) -> str:
    """Upload a folder to a hub as ``USER/NAME``; returns its address. Errors: ``UserError`` where the hub refuses or cannot be reached."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # the library raises its own, its network library's and the system's
        raise UserError(
            f"{name}: could not be pushed ({first_line(error)}); the folder {folder} is whole. Is there a token (hf auth login)?"
        ) from error
    return str(address)


def _check_name(name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: is no USER/NAME of a hub: {error}") from error
