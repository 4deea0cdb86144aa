"""The typed recipe: YAML plus ``key=value`` overrides, loud about every mistake.

A recipe says everything a run depends on. Reading one either gives a ``Recipe`` whose every value
has its type, or a ``UserError`` that names the file, the line and the nearest key. The recipe a run
was made from is saved with it, whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from crossmodal import registry, resources
from crossmodal.errors import UserError, nearest


class Part(BaseModel):
    """A mapping in a recipe: no key beyond those declared."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TowerPart(Part):
    tower: str = Field(description="LIBRARY:NAME, such as timm:vit_small_patch16_224, open_clip:ViT-B-32 or hf:FOLDER-OR-ID.")
    pretrained: bool | str | None = Field(
        None,
        description="A tag of the library, a weights file or a folder; true is the library's default tag. "
        "null: random weights, but for hf what the folder or hub entry holds.",
    )
    projection: Literal["linear", "none"] = Field(
        "linear", description="linear: pooled features → embed_dim without bias; none: the tower's own output is the embedding."
    )
    freeze: bool | list[str] = Field(
        False, description="true: the whole tower; a list: the parameters whose names match one of these patterns (blocks.0.*)."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute each block's activations again in the backward pass: less memory, a third more work."
    )
    lr_scale: float = Field(1.0, ge=0, description="This tower's learning rate, as a multiple of optim.lr.")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="The learning rate falls by this factor with each block, from the output to the input (BEiT: 0.65 to 0.75).",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments for the library's own constructor.")


class ImagePart(TowerPart):
    mean: tuple[float, float, float] | None = Field(None, description="Per channel, on a 0–1 scale; null: the tower's own.")
    std: tuple[float, float, float] | None = Field(None, description="Per channel, on a 0–1 scale; null: the tower's own.")
    resize: Literal["shortest", "squash", "pad"] | None = Field(
        None, description="How a picture becomes square when it is not augmented: crop the middle, squash, or pad with white."
    )
    patch_dropout: float = Field(
        0.0, ge=0, lt=1, description="FLIP: the share of patches that a plain ViT leaves out in training, by chance, in each picture."
    )
    norm_stats: Literal["frozen", "live", "synced"] | None = Field(
        None,
        description="Batch-norm: frozen keeps the running statistics as they are; live uses those of a process's own (micro-)batch; "
        "synced those of the whole batch, over all processes. null: frozen for pretrained towers, else live.",
    )


class TextPart(TowerPart):
    context_length: PositiveInt | None = Field(None, description="Longest text in tokens; null: the tower's own.")


class PoolerPart(Part):
    kind: Literal["cascade", "parallel", "single"] = Field(
        "cascade",
        description="cascade: queries for the decoder, and a contrastive one that reads those (CoCa's choice); parallel: both read the "
        "tokens; single: one attention whose first query is the contrastive one (open_clip's).",
    )
    queries: PositiveInt = Field(256, description="How many; with single, the contrastive one included.")
    width: PositiveInt | None = Field(None, description="Of what comes out; null: the text tower's, which is the decoder's.")
    heads: PositiveInt | None = Field(None, description="null: one for 64 channels.")


class DecoderPart(Part):
    layers: PositiveInt = Field(6, description="Each attends to the words before, then to the picture.")
    heads: PositiveInt | None = Field(None, description="null: one for 64 channels.")
    tie: bool = Field(False, description="Read words out with the text tower's word embedding instead of a matrix of its own.")
    pretrained: str | None = Field(None, description="open_clip:NAME/TAG-OR-FILE of a CoCa model, whose decoder is taken.")


class ModelPart(Part):
    embed_dim: PositiveInt = 512
    image: ImagePart
    text: TextPart
    pooler: PoolerPart | None = Field(None, description="Learned queries that read the image tower's tokens, instead of its own pooling.")
    decoder: DecoderPart | None = Field(None, description="Speaks of pictures; null: none, or a default one where an objective needs it.")
    init_logit_scale: float | None = Field(None, gt=0, description="Initial temperature's inverse; null: what the objectives ask.")
    max_logit_scale: float = Field(100.0, gt=0, description="The logit scale is clamped to this after every step.")


