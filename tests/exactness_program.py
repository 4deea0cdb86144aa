"""Run by test_exactness under torchrun: the gradient of one global batch, by objective, micro-batches and tile, into a file."""

import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file

from crossmodal import distributed, pairwise, recipe
from crossmodal.batch import Batch
from crossmodal.chance import seed_of
from crossmodal.training import gradcache, task

recipe_file, out = sys.argv[1:3]
torch.set_num_threads(1)
accelerator = Accelerator(mixed_precision="no")
WORDS = ["a", "red", "circle", "beside", "two", "green", "squares", "and", "one", "long", "black", "cross", "under", "the", "moon"]

CASES = {
    "contrastive": {"contrastive": {}},
    "contrastive, no duplicates": {"contrastive": {"duplicates": "negative"}},
    "sigmoid": {"sigmoid": {}},
    "simclr": {"simclr": {"hidden": 24, "out": 16}},
    "mae": {"mae": {"width": 16, "depth": 1, "heads": 2, "mask": 0.5}},
    "dino": {"dino": {"local_crops": 1, "local_size": 64, "hidden": 16, "out": 24}},
    "contrastive + mae + dino": {
        "contrastive": {},
        "mae": {"width": 16, "depth": 1, "heads": 2, "mask": 0.5, "target": "features"},
        "dino": {"local_crops": 1, "local_size": 64, "hidden": 16, "out": 24},
    },
    "contrastive + simclr": {"contrastive": {}, "simclr": {"hidden": 24, "out": 16}},
    "contrastive + captioning": {"contrastive": {}, "captioning": {"weight": 2.0}},
    "contrastive + auxiliary": {"contrastive": {}, "auxiliary": {"weight": 3.0}},
    "triplet": {"tests.objectives.triplet": {}},
    "simclr, synced norm": {"simclr": {"hidden": 24, "out": 16, "norm": "synced", "temperature": 0.5}},
    "contrastive + triplet": {"contrastive": {"weight": 0.7}, "tests.objectives.triplet": {"weight": 1.3}},
}
LAVIT = "{tower: 'lavit:tiny', kwargs: {widths: [8, 16, 20, 32], heads: [1, 2, 2, 4], depths: [1, 1, 2, 2]}}"
MORE = {  # what a case needs of the model
    "captioning": ["model.pooler={queries: 3, heads: 2}", "model.decoder={layers: 1, heads: 2}"],
    "auxiliary": [f"model.image={LAVIT}"],
}
N = 16
CAPTIONS = [" ".join(WORDS[: 2 + (5 * n) % 13]) + f" {n}" for n in range(N)]
CAPTIONS[6] = CAPTIONS[14]  # the same caption twice


def whole_batch(built: task.Task) -> Batch:
    """Pictures and captions with repeats, cut to this process's share."""
    generator = torch.Generator().manual_seed(5)
    index = torch.arange(N)
    index[3], index[9] = 12, 1  # the same picture twice
    rows = slice(N * distributed.rank() // distributed.world_size(), N * (distributed.rank() + 1) // distributed.world_size())
    views = {n: v.kind for n, v in built.views.items()}

    def pictures(view: str) -> torch.Tensor:
        side = dict(built.views[view].options or ()).get("image_size", 64)
        colour = torch.randint(0, 200, (N, 3, 1, 1), generator=generator)  # pictures alike would make norms over the batch amplify noise
        return (colour + torch.randint(0, 55, (N, 3, side, side), generator=generator)).to(torch.uint8)

    return Batch(
        images={n: pictures(n)[rows] for n, k in views.items() if k == "image"},
        texts={n: built.model.text.tokenize(CAPTIONS[rows]) for n, k in views.items() if k == "text"},
        rows=torch.arange(N)[rows],
        index=index[rows],
        seeds=torch.tensor([seed_of(0, 7, row) for row in range(N)])[rows],
        ids={n: torch.tensor([seed_of(c) for c in CAPTIONS])[rows] for n, k in views.items() if k == "text"},
    )


gradients = {}
for name, objectives in CASES.items():
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        more = [each for objective in objectives for each in MORE.get(objective, [])]
        built = task.build(recipe.read(recipe_file, [f"objectives={objectives!r}".replace("'", '"'), *more])).to(dtype).train()
        wrapped = accelerator.prepare(built)
        share = whole_batch(built)
        for tile in ("dense", "tiled") if built.batch_scope else ("dense",):
            for micro in (1,) if "synced" in name else (1, 4):
                pairwise.TILE = 2**22 if tile == "dense" else 3 * N
                built.zero_grad(set_to_none=True)
                loss, terms = gradcache.backward(built, wrapped, share.split(max(1, len(share) // micro)), accelerator)
                case = f"{name}/{dtype}/{tile}/{micro}"
                gradients[f"{case}/loss"] = loss.double().view(1)
                for term, value in terms.items():
                    gradients[f"{case}/term {term}"] = value.double().view(1)
                for parameter, p in built.named_parameters():
                    if p.requires_grad:
                        # Of 49,408 words, those that occur: read, no other has a gradient; said, of the others every hundredth.
                        words = built.model.text.tokenize(CAPTIONS).unique()
                        kept = words if "token_embedding" in parameter else slice(None)
                        kept = torch.cat([words, torch.arange(0, 49408, 100)]) if "decoder.head" in parameter else kept
                        gradients[f"{case}/{parameter}"] = p.grad[kept].double()
                        assert "decoder.head" in parameter or p.grad.count_nonzero() == p.grad[kept].count_nonzero()
        accelerator.free_memory()
if distributed.is_main():
    save_file({k: v.contiguous() for k, v in gradients.items()}, out)
if dist.is_initialized():
    dist.destroy_process_group()
