"""open_clip's transformers in the layout of transformers' CLIP: the same numbers under other names."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def vision(visual: nn.Module) -> transformers.CLIPVisionModel | None:
    """An open_clip ``VisionTransformer`` without its projection, or None for one that CLIP's layout has no place for."""
    state, width = visual.state_dict(), visual.conv1.out_channels
    state.pop("proj", None)
    renamed = {
        "embeddings.class_embedding": state.pop("class_embedding"),
        "embeddings.position_embedding.weight": state.pop("positional_embedding"),
        "embeddings.patch_embedding.weight": state.pop("conv1.weight"),
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        renamed |= {f"{theirs}.{kind}": state.pop(f"{ours}.{kind}", None) for kind in ("weight", "bias")}
    shape = {"image_size": visual.image_size[0], "patch_size": visual.patch_size[0]}
    return _filled(transformers.CLIPVisionModel, transformers.CLIPVisionConfig, visual.transformer, width, shape, renamed, state)


def text(tower: nn.Module) -> transformers.CLIPTextModel | None:
    """An open_clip ``TextTransformer`` without its projection, or None for one that CLIP's layout has no place for."""
    state = tower.state_dict()
    state = {name: x for name, x in state.items() if not name.startswith(("text_projection", "attn_mask"))}
    renamed = {
        "embeddings.token_embedding.weight": state.pop("token_embedding.weight"),
        "embeddings.position_embedding.weight": state.pop("positional_embedding"),
        "final_layer_norm.weight": state.pop("ln_final.weight"),
        "final_layer_norm.bias": state.pop("ln_final.bias"),
    }
    words, width = tower.token_embedding.weight.shape
    end = words - 1  # CLIP's tokenizer: the last word ends a text, the one before begins it
    shape = {
        "vocab_size": words,
        "max_position_embeddings": tower.context_length,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    return _filled(transformers.CLIPTextModel, transformers.CLIPTextConfig, tower.transformer, width, shape, renamed, state)


def _filled(model, config, blocks: nn.Module, width: int, shape: dict, renamed: dict, state: dict[str, Tensor]) -> nn.Module | None:
    """A model of transformers with the renamed weights and those of the blocks, where nothing lacks and nothing is left over."""
    for name in [n for n in state if n.startswith("transformer.resblocks.")]:
        number, _, inner = name.removeprefix("transformer.resblocks.").partition(".")
        tensor, layer = state.pop(name), f"encoder.layers.{number}"
        part, _, kind = inner.rpartition(".")
        if inner.startswith("attn.in_proj_"):
            for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{which}_proj.{inner.removeprefix('attn.in_proj_')}"] = piece
        else:
            renamed[f"{layer}.{NAMES.get(part, part)}.{kind}"] = tensor
    first = blocks.resblocks[0]
    made = model(
        config(
            hidden_size=width,
            intermediate_size=first.mlp.c_fc.out_features,
            num_hidden_layers=len(blocks.resblocks),
            num_attention_heads=first.attn.num_heads,
            hidden_act="gelu" if isinstance(first.mlp.gelu, nn.GELU) else "quick_gelu",
            **shape,
        )
    )
    wanted = {name: x.shape for name, x in made.state_dict().items()}
    if state or wanted != {name: getattr(x, "shape", None) for name, x in renamed.items()}:
        return None
    with torch.no_grad():
        made.load_state_dict({name: x.detach().clone() for name, x in renamed.items()})
    return made.eval()


def tokenizer(library) -> transformers.CLIPTokenizer:
    """open_clip's own byte-pair tokenizer as transformers'."""
    marks = {library.sot_token_id: "<|startoftext|>", library.eot_token_id: "<|endoftext|>"}  # as transformers calls them
    words = {marks.get(number, word): number for word, number in library.encoder.items()}
    return transformers.CLIPTokenizer(words, list(library.bpe_ranks), model_max_length=library.context_length)
