# ruff: noqa: E501 - a table is read by rows
"""The objectives' tests fail when a loss is wrong: each line below is broken once, and its own test must see it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CONTRASTIVE = (
    "contrastive",
    "test_equals_the_naive_loop or test_both_ways or test_equal_pictures or test_gradients_equal or test_chance_is",
)
SIGMOID = ("sigmoid", "test_equals_the_naive_loop or test_starts_where")
SIMCLR = ("simclr", "test_equals_the_naive_loop")
CAPTIONING = ("captioning", "test_loss_is_the_mean or test_no_word or test_the_picture_is_read")
MAE = ("mae", "test_loss_is_the_mean or test_patches or test_the_tower_sees or test_features_of_a_teacher")
DINO = ("dino", "test_equals_the_naive_loop or test_teacher_takes_no or test_temperature")

# (whose, what is wrong, file under crossmodal/, right, wrong)
BROKEN = [
    (*CONTRASTIVE, "sign", "objectives/contrastive.py", "sums.rows + sums.columns - right", "sums.rows + sums.columns + right"),
    (*CONTRASTIVE, "transpose", "objectives/contrastive.py", "sums.rows + sums.columns", "2 * sums.rows"),
    (*CONTRASTIVE, "temperature", "objectives/contrastive.py", "log_sum_exp(image, text, log_scale)", "log_sum_exp(image, text, log_scale / 2)"),
    (*CONTRASTIVE, "transpose of positives", "objectives/contrastive.py", "text * positives.sum(image)", "image * positives.sum(text)"),
    (*CONTRASTIVE, "positives not averaged", "objectives/contrastive.py", ".sum(1) / positives.count)", ".sum(1) / 2)"),
    (*CONTRASTIVE, "gradient of the texts", "pairwise.py", "dy.addmm_(p.T, xs)", "dy.addmm_(p.T, x[rows])"),
    (*CONTRASTIVE, "overflow", "pairwise.py", "e = (tile - row_top[:, None]).exp_()", "e = tile.exp()"),
    (*SIGMOID, "sign", "objectives/sigmoid.py", "len(image) - right.mean()", "len(image) + right.mean()"),
    (*SIGMOID, "temperature", "objectives/sigmoid.py", "right = log_scale.exp() *", "right = log_scale *"),
    (*SIGMOID, "transpose", "objectives/sigmoid.py", "(image * positives.sum(text)).sum(1)", "(image * text.flip(0)).sum(1)"),
    (*SIGMOID, "no bias", "objectives/sigmoid.py", "softplus(image, text, log_scale, bias)", "softplus(image, text, log_scale, 0 * bias)"),
    (*SIGMOID, "initial bias", "objectives/sigmoid.py", '"logit_bias": -10.0', '"logit_bias": 10.0'),
    (*SIMCLR, "sign", "objectives/simclr.py", "rows.mean() - (a * b)", "rows.mean() + (a * b)"),
    (*SIMCLR, "temperature", "objectives/simclr.py", "-math.log(self.temperature)", "math.log(self.temperature)"),
    (*SIMCLR, "itself among the wrong ones", "objectives/simclr.py", "without_self=True", "without_self=False"),
    (*SIMCLR, "one view only", "objectives/simclr.py", "torch.stack((a, b), 1)", "torch.stack((a, a), 1)"),
    (*CAPTIONING, "sign", "objectives/captioning.py", '"captioning": (loss,', '"captioning": (-loss,'),
    (*CAPTIONING, "unmasked padding", "objectives/captioning.py", "< self.lengths(ids)[:, None]", "< ids.shape[1] + 0 * self.lengths(ids)[:, None]"),
    (*CAPTIONING, "off by one", "objectives/captioning.py", "ids[rows, 1:length][said]", "ids[rows, : length - 1][said]"),
    (*CAPTIONING, "the answer told", "objectives/captioning.py", "tokens[rows, : length - 1]", "tokens[rows, 1:length]"),
    (*CAPTIONING, "the picture not read", "decoder.py", "self.body(self.context(context), tokens)", "self.body(0 * self.context(context), tokens)"),
    (*MAE, "sign", "objectives/mae.py", "((each * hidden).sum()", "(-(each * hidden).sum()"),
    (*MAE, "seen patches count", "objectives/mae.py", "(each * hidden)", "(each * (1 + 0 * hidden))"),
    (*MAE, "transpose", "objectives/mae.py", "permute(0, 3, 2, 1)", "permute(0, 3, 1, 2)"),
    (*MAE, "targets not normalised", "objectives/mae.py", "target = _normalised(", "target = ("),
    (*MAE, "the tower sees all", "objectives/mae.py", "model.image.tokens_of(images, kept)", 'model.image(images)["tokens"][:, : kept.shape[1]]'),
    (*MAE, "missing stop-gradient", "objectives/mae.py", 'with torch.no_grad():\n            target = self.teacher(', 'if True:\n            target = model.image('),
    (*DINO, "sign", "objectives/dino.py", "total = total - sum(", "total = total + sum("),
    (*DINO, "student's temperature", "objectives/dino.py", "learn) / self.student_temperature", "learn) * self.student_temperature"),
    (*DINO, "teacher's temperature", "objectives/dino.py", "- self.centre) / self.teacher_temperature", "- self.centre) / self.student_temperature"),
    (*DINO, "centre", "objectives/dino.py", "(logits - self.centre)", "(logits + self.centre)"),
    (*DINO, "the same crop", "objectives/dino.py", "for other in self.views if other != view", "for other in self.views"),
    (*DINO, "teacher and student swapped", "objectives/dino.py", "(target * student[other]).sum()", "(student[other].exp() * target.log()).sum()"),
    (*DINO, "missing stop-gradient", "teacher.py", "with torch.no_grad():\n            return self.module(", "if True:\n            return self.module.requires_grad_()("),
]  # fmt: skip
WHOLE = sorted({b[:2] for b in BROKEN})


@pytest.fixture(scope="module")
def statuses(tmp_path_factory) -> list[int]:
    """pytest's exit status for each set of tests unbroken, then for each of ``BROKEN``."""
    copy = tmp_path_factory.mktemp("mutated")
    shutil.copytree(ROOT / "crossmodal", copy / "crossmodal", ignore=shutil.ignore_patterns("__pycache__"))
    jobs = [(objective, tests, None, None, None) for objective, tests in WHOLE] + [b[:2] + b[3:] for b in BROKEN]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    program = [sys.executable, str(ROOT / "tests" / "mutations_program.py"), str(copy)]
    done = subprocess.run(program, input=json.dumps(jobs), env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(WHOLE)), ids=[w[0] for w in WHOLE])
def test_unbroken_they_pass(statuses, number):
    assert statuses[number] == 0


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=[f"{b[0]}: {b[2]}" for b in BROKEN])
def test_broken_they_fail(statuses, number):
    status = statuses[len(WHOLE) + number]
    objective, _, wrong, file, right, _ = BROKEN[number]
    assert status is not None, f"{file} no longer has exactly one {right!r}; say anew where that could be wrong"
    assert status == 1, f"the tests of {objective} do not see: {wrong}"