class Augment(Part):
    """What training does to a picture, in this order. Zero or null leaves a thing out."""

    rotate: float = Field(0, ge=0, le=180, description="Largest rotation, in degrees; corners are filled with white.")
    shift: float = Field(0, ge=0, le=1, description="Largest shift, as a share of the side.")
    zoom: tuple[float, float] | None = Field(None, description="Least and greatest scale; what becomes free is filled with white.")
    crop: tuple[float, float] | None = Field((0.9, 1.0), description="Random resized crop: least and greatest share of the area.")
    flip: bool = Field(False, description="Mirror half of the pictures; captions that say left or right then lie.")
    jitter: tuple[float, float, float, float] | None = Field(None, description="Brightness, contrast, saturation, hue.")
    jitter_p: float = Field(0.8, ge=0, le=1)
    grey: float = Field(0, ge=0, le=1, description="Share of pictures made grey.")
    blur: tuple[float, float] | None = Field(None, description="Least and greatest sigma of a Gaussian blur, in pixels.")
    blur_p: float = Field(0.5, ge=0, le=1)


class DataPart(Part):
    train: str | None = Field(None, description="A source: my.csv, folder:DIR, shards.tar, wds:{0..9}.tar, emoji:twemoji …")
    val: str | None = Field(None, description="A source to evaluate on during training and at its end.")
    image_size: PositiveInt = 224
    batch_size: PositiveInt = Field(256, description="Pairs a step, over all processes: what the loss sees.")
    micro_batch: PositiveInt | Literal["auto"] | None = Field(
        None,
        description="Pairs that go through the towers at once on a process; the loss and its gradient stay those of batch_size. "
        "auto: as many as fit, found by trying. null: all.",
    )
    workers: int = Field(2, ge=0, description="Loader processes for each training process; 0 loads in the training process.")
    augment: Augment = Field(default_factory=Augment)
    cache_views: int = Field(
        0,
        ge=0,
        description="For a frozen image tower: encode so many variants of every picture once, before training; "
        "they take turns over the epochs. 0: encode anew in every step.",
    )
    cache_texts: bool = Field(
        False,
        description="For a frozen text tower: encode every caption once, before training, instead of in every step. "
        "Takes 4 bytes × the tower's width for each different caption.",
    )
    cache_pictures: bool = Field(
        False,
        description="Decode every picture once, before training, into a temporary file in memory's reach; views are still drawn anew. "
        "Takes 3 bytes a pixel.",
    )
    max_broken: int = Field(100, ge=0, description="Pictures that may fail to decode before the run stops with their list.")


class OptimPart(Part):
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="Not applied to norms, biases, logit scale and logit bias.")
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up, before the cosine.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null: no clipping.")


