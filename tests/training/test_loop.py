"""Training as a user runs it: losses fall, resume is exact, two processes equal one, mistakes are sentences."""

import itertools
import json
import math
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.loading import load
from crossmodal.training import checkpoint, optim, task
from crossmodal.training.loop import fit
from tests.conftest import encoded, launch, metrics, shape, write_tar


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_learns_and_leaves_a_whole_run_folder(tiny, tmp_path):
    out = tmp_path / "run"
    figures = []
    said = recipe.read(
        tiny, [f"out={out}", "train.steps=60", "eval.every=30", "train.checkpoint_every=20", "train.keep_last=2", "optim.lr=3e-3"]
    )
    fit(said, evaluate=lambda model: figures.append(model.training) or {"x": 1.0})
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert {"loss", "contrastive", "lr", "logit_scale", "pairs_per_second", "data_wait", "seconds"} <= lines[0].keys()
    assert sum(line["loss"] for line in lines[-5:]) / 5 < 0.75 * lines[0]["loss"]
    assert figures == [False, False], "evaluation runs in eval mode, at step 30 and at the end"
    assert [json.loads(line)["step"] for line in (out / "eval.jsonl").read_text().splitlines()] == [30, 60]
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == ["step-000040", "step-000060"]
    assert recipe.read(out / "recipe.yaml") == said
    assert load(out).training_record["steps"] == 60
    assert same(weights(out), load_file(out / "checkpoints" / "step-000060" / "model" / "model.safetensors"))


def test_resuming_ends_with_the_same_weights(tiny, tmp_path):
    common = ["train.steps=6", "train.checkpoint_every=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(recipe.read(tiny, [*common, f"out={whole}"]))
    said = recipe.read(tiny, [*common, f"out={broken}"])
    calls = []

    def interrupt(model):
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe.read(tiny, [*common, f"out={broken}", "eval.every=5"]), evaluate=interrupt)
    assert calls and checkpoint.newest(broken).name == "step-000005", "a checkpoint is written before an evaluation"
    fit(said, resume=True)
    assert same(weights(whole), weights(broken))
    keep = lambda lines: [(line["step"], line["loss"], line["lr"]) for line in lines]
    assert keep(metrics(whole)) == keep(metrics(broken))


def test_resuming_with_other_data_is_refused(tiny, pairs, tmp_path):
    table = tmp_path / "t.csv"
    rows = pairs.read_text().replace("\n", f"\n{pairs.parent}/").removesuffix(f"{pairs.parent}/").splitlines(keepends=True)
    table.write_text("".join(rows[:-2]))
    said = recipe.read(tiny, ["train.steps=2", "optim.warmup=0", f"data.train={table}", f"out={tmp_path / 'run'}"])
    fit(said)
    table.write_text("".join(rows))
    with pytest.raises(UserError, match=r"holds other samples than .* \(48, there were 47\)"):
        fit(said, resume=True)
    table.write_text("".join([rows[0], *rows[3:]]))
    with pytest.raises(UserError, match=r"holds other samples than .* \(47, there were 47\)"):
        fit(said, resume=True)


def test_dropout_is_resumed_too(tiny, tmp_path):
    tiny.write_text(tiny.read_text().replace("kwargs: {depth: 1}", "kwargs: {depth: 1, drop_path_rate: 0.5, proj_drop_rate: 0.3}"))
    common = ["train.steps=4", "train.checkpoint_every=2"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    fit(recipe.read(tiny, [*common, f"out={whole}"]))
    fit(recipe.read(tiny, [*common, f"out={part}"]))
    assert same(weights(whole), weights(part))
    (part / "checkpoints" / "step-000004" / "state.json").unlink()  # as if it had never been written
    fit(recipe.read(tiny, [*common, f"out={part}"]), resume=True)
    assert same(weights(whole), weights(part))


@pytest.mark.parametrize("extra", [[], ["model.image.freeze=true", "data.cache_views=2"]], ids=["live", "cached"])
def test_two_processes_equal_one(tiny, tmp_path, extra):
    """`accelerate launch --multi_gpu --num_processes 2` on gloo: the same losses and weights, to 1e-5."""
    outs = {n: tmp_path / str(n) for n in (1, 2)}
    for n, out in outs.items():
        done = launch(n, "train", str(tiny), f"out={out}", "train.steps=5", "data.workers=1", *extra)
        assert done.returncode == 0, done.stderr
    one, two = (metrics(out) for out in outs.values())
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["logit_scale"] == pytest.approx(b["logit_scale"], abs=1e-4)
    ours, theirs = (weights(out) for out in outs.values())
    moved = load_file(outs[1] / "model" / "model.safetensors")
    assert all(torch.allclose(ours[k], theirs[k], atol=2e-4) for k in moved)
    figures = [json.loads((out / "eval.jsonl").read_text()) for out in outs.values()]
    assert figures[0] == pytest.approx(figures[1], abs=0.05)


@pytest.mark.parametrize("image", [[], ["model.image.freeze=true", "data.cache_views=2"]], ids=["live", "cached"])
def test_cached_texts_are_the_frozen_towers(tiny, tmp_path, image):
    """A frozen text tower whose captions are encoded once gives the losses and weights of one that encodes in every step."""
    frozen = ["model.text.freeze=true", "train.steps=6", "data.micro_batch=5", *image]
    live, known = (fit(recipe.read(tiny, [*frozen, f"out={tmp_path / n}", f"data.cache_texts={n}"])) for n in ("false", "true"))
    for a, b in zip(metrics(live), metrics(known), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    mine, theirs = (load_file(out / "model" / "model.safetensors") for out in (live, known))
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-5) for k in mine)


