"""A zero-shot classifier from class names and templates: ours against open_clip's ``build_zero_shot_classifier``.

    python eval/speed/classifier.py [--model ViT-B-32] [--classes 20] [--templates open_clip:openai] [--rounds 3]

The text tower of an open_clip model with random weights, fp32, the same on both sides; every n-th of ImageNet's 1,000 classes × OpenAI's
80 templates (``--classes 1000`` builds the whole: half an hour a round on two cores for open_clip). Batches of 10 classes on their side,
as by default. The last line is classes a second, ours over theirs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from rounds import compare

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs="?", choices=("ours", "theirs"), help="run one side alone")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--templates", default="open_clip:openai")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", help="a file of the model's weights, for both sides alike")
    options = parser.parse_args()
    import open_clip

    if not options.side:
        row = lambda side: torch.tensor(side["row"])
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.pt"
            torch.save(open_clip.create_model(options.model).state_dict(), weights)
            passed = [f"--{k}={getattr(options, k)}" for k in ("model", "classes", "templates")]
            same = lambda both: f"largest difference of a weight: {(row(both['ours']) - row(both['theirs'])).abs().max():.1e}"
            compare(__file__, [*passed, f"--weights={weights}"], options.rounds, "rate", "classes a second", check=same)
        sys.exit()
    from crossmodal import ZeroShotClassifier, load
    from crossmodal.zeroshot.prompts import read_templates

    names = open_clip.IMAGENET_CLASSNAMES[:: len(open_clip.IMAGENET_CLASSNAMES) // options.classes][: options.classes]
    templates = read_templates([options.templates])
    if options.side == "ours":
        model = load(f"open_clip:{options.model}/{options.weights}")
        begun = time.perf_counter()
        weights = ZeroShotClassifier(model, names, templates).weights
    else:
        model = open_clip.create_model(options.model, pretrained=options.weights).eval()
        tokenizer = open_clip.get_tokenizer(options.model)
        begun = time.perf_counter()
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates).T
    print(json.dumps({"rate": len(names) / (time.perf_counter() - begun), "row": weights[0].tolist()}))
