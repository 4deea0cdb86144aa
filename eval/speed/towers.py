"""What LaViT and big.LITTLE ViT cost beside plain towers of the same width, on the same pictures, in one run.

    python eval/speed/towers.py [--pictures 16] [--size 224] [--rounds 3] [--backward]

LaViT's width is that of its last stage; beside it stand the same pyramid with attention computed in every layer, and timm's ViT of that
width with 12 blocks. Beside big.LITTLE ViT stands timm's ViT-Ti, of the same width and depth. The towers take turns; each line says
pictures a second (the median over rounds) and the ratio to the plain ViT's of the same round. ``--backward``: forward and backward pass.
"""

import argparse
import statistics
import time

import torch

TOWERS = {
    "lavit:tiny": ("lavit:tiny", {}),
    "  the same, attention computed everywhere": ("lavit:tiny", {"computed": [2, 2, 4, 4]}),
    "  plain ViT, width 256, 12 blocks": ("timm:vit_tiny_patch16_224", {"embed_dim": 256, "depth": 12, "num_heads": 8}),
    "big_little:tiny, half of the tokens": ("big_little:tiny", {}),
    "  a quarter of the tokens": ("big_little:tiny", {"share": 0.25}),
    "  plain ViT, width 192, 12 blocks": ("timm:vit_tiny_patch16_224", {}),
    "  the same, in training half of the patches left out": ("timm:vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
}
AGAINST = {
    "lavit:tiny": "  plain ViT, width 256, 12 blocks",
    "  the same, attention computed everywhere": "  plain ViT, width 256, 12 blocks",
    "big_little:tiny, half of the tokens": "  plain ViT, width 192, 12 blocks",
    "  a quarter of the tokens": "  plain ViT, width 192, 12 blocks",
    "  the same, in training half of the patches left out": "  plain ViT, width 192, 12 blocks",
}

if __name__ == "__main__":
    from crossmodal import chance
    from crossmodal.recipe import ImagePart
    from crossmodal.towers import build_image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args()
    built = {name: build_image(ImagePart(tower=tower, kwargs=kwargs), options.size) for name, (tower, kwargs) in TOWERS.items()}
    pictures = torch.randint(0, 256, (options.pictures, 3, options.size, options.size), dtype=torch.uint8)
    speeds: dict[str, list[float]] = {name: [] for name in built}
    for number in range(options.rounds + 1):  # the first one warms up
        for name, tower in built.items():
            tower.train(options.backward)
            with torch.set_grad_enabled(options.backward), chance.rows(torch.arange(options.pictures), "image"):
                begun = time.perf_counter()
                pooled = tower(pictures)["pooled"]
                if options.backward:
                    pooled.square().mean().backward()
                if number:
                    speeds[name].append(options.pictures / (time.perf_counter() - begun))
    for name, tower in built.items():
        size = sum(p.numel() for p in tower.parameters()) / 1e6
        line = f"{name}: {size:.1f} M parameters, {statistics.median(speeds[name]):.0f} pictures a second"
        if name in AGAINST:
            ratios = [a / b for a, b in zip(speeds[name], speeds[AGAINST[name]], strict=True)]
            line += f", {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of the plain ViT's"
        print(line)
