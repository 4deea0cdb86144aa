"""Draws steps as training does, on one process or several, and writes the keys that each process saw.

python tests/data/epochs_program.py SPEC BATCH WORKERS START STOP OUT
"""

import json
import sys
from pathlib import Path

import torch

from crossmodal import distributed
from crossmodal.batch import ViewSpec
from crossmodal.data.loader import TrainingPairs, sentences, training_batches
from crossmodal.data.sources import open_source
from crossmodal.recipe import DataPart

if __name__ == "__main__":
    spec, batch, workers, start, stop, out = sys.argv[1:]
    distributed.start()
    source = open_source(spec)
    data = DataPart(train=spec, image_size=16, batch_size=int(batch), workers=int(workers))
    pairs = TrainingPairs(source, {"image": ViewSpec("image"), "text": ViewSpec("text")}, data, "shortest", 0)
    count = lambda texts: torch.tensor([[len(t)] for t in texts])
    seen = [b.keys for b in sentences(training_batches(pairs, source, data, count, 0, int(start), int(stop)))]
    Path(f"{out}-{distributed.rank()}.json").write_text(json.dumps(seen))
    distributed.barrier()
