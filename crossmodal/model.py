"""Two towers, two projections, logit scale and bias: one embedding space.

The model encodes each thing a step needs exactly once (``encode``), and answers users' questions
(``encode_image``, ``encode_text``). What is saved is a folder: ``model.json`` (what it is),
``model.safetensors`` (its weights) and the towers' own small files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from crossmodal import chance, generate
from crossmodal.batch import Batch, Encoded
from crossmodal.data import views
from crossmodal.decoder import Decoder, Pooler, next_words
from crossmodal.errors import UserError, nearest
from crossmodal.recipe import DecoderPart, ModelPart, PoolerPart
from crossmodal.towers import build_image, build_text
from crossmodal.towers.base import ImageTower, blocks
from crossmodal.towers.open_clip import decoder_weights

FORMAT = 1


class Model(nn.Module):
    """A dual encoder.

    Args:
        part: the ``model`` section of a recipe.
        image_size: side of the pictures in pixels; None: the image tower's own.
        init_logit_scale, init_logit_bias: initial values; a pretrained pair's own come first.
        templates: class prompts that fit the training captions, kept for zero-shot.
    """

    def __init__(
        self,
        part: ModelPart,
        image_size: int | None = None,
        init_logit_scale: float = 1 / 0.07,
        init_logit_bias: float = 0.0,
        templates: Sequence[str] = ("a photo of a {}.",),
    ):
        super().__init__()
        self.part, self.templates = part, tuple(templates)
        self.training_record: dict[str, float] = {}  # "steps", "seconds": how it was trained here, if it was
        self.teachers: dict[
            str, ImageTower
        ] = {}  # by objective: towers that follow this one while it is trained, for evaluation; not saved
        self.image = build_image(part.image, image_size)
        self.text = build_text(part.text)
        self.pooler = self._pooler(part.pooler) if part.pooler else None
        self.image_projection = self._projection("image", self.pooler.width if self.pooler else self.image.width)
        self.text_projection = self._projection("text", self.text.width)
        self.decoder: Decoder | None = None
        if part.decoder:
            self.speak(part.decoder)
        scalars = {**self.text.scalars, **self.image.scalars}
        scale = part.init_logit_scale or scalars.get("logit_scale", init_logit_scale)
        # Shape [1], not []: FSDP2 refuses 0-d parameters. The scale is stored as its log (CLIP, section 2.5).
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(scale)))
        self.logit_bias = nn.Parameter(torch.full((1,), scalars.get("logit_bias", init_logit_bias)))

    def _projection(self, half: str, width: int) -> nn.Module:
        if getattr(self.part, half).projection == "linear":
            linear = nn.Linear(width, self.part.embed_dim, bias=False)
            nn.init.normal_(linear.weight, std=width**-0.5)  # CLIP's initialisation
            return linear
        if width != self.part.embed_dim:
            raise UserError(
                f"model.{half}.projection is none, so model.embed_dim must be the tower's width, {width}, not {self.part.embed_dim}."
            )
        return nn.Identity()

    def _pooler(self, part: PoolerPart) -> Pooler:
        self._has_tokens("model.pooler")
        return Pooler(part, self.image.token_width, part.width or self.text.token_width)

    def _has_tokens(self, who: str) -> None:
        if "tokens" not in self.image.fields:
            raise UserError(f"{who} reads an image tower's patches or feature map, and this one gives none; take a ViT or one of timm.")

    def speak(self, part: DecoderPart) -> None:
        """Give the model a decoder. Errors: ``UserError`` for towers that cannot have one."""
        self._has_tokens("model.decoder")
        self.part.decoder = part
        self.decoder = Decoder(part, self.text, self.pooler.width if self.pooler else self.image.token_width)
        if part.pretrained:
            self.decoder.load(decoder_weights(part.pretrained), part.pretrained)

    @property
    def image_size(self) -> int:
        """Side of the pictures the image tower takes, in pixels."""
        return self.image.image_size

    def require(self, needs: Iterable[str], kinds: dict[str, str]) -> None:
        """Train only what ``needs`` name ("view:field", "logit_scale", "logit_bias", "decoder"); ``kinds`` maps views to "image" or "text".

        Whatever no objective reads takes no gradient, so that DDP does not wait for one.
        Errors: ``UserError`` for a field that a tower cannot give.
        """
        needs = set(needs)
        fields: dict[str, set[str]] = {"image": set(), "text": set()}
        for view, colon, field in (n.partition(":") for n in needs):
            if colon:
                fields[kinds[view]].add(field)
        for half in fields:
            tower = getattr(self, half)
            known = {"id", "embed", *tower.fields, *(["pixels"] if half == "image" else [])}
            known |= {"context"} if half == "image" and "tokens" in known else set()
            for name in fields[half] - known:
                raise UserError(f"model.{half}: the tower cannot give {name!r}; {nearest(name, known)}")
            if not fields[half] - {"id"}:
                tower.requires_grad_(False)
            tower.require(fields[half])
            if "embed" not in fields[half]:
                getattr(self, f"{half}_projection").requires_grad_(False)
        if "decoder" in needs and self.decoder is None:
            self.speak(DecoderPart())
        if self.decoder:
            self.decoder.requires_grad_("decoder" in needs)
        if self.pooler:
            self.pooler.require("embed" in fields["image"], "context" in fields["image"])
        self.logit_scale.requires_grad_("logit_scale" in needs)
        self.logit_bias.requires_grad_("logit_bias" in needs)

    def tower_fields(self, half: str, wanted: Iterable[str]) -> set[str]:
        """The fields of a tower that those of ``wanted`` are made from."""
        embed = "tokens" if half == "image" and self.pooler else "pooled"
        return {{"embed": embed, "context": "tokens"}.get(field, field) for field in wanted}

    def encode(self, batch: Batch, needs: Iterable[str]) -> Encoded:
        """{"view:field": tensor} for every one asked, each view through its tower once.

        Views of pictures are those in ``batch.images``, texts those in ``batch.texts``; a view's
        half is the one whose mapping holds it. The field "id" [B] is equal for equal pictures or captions; "pixels" are a
        view's pictures as they are, for objectives that encode for themselves.
        """
        encoded: Encoded = {}
        by_view: dict[str, set[str]] = {}
        for need in needs:
            view, colon, field = need.partition(":")
            if colon:
                by_view.setdefault(view, set()).add(field)
        for view, wanted in by_view.items():
            half = "text" if view in batch.texts else "image"
            with chance.rows(batch.seeds, view):
                out = self._tower(half, view, batch, wanted) if wanted - {"id", "pixels"} else {}
            out |= {"id": batch.ids.get(view, batch.index), "pixels": batch.images.get(view)}
            if wanted & {"embed", "context"}:
                pooled, out["context"] = self._read(half, out)
            if "embed" in wanted:
                out["embed"] = self._embed(half, pooled)
            encoded.update({f"{view}:{field}": out[field] for field in wanted})
        return encoded

    def _tower(self, half: str, view: str, batch: Batch, wanted: set[str]) -> dict[str, Tensor]:
        if frozen := {name.partition(":")[2]: x for name, x in batch.frozen.items() if name.partition(":")[0] == view}:
            return frozen
        if half == "image":
            return self.image(batch.images[view])
        ids = batch.texts[view]
        return self.text.encode(ids, "tokens" in wanted)

    def _read(self, half: str, out: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(what the embedding is made from [B, W], what a decoder reads [B, T, W]): the pooler's word, or the tower's own."""
        return self.pooler(out["tokens"]) if half == "image" and self.pooler else (out.get("pooled"), out.get("tokens"))

    def _embed(self, half: str, pooled: Tensor) -> Tensor:
        projected = getattr(self, f"{half}_projection")(pooled)  # [B, W] → [B, D]
        wide = torch.promote_types(projected.dtype, torch.float32)  # the loss at scale 100 wants all digits
        return F.normalize(projected.to(wide), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], already at ``image_size`` → unit-length [B, D] on the model's device."""
        return self._embed("image", self._read("image", self.image(images.to(self.logit_scale.device)))[0])

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | str | Path | bytes] | Tensor, batch_size: int = 64) -> Tensor:
        """Pictures (PIL, paths, encoded bytes, or a uint8 tensor [N, 3, H, W]) → unit-length [N, D], fp32, on the CPU."""
        self.eval()
        out = [self.embed_images(stack).cpu() for stack in self._stacks(images, batch_size)]
        return torch.cat(out) if out else torch.empty(0, self.part.embed_dim)

    def _stacks(self, images: Sequence[Image.Image | str | Path | bytes] | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Pictures of any kind, preprocessed, uint8 [B, 3, H, W] at a time."""
        if isinstance(images, (str, Path, bytes, Image.Image)):
            images = [images]
        view = self.eval_view()
        for start in range(0, len(images), batch_size):
            yield torch.stack([view(x if isinstance(x, Tensor) else _picture(x)) for x in images[start : start + batch_size]])

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str] | str, batch_size: int = 256) -> Tensor:
        """N texts → unit-length [N, D], fp32, on the CPU. Equal texts are encoded once, like lengths together."""
        self.eval()
        texts = [texts] if isinstance(texts, str) else list(texts)
        unique = sorted(set(texts), key=lambda t: (len(t), t))
        out = torch.empty(len(unique), self.part.embed_dim)
        for start in range(0, len(unique), batch_size):
            ids = self.text.tokenize(unique[start : start + batch_size]).to(self.logit_scale.device)
            out[start : start + len(ids)] = self._embed("text", self.text(ids)["pooled"]).cpu()
        place = {text: i for i, text in enumerate(unique)}
        return out[[place[t] for t in texts]]

    @torch.inference_mode()
    def caption(
        self,
        images: Sequence[Image.Image | str | Path | bytes] | Tensor,
        method: Literal["greedy", "beam", "nucleus"] = "beam",
        *,
        max_length: int = 40,
        beams: int = 5,
        top_p: float = 0.9,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """A caption for each of N pictures (as ``encode_image`` takes them), by the search of ``generate`` that ``method`` names.

        ``max_length`` is in tokens, start and end included. Errors: ``UserError`` for a model without a decoder.
        """
        self.eval()
        if self.decoder is None:
            raise UserError("this model has no decoder, so it cannot caption; train one that has (recipes list shows which).")
        text, device = self.text, self.logit_scale.device
        options: dict = {"greedy": {}, "beam": {"beams": beams}, "nucleus": {"top_p": top_p, "temperature": temperature}}[method]
        if method == "nucleus":
            options["generator"] = torch.Generator().manual_seed(seed)
        search = getattr(generate, method)
        out = []
        for stack in self._stacks(images, batch_size):
            context = self._read("image", self.image(stack.to(device)))[1]
            step = lambda ids, rows, context=context: next_words(self.decoder, text, context[rows.to(device)], ids.to(device)).cpu()
            length = min(max_length, text.context_length)
            ids = search(step, len(stack), text.start_id, {text.end_id, text.pad_id}, length, **options)
            out += [text.words(each) for each in ids]
        return out

    def eval_view(self) -> views.EvalView:
        """The preprocessing of pictures outside training."""
        return views.EvalView(self.image_size, self.image.resize)

    def compile_blocks(self) -> None:
        """Compile the repeated layers with torch.compile, in place: one compilation serves all of a kind."""
        for block in self.blocks():
            block.compile()

    def blocks(self) -> list[nn.Module]:
        """The repeated layers of towers and decoder."""
        return [block for part in (self.image, self.text, self.decoder) if part for block in blocks(part)]

    def clamp(self) -> None:
        """Keep the logit scale at most ``max_logit_scale`` (CLIP: 100)."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.part.max_logit_scale))

    def save(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write ``model.json``, ``model.safetensors`` and the towers' files into ``folder`` (not atomic by itself).

        ``state`` stands in for ``state_dict()`` where this process does not hold the parameters whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for half in ("image", "text"):
            (folder / half).mkdir(exist_ok=True)
            getattr(self, half).save_assets(folder / half)
            if not any((folder / half).iterdir()):
                (folder / half).rmdir()
        about = {
            "format": FORMAT,
            "model": self.part.model_dump(mode="json"),
            "image_size": self.image_size,
            "templates": list(self.templates),
            "training": self.training_record,
            "preprocessing": {"resize": self.image.resize, "mean": self.image.mean, "std": self.image.std},
        }
        (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        state = {k: v.detach().cpu().contiguous() for k, v in (state or self.state_dict()).items()}
        save_file(_unshared(state), folder / "model.safetensors")


def _picture(picture: Image.Image | str | Path | bytes) -> Tensor:
    try:
        return views.load_picture(picture)
    except views.BrokenPicture as error:
        named = f"{picture}: " if isinstance(picture, (str, Path)) else ""
        raise UserError(f"{named}not a picture that can be used: {error}.") from error


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one memory (tied weights): the second name gets a copy."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        out[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return out
