"""What is tracked, and what is said when training goes wrong."""

import json
import math

import pytest

from crossmodal import recipe
from crossmodal.errors import UserError
from crossmodal.training import gradcache, task
from crossmodal.training.health import WINDOW, Health
from crossmodal.training.loop import fit
from tests.conftest import metrics


def test_every_line_tells_how_training_does(tiny, tmp_path):
    fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "optim.clip=null"]))
    for line in metrics(tmp_path / "run"):
        assert line["gradient_norm"] > 0 and 0.05 < line["memory"] < 24 and 0 <= line["data_wait"] <= 1
        assert 0 <= line["image_to_text_in_batch"] <= 1 and 0 <= line["text_to_image_in_batch"] <= 1
        assert line["loss"] == line["contrastive"]


def test_a_plateau_at_chance_is_named_once(tiny):
    health = Health(task.build(recipe.read(tiny)), 256)
    said = [health.plateau({"contrastive": math.log(256) * (1 + 0.005 * (-1) ** n)}) for n in range(3 * WINDOW)]
    (sentence,) = [s for s in said if s]
    assert said.index(sentence) == WINDOW - 1
    assert "contrastive has stayed at 5.545 = ln(256), chance, for 100 steps" in sentence
    learning = Health(task.build(recipe.read(tiny)), 256)
    assert not any(learning.plateau({"contrastive": 5.545 - 0.01 * n}) for n in range(3 * WINDOW))


def test_a_plateau_is_said_during_training(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("crossmodal.training.health.WINDOW", 3)
    monkeypatch.setattr("crossmodal.training.health.NEAR", 10.0)
    fit(recipe.read(tiny, [f"out={tmp_path / 'run'}"]))
    assert capsys.readouterr().err.count("nothing is learnt") == 1


def test_a_loss_that_is_not_finite_names_step_term_and_samples(tiny, tmp_path, monkeypatch):
    real, calls = gradcache.backward, []

    def breaks(*arguments):
        loss, terms = real(*arguments)
        calls.append(1)
        return (loss * math.nan, {k: v * math.nan for k, v in terms.items()}) if len(calls) == 3 else (loss, terms)

    monkeypatch.setattr(gradcache, "backward", breaks)
    with pytest.raises(UserError, match=r"step 3: the loss is nan \(contrastive nan; the batch begins with \d\d\.(jpg|png), .*step-000002"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.checkpoint_every=1"]))
    assert len(metrics(tmp_path / "run")) == 2


def test_the_best_checkpoint_stays(tiny, tmp_path):
    scores = iter([0.3, 0.9, 0.5, 0.4, 0.2])
    said = recipe.read(tiny, [f"out={tmp_path / 'run'}", "train.steps=5", "eval.every=1", "train.keep_last=2", "train.keep_best=acc1"])
    fit(said, evaluate=lambda model: {"acc1": next(scores)})
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-000002", "step-000004", "step-000005"]
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {"checkpoint": "step-000002", "step": 2, "acc1": 0.9}
    with pytest.raises(UserError, match=r"train\.keep_best is 'acc2', which the evaluation does not give; did you mean 'acc1'"):
        fit(recipe.read(tiny, [f"out={tmp_path / 'other'}", "eval.every=1", "train.keep_best=acc2"]), evaluate=lambda model: {"acc1": 1.0})
    with pytest.raises(UserError, match=r"train.keep_best keeps the best of several evaluations; set eval\.every"):
        recipe.read(tiny, ["train.keep_best=acc1"])
