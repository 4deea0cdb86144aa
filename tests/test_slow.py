"""Minutes, not seconds: the promises of the recipes' headers, and the wheel in a place of its own."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from crossmodal import resources
from crossmodal.cli import main
from tests.conftest import ROOT, needs_shared

pytestmark = pytest.mark.slow


def test_the_demo_keeps_its_promise(tmp_path):
    """Zero-shot on a drawing style never trained on: top-1 at least 10 %, top-5 at least 25 %, over about 1,900 concepts."""
    out, figures = tmp_path / "run", tmp_path / "z.json"
    command = [sys.executable, "-m", "crossmodal"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    subprocess.run([*command, "train", "emoji", f"out={out}"], check=True, env=threads)
    subprocess.run([*command, "zeroshot", str(out), "--data", "emoji:openmoji", "--output", str(figures)], check=True, env=threads)
    said = json.loads(figures.read_text())
    assert 1850 <= said["classes"] <= 2000
    assert said["metrics"]["acc1"] >= 0.10 and said["metrics"]["acc5"] >= 0.25
    peer_says_the_same(out)


def peer_says_the_same(run):
    """CLIP_benchmark's own evaluation of the trained model, each class by its first name: the same top-1, top-5 and recall."""
    from clip_benchmark.metrics import zeroshot_classification

    import crossmodal
    from crossmodal.evaluation.tasks.base import Case
    from crossmodal.evaluation.tasks.classification import Classification
    from tests.evaluation.test_peers import Loader, TheirModel

    model, source = crossmodal.load(run), crossmodal.open_source("emoji:openmoji")
    names, pictures = [each[0] for each in source.classes], crossmodal.encode(model, source, texts=False)
    numbered = type("Numbered", (), {"classes": None})  # labels are numbers: two concepts may share a first name
    mine = Classification().answer(Case(model, numbered, lambda: pictures, lambda: None, [(n,) for n in names], templates=["a {}"]))
    zeroshot_classification.float = lambda x: x.item() if hasattr(x, "item") else float(x)  # numpy has ceased to take arrays of one number
    loader = Loader(model, source, lambda s, n: torch.tensor(s.label), names, 64)
    theirs = zeroshot_classification.evaluate(TheirModel(model), loader, model.text.tokenize, names, ["a {c}"], "cpu", amp=False)
    assert {k: mine.metrics[k] for k in theirs} == pytest.approx(theirs, abs=1e-9)


def test_flickr8k_takes_its_tars(tmp_path):
    """The recipe runs on real shards, and even a tenth of its training beats a linear model by far."""
    data = [f"data.{half}={needs_shared(f'flickr8k-{half}-128.tar')}" for half in ("train", "val")]
    assert main(["train", "flickr8k", *data, f"out={tmp_path / 'run'}", "train.steps=15", "optim.warmup=5", "data.cache_views=1"]) == 0
    figures = json.loads((tmp_path / "run" / "eval.jsonl").read_text().splitlines()[-1])
    assert figures["image_retrieval_recall@10"] > 0.2 and figures["text_retrieval_recall@10"] > 0.2


def test_a_wheel_holds_all_it_needs(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)
    code = "import crossmodal, sys; from crossmodal.cli import main; print(crossmodal.__file__); sys.exit(main(sys.argv[1:]))"

    def ours(*arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(place)}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], env=env, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    listed = ours("recipes", "list")
    assert str(place) in listed and all(name in listed for name in resources.listed("recipes"))
    assert "valid recipe" in ours("recipes", "validate", "emoji")
    names = zipfile.ZipFile(wheel).namelist()
    assert "crossmodal/eval/benchmarks/openmoji.yaml" in names and "crossmodal/eval/templates/simple.txt" in names
    assert "crossmodal/templates/report.html.j2" in names and not any(n.startswith(("tests/", "eval/", "recipes/")) for n in names)
