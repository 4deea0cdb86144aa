"""The command line as a user meets it: the whole road on small data, and every mistake a sentence."""

import json

import pytest
import torch
from PIL import Image

from crossmodal import recipe
from crossmodal.cli import main
from tests.conftest import ROOT, run, write_tar


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs):
    """A run folder, trained through the command line."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY.format(train=pairs, val=pairs))
    out = folder / "run"
    assert main(["train", str(folder / "tiny.yaml"), f"out={out}", "train.steps=30", "optim.lr=3e-3", "train.trackers=[tensorboard]"]) == 0
    return out


def test_a_run_folder_is_whole(trained):
    for name in ("recipe.yaml", "metrics.jsonl", "eval.jsonl", "model/model.json", "model/model.safetensors", "report.html"):
        assert (trained / name).is_file(), name
    assert any((trained / "tensorboard").rglob("events.*")), "TensorBoard's file"
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 6 and "text→image recall @1" in page
    assert "http://" not in page and "https://" not in page, "readable without a network"
    assert recipe.read(trained / "recipe.yaml").train.steps == 30


def test_the_road_after_training(trained, pairs, class_folder, tmp_path, capsys):
    figures = tmp_path / "z.json"
    assert main(["zeroshot", str(trained), "--data", str(class_folder), "--templates", "a {}", "--output", str(figures)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    said = json.loads(figures.read_text())
    assert last.startswith(f"zero-shot top-1 {100 * said['metrics']['acc1']:.1f} % top-5 ") and "(4 classes, " in last
    assert said["templates"] == ["a {}"] and set(said["metrics"]) > {"acc1", "acc5", "mean_per_class_recall", "ece"}
    assert said["dataset"] == str(class_folder) and said["task"] == "zeroshot_classification" and said["language"] == "en"
    low, high = said["intervals"]["acc1"]
    assert low <= said["metrics"]["acc1"] <= high

    assert main(["retrieve", str(trained), "--data", str(pairs), "-k", "1", "5", "--output", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    wanted = {f"{w}_retrieval_recall@{k}{equal}" for w in ("image", "text") for k in (1, 5) for equal in ("", "_collapsed")}
    assert set(found["metrics"]) == wanted
    assert found["pictures"] == 48 and found["captions"] == 96
    assert "text→image" in capsys.readouterr().out

    assert main(["embed", str(trained), "--data", str(pairs), "-o", str(tmp_path / "emb")]) == 0
    assert main(["index", "build", str(tmp_path / "emb"), "-o", str(tmp_path / "idx")]) == 0
    capsys.readouterr()
    grid, hits = tmp_path / "grid.png", tmp_path / "hits.json"
    assert main(["search", str(tmp_path / "idx"), "a red circle", "-k", "6", "--grid", str(grid), "--output", str(hits)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and len(json.loads(hits.read_text())["hits"]) == 6
    assert Image.open(grid).size[0] > 800
    assert main(["search", str(tmp_path / "idx"), "--image", str(pairs.parent / "07.jpg"), "-k", "1"]) == 0
    assert "07.jpg" in capsys.readouterr().out
    assert main(["report", str(trained)]) == 0


def test_a_checkpoint_is_a_model_too(trained, class_folder):
    assert main(["zeroshot", str(trained / "checkpoints" / "step-000030"), "--data", str(class_folder)]) == 0


def test_embedding_goes_on_where_it_broke_off(trained, pairs, tmp_path):
    from crossmodal import embed
    from crossmodal.data.sources import open_source
    from crossmodal.loading import load

    model, source = load(trained), open_source(str(pairs))
    arguments = (model, str(trained), source, str(pairs))
    embed.write(*arguments, tmp_path / "whole", shard=20)
    embed.write(*arguments, tmp_path / "part", shard=20)
    (tmp_path / "part" / "embeddings.json").unlink()
    (tmp_path / "part" / "part-00001.safetensors").unlink()
    kept = (tmp_path / "part" / "part-00000.safetensors").stat().st_mtime_ns
    embed.write(*arguments, tmp_path / "part", shard=20)
    assert (tmp_path / "part" / "part-00000.safetensors").stat().st_mtime_ns == kept
    (a, _), (b, _) = embed.read(tmp_path / "whole"), embed.read(tmp_path / "part")
    assert torch.equal(a.image, b.image) and torch.equal(a.text, b.text) and a.captions == b.captions and a.keys == b.keys
    whole = embed.encode(model, source)
    assert torch.allclose(a.image, whole.image, atol=1e-6) and torch.equal(a.owner, whole.owner) and a.rows == whole.rows


def test_recipes_are_listed_shown_copied_and_validated(tmp_path, capsys):
    assert main(["recipes", "list"]) == 0
    assert "emoji" in capsys.readouterr().out
    assert main(["recipes", "show", "emoji"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "emoji.yaml").read_text()
    assert main(["recipes", "copy", "emoji", str(tmp_path / "mine.yaml")]) == 0
    assert main(["recipes", "validate", str(tmp_path / "mine.yaml"), "optim.lr=1e-4"]) == 0
    assert main(["recipes", "copy", "emoji", str(tmp_path / "mine.yaml")]) == 2
    capsys.readouterr()
    assert main(["recipes", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train tiny.yaml optim.lrr=1", "'optim.lrr=1': unknown key 'optim.lrr'; did you mean 'lr'?"),
        ("train tiny.yaml out=new data.train=missing.csv", "missing.csv: no such file."),
        ("train tiny.yaml out=new data.train=column.csv", "column.csv: has no column 'filepath'"),
        ("train tiny.yaml out=new data.train=folder:empty", "empty: holds no pictures"),
        ("train tiny.yaml out=new data.train=cut.tar", "cut.tar: not a whole tar file"),
        ("train tiny.yaml out=new data.val=null data.train=null", "data.train is not set; say what to train on"),
        ("train tiny.yaml out=new data.batch_size=1000", "data.batch_size is 1000, but"),
        ("train tiny.yaml out=new train.trackers=[wandbb]", "train.trackers"),
        ("train tiny.yaml --resume --overwrite", "give one of them"),
        ("zeroshot nowhere --data emoji:openmoji", "nowhere: does not exist; give a run folder"),
        ("zeroshot nowhere", "say what data to use"),
        ("zeroshot nowhere --data cut.tar", "not a whole tar file"),
        ("index build nowhere -o idx", "nowhere: holds no finished embeddings"),
        ("search nowhere x", "nowhere: holds no index"),
        ("search nowhere", "say what to look for"),
        ("report nowhere", "nowhere: is no run folder"),
        ("recipes show emojj", "did you mean 'emoji'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tiny, tar_file, monkeypatch, capsys, command, sentence):
    folder = tiny.parent
    (folder / "empty").mkdir()
    (folder / "column.csv").write_text("file,title\na.jpg,b\n")
    (folder / "cut.tar").write_bytes(tar_file.read_bytes()[:5000])
    monkeypatch.chdir(folder)
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("crossmodal: ") and said.count("\n") == 1
    assert not (folder / "new" / "model").exists()


def test_as_a_module_without_a_traceback(tmp_path):
    done = run("crossmodal", "train", "no-such-recipe")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "no-such-recipe: no such file" in done.stderr
    assert run("crossmodal", "--version").stdout.startswith("crossmodal 0.")


def test_pictures_left_out_are_named(trained, tmp_path, capsys):
    from tests.conftest import encoded, shape

    tar = write_tar(tmp_path / "x.tar", {"0.png": b"bad", "0.txt": b"x", "1.png": encoded(shape("red", "cross")), "1.txt": b"y"})
    assert main(["retrieve", str(trained), "--data", str(tar)]) == 0
    assert "crossmodal: 0 was left out: " in capsys.readouterr().err


def test_a_mistake_before_training_leaves_no_folder_behind(tiny, tmp_path):
    assert main(["train", str(tiny), f"out={tmp_path / 'new'}", "data.train=missing.csv"]) == 2
    assert not (tmp_path / "new").exists()