def test_cached_texts_are_refused_where_they_cannot_be(tiny, tmp_path):
    with pytest.raises(UserError, match=r"needs model.text.freeze: true"):
        recipe.read(tiny, [f"out={tmp_path / 'a'}", "data.cache_texts=true"])


def test_cached_views_train_the_rest(tiny, tmp_path):
    said = recipe.read(
        tiny, [f"out={tmp_path / 'run'}", "model.image.freeze=true", "data.cache_views=2", "train.steps=40", "optim.lr=3e-3"]
    )
    before = task.build(said).model.image.state_dict()
    fit(said)
    lines = metrics(tmp_path / "run")
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert before.keys() == {k.removeprefix("image.") for k in weights(tmp_path / "run") if k.startswith("image.")}


def test_decay_and_learning_rates_by_tower(tiny):
    tiny.write_text(tiny.read_text().replace("tower: open_clip:ViT-B-32", "tower: open_clip:ViT-B-32\n    lr_scale: 0.1"))
    said = recipe.read(tiny, ["optim.weight_decay=0.2"])
    built = task.build(said)
    groups = optim.groups(built, said.optim)
    names = {id(p): n for n, p in built.named_parameters()}
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.2 if p.ndim > 1 else 0.0), names[id(p)]
            assert group["lr_scale"] == (0.1 if names[id(p)].startswith("model.text.") else 1.0)
    everything = [id(p) for g in groups for p in g["params"]]
    assert len(everything) == len(set(everything)) == sum(p.requires_grad for p in built.parameters())
    scale = id(built.model.logit_scale)
    assert scale in {id(p) for g in groups if g["weight_decay"] == 0 and g["lr_scale"] == 1 for p in g["params"]}


def test_schedule_warms_up_and_falls_to_zero(tiny):
    part = recipe.read(tiny, ["optim.lr=1.0", "optim.warmup=4", "train.steps=100"]).optim
    rates = [optim.rate(s, part, 100) for s in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[52] == pytest.approx(0.5, abs=1e-9) and rates[99] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_bf16_trains(tiny, tmp_path):
    fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.precision=bf16"]))
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "run"))


def test_a_run_folder_is_not_overwritten_by_accident(tiny, tmp_path):
    said = recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.steps=3"])
    fit(said)
    with pytest.raises(UserError, match="exists already; choose another with out=…, or add --resume"):
        fit(said)
    with pytest.raises(UserError, match=r"optim\.lr differs from"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.steps=3", "optim.lr=1"]), resume=True)
    fit(said, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a run folder"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'mine'}"]), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").is_file()


def test_broken_pictures_are_listed_and_too_many_stop_the_run(tiny, tmp_path):
    members = {}
    for n in range(16):
        members[f"{n:02d}.png"] = b"broken" if n in (3, 8) else encoded(shape("red", "circle", n))
        members[f"{n:02d}.txt"] = f"number {n}".encode()
    tar = write_tar(tmp_path / "some.tar", members)
    fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", f"data.train={tar}", "data.val=null"]))
    listed = [json.loads(line)["key"] for line in (tmp_path / "run" / "broken.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["03", "08"]
    with pytest.raises(UserError, match=r"2 pictures cannot be used, more than data.max_broken=1: .*broken.jsonl"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'other'}", f"data.train={tar}", "data.max_broken=1", "data.val=null"]))


def test_a_diverging_run_stops_with_the_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "rate", lambda step, part, steps: float("inf") if step == 1 else 1e-3)
    with pytest.raises(UserError, match=r"step 3: the loss is nan .*no checkpoint was written before it"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'run'}"]))


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.steps=3"]))
    other = task.build(recipe.read(tiny, ["model.embed_dim=8"]))
    with pytest.raises(UserError, match="does not fit this recipe's model"):
        checkpoint.restore(checkpoint.newest(tmp_path / "run"), other, optim.build(other, recipe.read(tiny).optim))


def test_everything_frozen_is_refused(tiny):
    said = recipe.read(tiny, ["model.image.freeze=true", "model.text.freeze=true"])
    built = task.build(said)  # the projections are still there to train
    assert optim.groups(built, said.optim)
    built.requires_grad_(False)
    with pytest.raises(UserError, match="nothing is left to train"):
        optim.groups(built, said.optim)


def test_two_machines_equal_one(tiny, tmp_path):
    """Two launches that meet at an address, as on two machines: what docs/scaling.md shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / name for name in ("one", "two")]
    common = ["train", str(tiny), "data.val=null"]
    assert launch(1, *common, f"out={outs[0]}").returncode == 0
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    meet = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    machines = [
        subprocess.Popen(
            [*start, "--machine_rank", str(rank), *meet, "-m", "crossmodal", *common, f"out={outs[1]}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for machine in machines:
        _, said = machine.communicate(timeout=120)
        assert machine.returncode == 0, said[-3000:]
    for a, b in zip(*map(metrics, outs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
