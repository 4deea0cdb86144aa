"""A model in other libraries' layouts, each read back by its own library and compared before it counts as written.

- ``open_clip``: a folder for ``open_clip.create_model("local-dir:FOLDER")``.
- ``transformers``: ``CLIPModel`` where both towers are of that layout, a dual encoder's own class where both halves came from one, else
  ``VisionTextDualEncoderModel``.
- ``onnx``: ``image.onnx`` and ``text.onnx``, from uint8 pictures and token ids to unit-length embeddings.
- ``safetensors``: the towers' weights under their libraries' names, the projections, and whatever else the model has.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossmodal import files
from crossmodal.errors import UserError, first_line, in_short
from crossmodal.model import Model

HALVES = ("image", "text")
TOLERANCE = 1e-5  # of unit-length embeddings, fp32
TEXTS = ["a photo of a dog", "two children play in the snow, and a third looks on", "x"]
Embeddings = tuple[Tensor, Tensor]  # of the probes' pictures and texts, [B, D] each


def export(model: Model, kind: str, folder: Path, card: Callable[[dict[str, float]], str] = lambda _: "") -> dict[str, float]:
    """Write ``model`` into ``folder`` in the layout ``kind``, whole or not at all, with a README.md that ``card`` makes of the outcome.

    Returns the largest difference of an embedding's entry, as the library that reads the layout computes it, for "image" and "text".
    Errors: ``UserError`` for a model that the layout has no place for, or whose embeddings come out otherwise.
    """
    if kind not in KINDS:
        raise UserError(f"there is no layout {kind!r}; there are {', '.join(KINDS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; choose another.")
    model = copy.deepcopy(model).cpu().eval()
    pictures = torch.randint(0, 256, (3, 3, model.image_size, model.image_size), generator=torch.Generator().manual_seed(0))
    probes = pictures.to(torch.uint8), TEXTS
    with files.whole_folder(folder) as inside, torch.no_grad(), _quietly():
        wanted = model.encode_image(probes[0]), model.encode_text(probes[1])
        found = KINDS[kind](model, inside, *probes)
        differences = {half: (a - b).abs().max().item() for half, a, b in zip(HALVES, wanted, found, strict=True)}
        if not max(differences.values()) <= TOLERANCE:
            worst = max(differences, key=differences.get)
            raise UserError(
                f"as {kind}, the {worst} tower's embeddings differ by {differences[worst]:.2g}, over {TOLERANCE:g}; nothing was written."
            )
        for file in inside.glob("*.json"):  # what stands in the folder is named by where it will stand
            file.write_text(file.read_text(encoding="utf-8").replace(str(inside.absolute()), str(folder.absolute())), encoding="utf-8")
        (inside / "README.md").write_text(card(differences), encoding="utf-8")
    return differences


def _heads(model: Model) -> dict[str, Tensor | None]:
    """The model's projections [D, W] of image and text; None where a tower's own output is the embedding."""
    return {half: getattr(model, f"{half}_projection").state_dict().get("weight") for half in HALVES}


def _refuse_pooler(model: Model, kind: str) -> None:
    if model.pooler or model.decoder:
        raise UserError(f"{kind} has no place for this model's pooler or decoder; onnx takes its two encoders, safetensors all of it.")


def _no_place(kind: str, model: Model, half: str, why: str = "") -> UserError:
    tower = getattr(model.part, half).tower
    return UserError(f"model.{half}: {kind} builds no tower like {tower} as it stands here{why}; onnx and safetensors take any.")


def _open_clip(model: Model, folder: Path, pictures: Tensor, texts: list[str]) -> Embeddings:
    import open_clip

    _refuse_pooler(model, "open_clip")
    heads, sections, state = _heads(model), {}, {"logit_scale": model.logit_scale.squeeze(0)}
    for half, name in (("image", "visual"), ("text", "text")):
        made = getattr(model, half).as_open_clip(heads[half], folder)
        if made is None:
            raise _no_place("open_clip", model, half, " (timm's go in by name alone, at their own size, under a linear projection)")
        sections[half], weights = made
        state |= {f"{name}.{key}": x for key, x in weights.items()}
    quick = {half: bool(section.pop("quick_gelu", False)) for half, section in sections.items() if "quick_gelu" in section}
    if len(set(quick.values())) > 1:
        raise UserError("open_clip has one activation for both towers, and these have different ones (quick_gelu); onnx takes any.")
    about = {"embed_dim": model.part.embed_dim, "vision_cfg": sections["image"], "text_cfg": sections["text"], "custom_text": True}
    about |= {"quick_gelu": True} if any(quick.values()) else {}
    if model.logit_bias.abs().item():
        about["init_logit_bias"] = model.logit_bias.item()
        state["logit_bias"] = model.logit_bias.squeeze(0)
    resize = {"shortest": "shortest", "squash": "squash", "pad": "longest"}[model.image.resize]
    seen = {"mean": model.image.mean, "std": model.image.std, "interpolation": "bicubic", "resize_mode": resize, "size": model.image_size}
    seen |= {"fill_color": 255}  # what is padded is white
    files.write_json(folder / "open_clip_config.json", {"model_cfg": about, "preprocess_cfg": seen})
    save_file(_owned(state), folder / "open_clip_model.safetensors")
    place = f"local-dir:{folder.absolute()}"
    library = open_clip.create_model(place).eval()
    ids = open_clip.get_tokenizer(place)(texts)
    return library.encode_image(model.image.normalise(pictures), normalize=True), library.encode_text(ids, normalize=True)


def _transformers(model: Model, folder: Path, pictures: Tensor, texts: list[str]) -> Embeddings:
    import transformers

    _refuse_pooler(model, "transformers")
    library = _whole(model) or _joined(model)
    library.logit_scale.data = model.logit_scale.detach().clone().reshape(library.logit_scale.shape)
    library.save_pretrained(folder)
    model.text.save_tokenizer(folder)
    size = model.image_size
    squash = model.image.resize == "squash"
    transformers.CLIPImageProcessor(
        size={"height": size, "width": size} if squash else {"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=not squash,
        image_mean=list(model.image.mean),
        image_std=list(model.image.std),
    ).save_pretrained(folder)
    again = type(library).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "longest" if model.text.trim_exact else "max_length"
    words = tokenizer(texts, padding=padding, truncation=True, max_length=model.text.context_length, return_tensors="pt")
    image = again.get_image_features(**model.image.inputs(pictures)).pooler_output
    text = again.get_text_features(input_ids=words["input_ids"], attention_mask=words["attention_mask"] if model.text.causal else None)
    return F.normalize(image, dim=-1), F.normalize(text.pooler_output, dim=-1)


def _whole(model: Model) -> nn.Module | None:
    """Both halves of one dual encoder of transformers, together again."""
    import transformers

    halves = [getattr(model, half).as_library() for half in HALVES]
    dual = all(isinstance(half, transformers.PreTrainedModel) and hasattr(half, "get_text_features") for half in halves)
    if not dual or type(halves[0]) is not type(halves[1]):
        return None
    library = type(halves[0])(halves[0].config)
    state = {name: x for half in halves for name, x in half.state_dict().items()}
    if "logit_bias" in library.state_dict():
        state["logit_bias"] = model.logit_bias
    library.load_state_dict({**library.state_dict(), **state})
    return library.eval()


def _joined(model: Model) -> nn.Module:
    """Two encoders of transformers under projections. Errors: ``UserError`` where there are none such."""
    import transformers

    heads = {half: head if head is not None else getattr(model, half).head() for half, head in _heads(model).items()}
    inner = {half: getattr(model, half).as_transformers() for half in heads}
    for half, encoder in inner.items():
        if encoder is None or heads[half] is None:
            why = " (without a projection of its own)" if half == "image" else " (of text towers, those with CLIP's own pooling)"
            raise _no_place("transformers", model, half, why)
    shared = {"projection_dim": model.part.embed_dim, "logit_scale_init_value": model.logit_scale.item()}
    clip = isinstance(inner["image"], transformers.CLIPVisionModel) and isinstance(inner["text"], transformers.CLIPTextModel)
    kind, config = (
        (transformers.CLIPModel, transformers.CLIPConfig)
        if clip
        else (transformers.VisionTextDualEncoderModel, transformers.VisionTextDualEncoderConfig)
    )
    parts = {
        f"{name}_config": {"hidden_size": getattr(model, half).width, **inner[half].config.to_dict()}
        for half, name in (("image", "vision"), ("text", "text"))
    }
    library = kind(config(**parts, **shared))
    for half, name in (("image", "vision"), ("text", "text")):
        getattr(library, f"{name}_model").load_state_dict(inner[half].state_dict())
    library.visual_projection.weight.data, library.text_projection.weight.data = heads["image"], heads["text"]
    return library.eval()


class _Encoder(nn.Module):
    """One half, from what a user has to unit length."""

    def __init__(self, model: Model, half: str):
        super().__init__()
        self.model, self.half = model, half

    def forward(self, x: Tensor) -> Tensor:
        return self.model.embed_images(x) if self.half == "image" else self.model._embed("text", self.model.text.forward(x)["pooled"])


def _onnx(model: Model, folder: Path, pictures: Tensor, texts: list[str]) -> Embeddings:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"onnx needs the package {error.name!r}: pip install 'crossmodal[export]'.") from error
    ids = model.text.tokenize(texts)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=model.text.context_length)
    out = []
    for half, given in (("image", pictures), ("text", ids)):
        shape = {0: batch} | ({1: length} if half == "text" and model.text.trim_exact else {})
        name = {"image": "pictures", "text": "ids"}[half]
        try:
            torch.onnx.export(
                _Encoder(model, half).eval(),
                (given,),
                folder / f"{half}.onnx",
                input_names=[name],
                output_names=["embeddings"],
                dynamic_shapes=(shape,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises what its passes raise
            raise UserError(
                f"model.{half}: torch's exporter cannot trace {getattr(model.part, half).tower}: {first_line(error)}"
            ) from error
        runs = onnxruntime.InferenceSession(str(folder / f"{half}.onnx"), providers=["CPUExecutionProvider"])
        try:
            rows = [runs.run(None, {name: part.numpy()})[0] for part in (given[:1], given[1:])]  # the batch's size is free
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise UserError(
                f"model.{half}: {getattr(model.part, half).tower} is traced for one size of batch only: {in_short(error)}"
            ) from error
        out.append(torch.cat([torch.from_numpy(part) for part in rows]))
    model.text.save_tokenizer(folder)
    about = {"image_size": model.image_size, "resize": model.image.resize, "context_length": model.text.context_length}
    about |= {"pad_id": model.text.pad_id, "logit_scale": model.logit_scale.exp().item(), "logit_bias": model.logit_bias.item()}
    files.write_json(folder / "crossmodal.json", about)
    return out[0], out[1]


def _safetensors(model: Model, folder: Path, pictures: Tensor, texts: list[str]) -> Embeddings:
    heads = {f"{half}_projection": x for half, x in _heads(model).items() if x is not None}
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(("image.", "text.", "image_proj", "text_proj"))}
    save_file(_owned(heads | rest), folder / "rest.safetensors")
    for half in HALVES:
        save_file(_owned(getattr(model, half).as_library().state_dict()), folder / f"{half}.safetensors")
    model.text.save_tokenizer(folder)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        parameter.data.zero_()
    for half in HALVES:
        getattr(again, half).as_library().load_state_dict(load_file(folder / f"{half}.safetensors"))
    kept = load_file(folder / "rest.safetensors")
    for half in HALVES:
        if f"{half}_projection" in kept:
            getattr(again, f"{half}_projection").weight.data = kept.pop(f"{half}_projection")
    again.load_state_dict(kept, strict=False)
    return again.encode_image(pictures), again.encode_text(texts)


KINDS: dict[str, Callable[[Model, Path, Tensor, list[str]], Embeddings]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "onnx": _onnx,
    "safetensors": _safetensors,
}


def _owned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file wants them: on the CPU, dense, none sharing another's memory."""
    return {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in state.items()}


class _quietly:
    """Without the libraries' remarks about what is being asked of them on purpose."""

    def __enter__(self) -> None:
        from transformers.utils import logging as theirs

        self.level, self.caught, self.theirs = logging.root.manager.disable, warnings.catch_warnings(), theirs
        self.bars = theirs.is_progress_bar_enabled()
        theirs.disable_progress_bar()
        logging.disable(logging.WARNING)
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        logging.disable(self.level)
        if self.bars:
            self.theirs.enable_progress_bar()
        self.caught.__exit__(*error)
