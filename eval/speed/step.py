"""The training step of ViT-B/32 on real captions against open_clip's own ``train_one_epoch``.

    python eval/speed/step.py [--data SOURCE] [--batch 256] [--micro 256] [--precision bf16|fp32] [--steps 2] [--rounds 3]

Both sides start from the same weights and take the same batches; data loading is not counted. open_clip pads captions to
77 tokens, adds micro-batches up by its ``accum_freq``, and runs AdamW as it builds it; both clip nothing. ``--losses``
prints both trajectories instead, and the largest difference. The last line is pairs a second, ours over theirs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rounds import compare, run

NAME = "ViT-B-32"
LR, WARMUP, BETAS, EPS, DECAY = 5e-4, 2000, (0.9, 0.98), 1e-6, 0.2  # CLIP's own


def set_rate(optimizer, step: int) -> None:
    """The learning rate of step ``step`` (from 0), in CLIP's warm-up: at full rate from the start both sides diverge."""
    for group in optimizer.param_groups:
        group["lr"] = LR * (step + 1) / WARMUP


def batches(options) -> list[tuple[torch.Tensor, list[str]]]:
    """uint8 pictures [B, 3, 224, 224] and their captions: a micro-batch to warm up, then as many batches as there are steps."""
    from crossmodal.data.sources import open_source
    from crossmodal.data.views import EvalView, load_picture

    source, view = open_source(options.data), EvalView(224)
    at = lambda n: source[n % len(source)]
    found = []
    for step in range(options.steps + 1):
        samples = [at(step * options.batch + n) for n in range(options.batch if step else options.micro)]
        found.append((torch.stack([view(load_picture(s.image)) for s in samples]), [s.captions[step % len(s.captions)] for s in samples]))
    return found


def theirs(options, weights: str) -> dict:
    import open_clip
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    model = open_clip.create_model(NAME, output_dict=True)
    model.load_state_dict(torch.load(weights, weights_only=True))
    tokenizer = open_clip.get_tokenizer(NAME)
    decayed = lambda n, p: p.ndim >= 2 and not any(w in n for w in ("bn", "ln", "bias", "logit_scale"))
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if decayed(n, p)], "weight_decay": DECAY},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    args = SimpleNamespace(
        device="cpu",
        precision={"bf16": "amp_bf16", "fp32": "fp32"}[options.precision],
        distill=False,
        skip_scheduler=False,
        accum_freq=1,
        grad_clip_norm=None,
        horovod=False,
        rank=0,
        local_rank=0,
        world_size=1,
        log_local=False,
        log_every_n_steps=1,
        batch_size=options.micro,
        wandb=False,
        distributed=False,
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    losses, times = [], []
    record = SimpleNamespace(add_scalar=lambda name, value, step: losses.append(value) if name == "train/loss" else None)
    for number, (pictures, captions) in enumerate(batches(options)):
        images, texts = (pictures - mean) / std, tokenizer(captions)
        parts = list(zip(images.split(options.micro), texts.split(options.micro), strict=True))
        loader = type("Loader", (list,), {"num_batches": len(parts), "num_samples": options.batch})(parts)
        args.accum_freq = len(parts)
        data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
        begun = time.perf_counter()
        train_one_epoch(model, data, ClipLoss(), number, optimizer, None, lambda step: set_rate(optimizer, step), None, args, record)
        times.append(time.perf_counter() - begun)
    return {"losses": losses, "pairs_per_second": options.batch * options.steps / sum(times[1:])}


def ours(options, weights: str) -> dict:
    from accelerate import Accelerator

    from crossmodal import recipe
    from crossmodal.allocator import keep_freed_memory
    from crossmodal.batch import Batch
    from crossmodal.training import gradcache, optim, task

    keep_freed_memory()
    tower = {"tower": f"open_clip:{NAME}", "pretrained": weights, "projection": "none"}
    said = recipe.check(
        {
            "out": "unused",
            "model": {"embed_dim": 512, "image": tower, "text": tower},
            "objectives": {"contrastive": {"duplicates": "negative"}},
            "optim": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "clip": None},
        }
    )
    accelerator = Accelerator(cpu=True, mixed_precision={"bf16": "bf16", "fp32": "no"}[options.precision])
    plain = task.build(said)
    wrapped = accelerator.prepare(plain)
    optimizer = accelerator.prepare(optim.build(plain, said.optim))
    plain.train()
    losses, times = [], []
    for number, (pictures, captions) in enumerate(batches(options)):
        set_rate(optimizer, number)
        rows = torch.arange(len(captions))
        batch = Batch({"image": pictures}, {"text": plain.model.text.tokenize(captions)}, rows, rows, seeds=rows)
        begun = time.perf_counter()
        loss, _ = gradcache.backward(plain, wrapped, batch.split(options.micro), accelerator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        plain.after_step(0)
        losses.append(loss.item())
        times.append(time.perf_counter() - begun)
    return {"losses": losses, "pairs_per_second": options.batch * options.steps / sum(times[1:])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="*", help=argparse.SUPPRESS)  # a side and a weights file: one process of the comparison
    parser.add_argument("--data", default="emoji:twemoji")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro", type=int, default=None)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", action="store_true")
    options = parser.parse_args()
    options.micro = options.micro or options.batch
    if options.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[options.side[0]](options, options.side[1])))
    else:
        import open_clip

        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder) / "weights.pt")
            torch.manual_seed(0)
            torch.save(open_clip.create_model(NAME).state_dict(), weights)
            passed = [weights, *(f"--{k}={getattr(options, k)}" for k in ("data", "batch", "micro", "precision", "steps"))]
            if options.losses:
                both = [run(__file__, side, *passed)["losses"] for side in ("ours", "theirs")]
                for step, (a, b) in enumerate(zip(*both, strict=True)):
                    print(f"step {step + 1}: {a:.6f} against {b:.6f}")
                print(f"largest difference {max(abs(a - b) for a, b in zip(*both, strict=True)):.1e}")
            else:
                compare(__file__, passed, options.rounds, "pairs_per_second", "pairs a second")
