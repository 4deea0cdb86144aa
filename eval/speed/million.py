"""A million rows: how long until the first batch, how much memory, and whether it grows over an epoch.

    python eval/speed/million.py [--rows 1000000] [--formats csv parquet tar] [--workers 2] [--epoch 0.02] [--keep DIR]

Makes small JPEGs with captions of their own in each format (a tar of a million takes 2.5 GB), then for each, in a process of its own,
opens the source and draws batches of 256 as training does. Memory is what the process and its workers hold for themselves and share, each
page counted once (PSS), less what the same process holds after importing. A line a format; the last line is the worst of all.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

POOL = 1000


def make(kind: str, rows: int, folder: Path) -> str:
    """Write ``rows`` pictures with captions; returns the source's spec."""
    chance = np.random.default_rng(0)
    pool = []
    for _ in range(POOL):
        out = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64)).save(out, "JPEG", quality=60)
        pool.append(out.getvalue())
    caption = lambda n: f"synthetic picture number {n} of a pattern in {n % 97} colours"
    if kind == "csv":
        (folder / "pool").mkdir()
        for n, data in enumerate(pool):
            (folder / "pool" / f"{n:03d}.jpg").write_bytes(data)
        for n in range(-(-rows // POOL)):
            (folder / f"d{n:04d}").symlink_to("pool")
        with (folder / "rows.csv").open("w") as lines:
            lines.write("filepath,title\n")
            lines.writelines(f"d{n // POOL:04d}/{n % POOL:03d}.jpg,{caption(n)}\n" for n in range(rows))
        return str(folder / "rows.csv")
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("image", pyarrow.binary()), ("caption", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(folder / "rows.parquet", schema) as writer:
            for start in range(0, rows, 10_000):
                part = range(start, min(rows, start + 10_000))
                writer.write_table(pyarrow.table({"image": [pool[n % POOL] for n in part], "caption": [caption(n) for n in part]}, schema))
        return str(folder / "rows.parquet")
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for n in range(rows):
            for ending, data in (("jpg", pool[n % POOL]), ("txt", caption(n).encode())):
                member = tarfile.TarInfo(f"{n:08d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(folder / "rows.tar")


def held() -> float:
    """MiB of this process and its children: each page shared among them counts once."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in [str(os.getpid()), *children]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def measure(spec: str, workers: int, epoch: float) -> dict:
    import torch

    from crossmodal.batch import ViewSpec
    from crossmodal.data.loader import TrainingPairs, training_batches
    from crossmodal.data.sources import open_source
    from crossmodal.recipe import DataPart

    before, begun = held(), time.perf_counter()
    source = open_source(spec)
    data = DataPart(train=spec, image_size=32, batch_size=256, workers=workers)
    pairs = TrainingPairs(source, {"image": ViewSpec("image"), "text": ViewSpec("text")}, data, "shortest", 0)
    steps = max(2, int(epoch * len(source) / 256))
    memory, first = [], 0.0
    tokenize = lambda texts: torch.zeros(len(texts), 8, dtype=torch.long)
    for step, batch in enumerate(training_batches(pairs, source, data, tokenize, 0, 0, steps)):
        assert len(batch.rows) == 256
        first = first or time.perf_counter() - begun
        if step % max(1, steps // 10) == 0:
            memory.append(round(held() - before))
    return {"rows": len(source), "first batch, s": round(first, 1), "MiB": memory, "steps": steps}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", help="measure this source alone")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet", "tar"], choices=("csv", "parquet", "tar"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epoch", type=float, default=0.02, help="the share of an epoch to draw")
    parser.add_argument("--keep", type=Path, help="where to write, and leave, the rows")
    options = parser.parse_args()
    if options.spec:
        print(json.dumps(measure(options.spec, options.workers, options.epoch)))
        sys.exit()
    worst = [0.0, 0.0]
    for kind in options.formats:
        with tempfile.TemporaryDirectory(dir=options.keep) as name:
            spec = make(kind, options.rows, Path(name))
            env = os.environ | {"HF_HOME": name}
            passed = [f"--workers={options.workers}", f"--epoch={options.epoch}"]
            done = subprocess.run([sys.executable, __file__, spec, *passed], env=env, stdout=subprocess.PIPE, text=True, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        worst = [max(worst[0], said["first batch, s"]), max(worst[1], *said["MiB"])]
        print(
            f"{kind}: {said['rows']:,} rows, first batch after {said['first batch, s']} s, MiB over {said['steps']} steps: {said['MiB']}",
            flush=True,
        )
    print(f"worst: {worst[0]} s, {worst[1]} MiB")
