"""What a tower is: a pretrained or random encoder of one library that answers for itself.

Whoever holds a tower asks it (``width``, ``fields``, ``causal``, ``trim_exact`` …) and never looks at its name.
Adding a library is one file in this folder with an ``ImageTower`` and a ``TextTower`` subclass.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from crossmodal import attention, chance, resources, synced_norm
from crossmodal.errors import UserError, nearest
from crossmodal.recipe import DecoderPart, ImagePart, TextPart


class Tower(nn.Module):
    """Half a model. Subclasses set these in their constructor."""

    width: int  # W, of "pooled"
    token_width: int  # W, of "tokens", where there are any
    fields: tuple[str, ...] = ("pooled",)  # what ``forward`` can give
    scalars: dict[str, float] = {}  # "logit_scale" (not its log), "logit_bias": what came with a pretrained pair
    pretrained: bool = False
    at_output: tuple[str, ...] = ()  # patterns of parameters at the output that its modules list before the blocks

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        with attention.fitting(x.device, self.sequence(x)):
            return super().__call__(x)

    def sequence(self, x: Tensor) -> int:
        """How many tokens its attention sees at an input; 0: not known, or none."""
        return 0

    def require(self, fields: set[str]) -> None:
        """Told, before training, which fields will be read of what it gives."""

    def save_assets(self, folder: Path) -> None:
        """Write what rebuilding this tower needs beside weights and recipe (configuration, tokenizer)."""

    def as_open_clip(self, head: Tensor | None, folder: Path) -> tuple[dict, dict[str, Tensor]] | None:
        """(its section of open_clip's configuration, its weights there), or None where open_clip builds no such tower.

        ``head`` [D, W] is the projection to add (None: the tower ends in its own). What the section refers to is written into
        ``folder``. The key "quick_gelu" of a section is the whole model's there.
        """
        return None

    def as_transformers(self) -> nn.Module | None:
        """A model of transformers whose ``pooler_output`` is "pooled", before ``head``; None where that library has none."""
        return None

    def head(self) -> Tensor | None:
        """Its own last projection [D, W], where "pooled" is what comes out of that."""
        return None

    def as_library(self) -> nn.Module:
        """The library's own module, which reads these weights under the library's own names."""
        return self

    def train(self, mode: bool = True) -> Tower:
        """As ``nn.Module.train``; a tower that is frozen whole stays in evaluation mode (no dropout, no drop path)."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def depths(self) -> dict[str, int]:
        """For each parameter how far from the input it stands: 0 before the first block, b in the b-th, one more than the last after it.

        What stands between blocks (a pyramid's downsampling) belongs to the block before.
        """
        number = {id(p): n for n, block in enumerate(blocks(self), 1) for p in block.parameters()}
        last, depth, found = max(number.values(), default=0), 0, {}
        for name, parameter in self.named_parameters():
            depth = max(depth, number.get(id(parameter), depth))
            after = id(parameter) not in number and depth == last
            ends = any(fnmatch.fnmatch(name, pattern) for pattern in self.at_output)
            found[name] = last + 1 if ends or (after and last) else number.get(id(parameter), depth)
        return found

    def checkpoint_blocks(self) -> None:
        """Gradient checkpointing (Chen et al. 2016): in training, each block's inside is computed again in the backward pass."""
        for block in blocks(self):
            block.forward = _again(block, block.forward)

    def freeze(self, what: bool | list[str]) -> None:
        """No gradient for the whole tower (true) or for parameters whose names match a pattern.

        Errors: ``UserError`` for a pattern that matches nothing.
        """
        for pattern in ["*"] if what is True else what or []:
            hit = [p for n, p in self.named_parameters() if fnmatch.fnmatch(n, pattern)]
            if not hit:
                some = ", ".join(n for n, _ in list(self.named_parameters())[:3])
                raise UserError(f"freeze pattern {pattern!r} matches no parameter of the tower; its names are like {some}.")
            for parameter in hit:
                parameter.requires_grad_(False)


def blocks(net: nn.Module) -> list[nn.Module]:
    """The repeated layers, in order: what gradient checkpointing, sharding and compilation take one by one.

    Those are the children of the outermost lists of modules of one kind, each with several parts that have parameters; where a list of
    blocks is nearly all of such a child (a pyramid's stage), the blocks.
    """
    found: list[nn.Module] = []
    seen: set[nn.Module] = set()
    for module in net.modules():
        if module not in seen and _is_list(module):
            found += [block for child in module.children() for block in _blocks_of_stage(child)]
            seen |= set(module.modules())
    return found


def _is_list(module: nn.Module) -> bool:
    children = list(module.children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
    layered = all(sum(1 for m in c.modules() if any(True for _ in m.parameters(False))) > 1 for c in children)
    return len({type(c) for c in children}) == 1 and layered


def _blocks_of_stage(stage: nn.Module) -> list[nn.Module]:
    most = 0.8 * _size(stage)
    inner = next((m for m in stage.modules() if _is_list(m) and _size(m) > most), None)
    return [stage] if inner is None else [block for child in inner.children() for block in _blocks_of_stage(child)]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _again(block: nn.Module, forward: Callable) -> Callable:
    def checkpointed(*arguments, **options):
        if not (block.training and torch.is_grad_enabled()):
            return forward(*arguments, **options)
        plain = attention.is_plain()

        def again(*arguments, **options):
            with attention.plainly(plain):
                return forward(*arguments, **options)

        return checkpoint(again, *arguments, use_reentrant=False, context_fn=chance.again, **options)

    return checkpointed


class ImageTower(Tower):
    """Pictures [B, 3, H, W] (uint8, RGB) → {"pooled": [B, W], "tokens": [B, T, W]}."""

    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "shortest"
    memory_format = torch.contiguous_format
    norm_stats: str = "live"
    patches: chance.PatchDropout | None  # where a ViT can be given some of its patches only
    patch_size: int = 0  # pixels a side, where ``patches`` is set

    def __init__(self, part: ImagePart, image_size: int | None):
        super().__init__()
        self.patches = None

    def settle(self, part: ImagePart) -> None:
        """Last line of a subclass's constructor: the recipe's word over the library's."""
        self.mean, self.std = part.mean or self.mean, part.std or self.std
        self.resize = part.resize or self.resize
        self.norm_stats = part.norm_stats or ("frozen" if self.pretrained else "live")
        if part.patch_dropout:
            if self.patches is None:
                raise UserError(
                    f"{part.tower}: its patches cannot be left out (patch_dropout); those of plain ViTs of timm and open_clip can."
                )
            self.patches.p = part.patch_dropout
        if self.norm_stats == "synced":
            synced_norm.convert(self)
        shape = (1, 3, 1, 1)
        self.register_buffer("_mean", torch.tensor(self.mean).view(shape) * 255, persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(shape) * 255, persistent=False)
        self.to(memory_format=self.memory_format)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageTower:
        """As ``nn.Module.train``; batch-norm keeps its statistics where they are frozen."""
        super().train(mode)
        if self.training and self.norm_stats == "frozen":
            for module in self.modules():
                if isinstance(module, _NormBase) and module.track_running_stats:
                    module.eval()
        return self

    def sequence(self, x: Tensor) -> int:
        """Patches and, at most, a few tokens more."""
        return (x.shape[-2] // self.patch_size) * (x.shape[-1] // self.patch_size) if self.patch_size else 0

    def tokens_of(self, images: Tensor, kept: Tensor) -> Tensor:
        """Pictures and the patches to keep [B, K] → those patches' tokens [B, K, W], no others computed."""
        self.patches.keep = kept
        try:
            return self(images)["tokens"]
        finally:
            self.patches.keep = None

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float, by the tower's mean and std."""
        x = images.to(self._mean.dtype).sub_(self._mean).div_(self._std)
        return x.contiguous(memory_format=self.memory_format)

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Pictures as a model of transformers takes them."""
        return {"pixel_values": self.normalise(images)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class TextTower(Tower):
    """Token ids [B, T] (int64) → {"pooled": [B, W], "tokens": [B, T, W]}.

    ``trim_exact`` says whether cutting common padding off leaves the result as it is: true under a
    causal or a padding mask, false for SigLIP's text tower.
    """

    causal: bool
    pad_id: int
    start_id: int | None = None  # what every text begins with,
    end_id: int | None = None  # and ends with, where the tokenizer says so
    context_length: int
    trim_exact: bool

    def __init__(self, part: TextPart):
        super().__init__()

    @staticmethod
    def dual(rest: str) -> tuple[str, str | None, DecoderPart | None]:
        """What follows ``LIBRARY:`` in a reference to a whole dual encoder → (the halves' name, their weights' tag, a decoder)."""
        return rest, None, None

    def save_tokenizer(self, folder: Path) -> None:
        """Write a tokenizer that transformers reads, where there is one."""

    def tokenize(self, texts: list[str], trimmed: bool | None = None) -> Tensor:
        """B texts → ids [B, T] by the library's own tokenizer, cut at ``context_length``.

        T is the longest text where trimming is exact (or ``trimmed`` says so), else ``context_length``.
        """
        raise NotImplementedError

    def sequence(self, x: Tensor) -> int:
        """As many as there are columns."""
        return x.shape[1]

    @property
    def embedding(self) -> Tensor:
        """The word embedding's weight [V, W]."""
        raise NotImplementedError

    def words(self, ids: list[int]) -> str:
        """Token ids without start, end and padding → the text they stand for."""
        raise NotImplementedError

    def lengths(self, ids: Tensor) -> Tensor:
        """[B, T] → [B]: how many columns each text needs."""
        used = (ids != self.pad_id).long()
        return ids.shape[1] - used.flip(1).argmax(1) * used.any(1)

    def parts(self, ids: Tensor, count: int = 4) -> list[tuple[Tensor, int]]:
        """Ids [B, T] → [(rows, how many columns they need)]: texts of like length together where trimming is exact.

        Captions are short but for a few: padded to the longest of their batch, most of the work is
        padding. Sorted and cut into ``count``, each is padded to its own longest. Done where that saves
        a quarter of the work; else all rows are one part.
        """
        whole = [(torch.arange(len(ids), device=ids.device), ids.shape[1])]
        if not self.trim_exact or len(ids) < 2 * count:
            return whole
        lengths = self.lengths(ids)
        rows = lengths.argsort(stable=True).chunk(count)
        longest = [int(lengths[each[-1]]) for each in rows]
        return whole if sum(longest) > 0.75 * count * ids.shape[1] else list(zip(rows, longest, strict=True))

    def encode(self, ids: Tensor, tokens: bool = True) -> dict[str, Tensor]:
        """As ``forward``, by ``parts``: "pooled" [B, W] and, if ``tokens``, "tokens" [B, T, W], zero where a part has no column."""
        parts = self.parts(ids)
        if len(parts) == 1:
            return self(ids)
        outs = [self(ids[rows, :length]) for rows, length in parts]
        back = torch.cat([rows for rows, _ in parts]).argsort()
        out = {"pooled": torch.cat([o["pooled"] for o in outs])[back]}
        if tokens:
            widened = [F.pad(o["tokens"], (0, 0, 0, ids.shape[1] - o["tokens"].shape[1])) for o in outs]
            out["tokens"] = torch.cat(widened)[back]
        return out

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


def options_for(part: ImagePart | TextPart, sizes: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a tower of our own is built with: the named one of ``sizes`` and ``more``, and ``kwargs`` over them.

    Errors: ``UserError`` for a name or key that there is not, and for pretrained weights, of which there are none.
    """
    name = part.tower.partition(":")[2]
    if name not in sizes:
        raise UserError(f"{part.tower}: there is no such size; {nearest(name, sizes)}")
    if part.pretrained:
        raise UserError(f"{part.tower}: there are no pretrained weights of it.")
    known = sizes[name] | more
    for key in part.kwargs:
        if key not in known:
            raise UserError(f"{part.tower}: does not take {key!r} in kwargs; {nearest(key, known)}")
    return {key: tuple(value) if isinstance(value := part.kwargs.get(key, usual), list) else value for key, usual in known.items()}


def begin(module: nn.Module) -> None:
    """A linear layer as ViTs begin theirs; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def widened(x: Tensor) -> Tensor:
    """In fp32 at least, as losses want it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def trim(ids: Tensor, pad_id: int) -> Tensor:
    """[B, T] → [B, longest]: columns after the last one that holds anything but padding are cut."""
    used = (ids != pad_id).any(0).nonzero()
    return ids[:, : int(used.max()) + 1] if len(used) else ids[:, :1]


def flatten_tokens(x: Tensor, prefix: int = 0, channels_last: bool = False) -> Tensor:
    """A feature map [B, C, H, W] (or [B, H, W, C]) or a sequence [B, prefix + T, W] → patches [B, T, W]."""
    if x.ndim == 4:
        return x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)
    return x[:, prefix:]


def read_weights(spec: str) -> dict[str, Tensor]:
    """A weights file (.safetensors, or a PyTorch file read with ``weights_only``) → {name: tensor}.

    Errors: ``UserError`` when there is no such file or it holds more than tensors.
    """
    path = resources.local_path(spec)
    if not path.is_file():
        raise UserError(f"{spec}: no such weights file.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        raise UserError(f"{spec}: not a readable weights file ({type(error).__name__}); use safetensors or plain tensors.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def load_weights(module: nn.Module, spec: str, order: dict[str, torch.Size]) -> None:
    """Load a weights file into ``module`` by name or, where no name fits, by order.

    ``order`` maps every name of the library's full model (classifier included) to its shape: a file
    that has other names for the same shapes in the same order fits too.
    Errors: ``UserError`` naming the first tensor that does not fit.
    """
    state = read_weights(spec)
    wanted = module.state_dict()
    if not wanted.keys() & state.keys() and [v.shape for v in state.values()] == list(order.values()):
        state = dict(zip(order, state.values(), strict=True))
    for name, tensor in wanted.items():
        if name not in state:
            raise UserError(f"{spec}: has no tensor {name!r}, which the tower needs; are these weights of another architecture?")
        if state[name].shape != tensor.shape:
            raise UserError(f"{spec}: {name!r} has shape {list(state[name].shape)}, but the tower's is {list(tensor.shape)}.")
    module.load_state_dict({name: state[name] for name in wanted})
