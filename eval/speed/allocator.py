"""What keeping freed memory brings: pictures a second with it over without, in processes of their own.

    python eval/speed/allocator.py [ROUNDS]

The tower is a randomly initialised EfficientNet-Lite0 at 128 pixels, batches of 64, in inference mode. The last
line is the ratio's median over the rounds, with the least and the greatest; more is better.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rounds import compare


def measure() -> float:
    import torch

    from crossmodal.recipe import ImagePart
    from crossmodal.towers import build_image

    tower = build_image(ImagePart(tower="timm:tf_efficientnet_lite0"), 128).eval()
    pictures = torch.randint(0, 255, (64, 3, 128, 128), dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(2):
            tower(pictures)
        begun = time.perf_counter()
        for _ in range(8):
            tower(pictures)
    return 8 * len(pictures) / (time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1:] in (["with"], ["without"]):
        from crossmodal.allocator import keep_freed_memory

        assert sys.argv[1] == "without" or keep_freed_memory(), "this system has no glibc to tell"
        print(json.dumps({"pictures_per_second": measure()}))
    else:
        rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
        compare(__file__, [], rounds, "pictures_per_second", "pictures a second", sides=("with", "without"))
