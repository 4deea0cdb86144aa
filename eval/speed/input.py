"""The input pipeline, in pictures a second and core, against open_clip's own training transform.

    python eval/speed/input.py [--data SHARDS.tar] [--side 480] [--pictures 1000] [--rounds 3]

All read the same JPEGs on one core and make augmented batches of 224 × 224: ours by the training loader, from a tar, from files that a
table lists, from parquet, and decoded once (``data.cache_pictures``; decoding is not in the figure); theirs by open_clip's
``image_transform`` on webdataset, on open_clip's CSV data set, and on a parquet data set of the datasets library. Pictures of the
source are first enlarged to ``--side`` pixels, a usual size of web pictures. The last line is pictures a second, the slowest of ours from
tar, files and parquet over the fastest of theirs.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rounds import run

CROP = (0.9, 1.0)  # open_clip's default
OURS = ("tar", "files", "parquet", "decoded")
THEIRS = ("webdataset", "csv", "datasets")


def write(folder: Path, data: str, pictures: int, side: int) -> None:
    """``pairs.tar``, the same pairs as files with ``pairs.csv``, and as ``pairs.parquet``."""
    from PIL import Image

    from crossmodal.data.convert import convert
    from crossmodal.data.sources import open_source

    source = open_source(data)
    lines = ["filepath,title"]
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for n in range(pictures):
            sample = source[n % len(source)]
            picture = Image.open(io.BytesIO(sample.image)).convert("RGB")
            encoded = io.BytesIO()
            picture.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
            caption = sample.captions[0].replace(",", " ").replace('"', "")
            (folder / f"{n:06d}.jpg").write_bytes(encoded.getvalue())
            lines.append(f"{folder}/{n:06d}.jpg,{caption}")
            for name, content in ((f"{n:06d}.jpg", encoded.getvalue()), (f"{n:06d}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    convert(open_source(str(folder / "pairs.tar")), folder / "pairs.parquet")


def ours(folder: Path, how: str, pictures: int) -> dict:
    import torch

    from crossmodal.batch import ViewSpec
    from crossmodal.data.loader import TrainingPairs, training_batches
    from crossmodal.data.sources import open_source
    from crossmodal.recipe import Augment, DataPart

    source = open_source(str(folder / {"files": "pairs.csv", "parquet": "pairs.parquet"}.get(how, "pairs.tar")))
    data = DataPart(batch_size=100, workers=0, augment=Augment(crop=CROP))
    pairs = TrainingPairs(source, {"image": ViewSpec("image"), "text": ViewSpec("text")}, data, "shortest", 0)
    if how == "decoded":
        pairs.decode_once(0)
    tokenize = lambda texts: torch.zeros(len(texts), 1)  # no text: pictures are what is compared
    return rate(iter(training_batches(pairs, source, data, tokenize, 0, 0, pictures // 100)), lambda batch: len(batch))


def theirs(folder: Path, how: str, pictures: int) -> dict:
    import open_clip
    import torch
    from open_clip_train.data import CsvDataset

    transform = open_clip.image_transform(224, is_train=True)
    if how == "datasets":
        from datasets import Dataset

        made = lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "text": rows["captions"]}
        data = Dataset.from_parquet(str(folder / "pairs.parquet"), cache_dir=str(folder)).with_transform(made)
        gather = lambda rows: (torch.stack([row["image"] for row in rows]), [row["text"] for row in rows])
        loader = torch.utils.data.DataLoader(data, batch_size=100, shuffle=True, num_workers=0, collate_fn=gather)
    elif how == "csv":
        data = CsvDataset(str(folder / "pairs.csv"), transform, "filepath", "title", sep=",", tokenizer=lambda texts: [texts])
        loader = torch.utils.data.DataLoader(data, batch_size=100, shuffle=True, num_workers=0)
    else:
        import webdataset as wds

        data = wds.WebDataset(str(folder / "pairs.tar"), shardshuffle=False).shuffle(1000, initial=100).decode("pilrgb")
        loader = data.rename(image="jpg;png", text="txt").map_dict(image=transform).to_tuple("image", "text").batched(100)
    return rate(iter(loader), lambda batch: len(batch[0]))


def rate(batches, size) -> dict:
    next(batches)  # files opened, buffers filled
    begun, seen = time.perf_counter(), 0
    for batch in batches:
        seen += size(batch)
    return {"pictures_per_second": seen / (time.perf_counter() - begun)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", nargs="?", choices=OURS + THEIRS, help="measure one alone, in FOLDER")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--data", default="emoji:twemoji")
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.how:
        os.environ["OMP_NUM_THREADS"] = "1"
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {0})  # one core for each
        import torch

        torch.set_num_threads(1)
        measure = ours if options.how in OURS else theirs
        print(json.dumps(measure(options.folder, options.how, options.pictures)))
        sys.exit()
    ratios: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.data, options.pictures, options.side)
        for number in range(options.rounds):
            told = {how: run(__file__, how, folder, f"--pictures={options.pictures}") for how in OURS + THEIRS}
            speed = {how: each["pictures_per_second"] for how, each in told.items()}
            print(f"round {number + 1}: " + ", ".join(f"{how} {x:.0f}" for how, x in speed.items()) + " pictures a second", flush=True)
            for pair in itertools.product(OURS, THEIRS):
                ratios.setdefault(pair, []).append(speed[pair[0]] / speed[pair[1]])
    said = {pair: f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for pair, each in ratios.items()}
    for mine, other in said:
        print(f"{mine} over {other}: {said[mine, other]}")
    least = min((pair for pair in said if pair[0] != "decoded"), key=lambda pair: statistics.median(ratios[pair]))
    print(f"ratio {said[least]}, {' over '.join(least)}")