class TrainPart(Part):
    steps: PositiveInt = 1000
    shard: bool = Field(
        False, description="Share parameters and optimiser state out over the processes (FSDP2), for models that one cannot hold."
    )
    compile: bool = Field(
        False, description="Compile the towers' blocks (torch.compile): a minute more at the start, faster steps on GPUs."
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(None, description="null: as accelerate is configured.")
    checkpoint_every: int = Field(1000, ge=0, description="In steps; 0: at the end only.")
    keep_last: PositiveInt = Field(3, description="How many checkpoints stay.")
    keep_best: str | None = Field(
        None, description="A figure of the evaluation (acc1, image_retrieval_recall@1 …): the checkpoint with the greatest stays as well."
    )
    trackers: list[str] = Field(default_factory=lambda: ["tensorboard"], description="accelerate's: tensorboard, wandb …; [] none.")


class EvalPart(Part):
    every: int = Field(0, ge=0, description="In steps; 0: at the end only.")
    templates: list[str] = Field(
        default_factory=lambda: ["a photo of a {}."], description="Class prompts; {} is the class name. Saved with the model."
    )
    benchmarks: list[str] = Field(default_factory=list, description="Names of packaged benchmarks, or YAML files.")


class Recipe(Part):
    out: str = Field(description="The run's folder; must not exist yet.")
    seed: int = 0
    model: ModelPart
    objectives: dict[str, dict[str, Any]] = Field(description="name: {weight, options}; several are added up.")
    data: DataPart = Field(default_factory=DataPart)
    optim: OptimPart = Field(default_factory=OptimPart)
    train: TrainPart = Field(default_factory=TrainPart)
    eval: EvalPart = Field(default_factory=EvalPart)

    def yaml(self) -> str:
        """The resolved recipe as YAML text."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read(wanted: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe by path or bare name, with ``key=value`` overrides (``optim.lr=1e-3``), checked.

    Errors: ``UserError`` naming file, line (or override) and nearest key.
    """
    path = resources.resource("recipes", str(wanted))
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys such as out, model, objectives and data.")
    said = _lines(node, str(path))
    for override in overrides:
        _apply(tree, override, said)
    return check(tree, said, str(path))


def check(tree: dict, said: dict[tuple, str] | None = None, path: str = "recipe") -> Recipe:
    """A mapping as a ``Recipe``. ``said`` tells where each key was said, for the error text."""
    said = said or {}
    try:
        recipe = Recipe.model_validate(tree)
        recipe.objectives = {n: _objective(n, o or {}) for n, o in recipe.objectives.items()}
    except pydantic.ValidationError as error:
        raise _sentence(error.errors()[0], said, path, Recipe) from error
    except _ObjectiveError as error:
        raise _sentence(error.args[1], said, path, error.args[2], ("objectives", error.args[0])) from error
    _combinations(recipe, said, path)
    return recipe


def schema() -> dict:
    """The recipe's JSON Schema, objectives and their options included, for editors."""
    root = Recipe.model_json_schema()
    entries = {}
    for name in registry.names("objectives"):
        entry = _objective_options(name).model_json_schema()
        entry["title"] = name
        entries[name] = entry
    root["properties"]["objectives"].update(properties=entries)
    return root


class _ObjectiveError(Exception):
    """(objective, first pydantic error, its option model)"""


def _objective_options(name: str) -> type[BaseModel]:
    takes = registry.options(registry.find("objectives", name, "Objective"))
    fields = {n: (p.annotation if p.annotation is not p.empty else Any, p.default) for n, p in takes.items()}
    return pydantic.create_model(f"{name} options", __base__=Part, weight=(float, 1.0), **fields)


def _objective(name: str, options: dict) -> dict[str, Any]:
    model = _objective_options(name)
    try:
        return model.model_validate(options).model_dump()
    except pydantic.ValidationError as error:
        raise _ObjectiveError(name, error.errors()[0], model) from error


def _lines(node: yaml.Node, path: str, at: tuple = ()) -> dict[tuple, str]:
    """Where each key stands: {("data", "train"): "emoji.yaml, line 12"}. Refuses a key said twice."""
    said = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            if here in said:
                raise UserError(f"{path}, line {key.start_mark.line + 1}: {'.'.join(here)} is said twice; keep one.")
            said[here] = f"{path}, line {key.start_mark.line + 1}"
            said.update(_lines(value, path, here))
    return said


def _apply(tree: dict, override: str, said: dict[tuple, str]) -> None:
    """Put one ``a.b.c=value`` into the tree; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        raise UserError(f"{override!r} is not an override; write key=value, such as optim.lr=1e-3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # a path or spec with a colon and a brace is no YAML, but a fine string
    if text and not isinstance(value, (str, int, float, bool, list, dict, type(None))):
        value = text  # 2026-01-01 is a date to YAML and a name to us
    at = tree
    for depth, key in enumerate(keys[:-1]):
        at[key] = at.get(key) if at.get(key) is not None else {}
        if not isinstance(at[key], dict):
            raise UserError(f"{override!r}: {'.'.join(keys[: depth + 1])} is not a mapping, so it has no {keys[depth + 1]!r}.")
        at = at[key]
    at[keys[-1]] = value
    for depth in range(1, len(keys) + 1):  # what the recipe file already said keeps its line
        if depth == len(keys) or keys[:depth] not in said:
            said[keys[:depth]] = f"{override!r}"


def _sentence(error: dict, said: dict[tuple, str], path: str, model: type[BaseModel], prefix: tuple = ()) -> UserError:
    """pydantic's first error as one sentence with place and nearest key."""
    loc = tuple(
        p for p in error["loc"] if isinstance(p, str) and p not in ("bool", "str", "list[str]", "constrained-int", "literal['auto']")
    )
    full = (*prefix, *loc)
    place = next((said[full[:n]] for n in range(len(full), 0, -1) if full[:n] in said), path)
    dotted = ".".join(full)
    if error["type"] == "extra_forbidden":
        for key in loc[:-1]:
            model = _inner(model, key)
        return UserError(f"{place}: unknown key {dotted!r}; {nearest(loc[-1], model.model_fields)}")
    if error["type"] == "missing":
        return UserError(f"{place}: {dotted} is missing; it must be set.")
    given = error["input"]
    shown = "null" if given is None else repr(given) if not isinstance(given, dict) else "a mapping"
    return UserError(f"{place}: {dotted}: {error['msg'][0].lower()}{error['msg'][1:]}, but it is {shown}.")


def _inner(model: type[BaseModel], key: str) -> type[BaseModel]:
    inner = model.model_fields[key].annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model


def _combinations(recipe: Recipe, said: dict[tuple, str], path: str) -> None:
    """Values that are each right but cannot stand together."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"{said.get(tuple(key.split('.')), path)}: {key} {why}")

    if not recipe.objectives:
        refuse("objectives", "is empty; name at least one, such as contrastive: {weight: 1.0}.")
    if recipe.optim.warmup >= recipe.train.steps:
        refuse("optim.warmup", f"is {recipe.optim.warmup}, but train.steps is only {recipe.train.steps}; warm up for fewer steps.")
    if recipe.eval.every and not (recipe.data.val or recipe.eval.benchmarks):
        refuse("eval.every", "asks for evaluation, but neither data.val nor eval.benchmarks says on what.")
    if recipe.train.keep_best and not recipe.eval.every:
        refuse("train.keep_best", "keeps the best of several evaluations; set eval.every.")
    for half in ("image", "text"):
        for key in getattr(recipe.model, half).kwargs:
            if ":" in key:
                refuse(f"model.{half}.kwargs", f"has the key {key!r}; put a space after the colon.")
    for template in recipe.eval.templates:
        if "{}" not in template:
            refuse("eval.templates", f"has {template!r}, which lacks {{}} for the class name.")
    if recipe.data.cache_views and recipe.model.image.freeze is not True:
        refuse("data.cache_views", "keeps what the image tower makes of a picture, so it needs model.image.freeze: true.")
    if recipe.data.cache_texts and recipe.model.text.freeze is not True:
        refuse("data.cache_texts", "keeps what the text tower makes of a caption, so it needs model.text.freeze: true.")
    if recipe.train.shard and recipe.data.micro_batch == "auto":
        refuse("data.micro_batch", "is auto, which tries the whole model on one process; with train.shard: true give a number.")
    if recipe.data.micro_batch and recipe.model.image.norm_stats == "synced":
        refuse("data.micro_batch", "is set, but model.image.norm_stats: synced needs the whole batch at once; leave one of them out.")
    crop = recipe.data.augment.crop
    if crop and not 0 < crop[0] <= crop[1] <= 1:
        refuse("data.augment.crop", f"is {list(crop)}; it takes two shares with 0 < least <= greatest <= 1.")


def dump_schema() -> str:
    """``schema()`` as indented JSON text."""
    return json.dumps(schema(), indent=2)
