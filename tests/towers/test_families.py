"""Every family of image towers goes the whole road: a real training step, saved, loaded, scored zero-shot; and stands in docs/towers.md."""

import importlib.util
import math

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("table", ROOT / "eval" / "towers" / "table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


@pytest.mark.parametrize("name", table.FAMILIES)
def test_a_step_and_a_score(name, class_folder, tmp_path):
    measured = table.measure(name, f"folder:{class_folder}", tmp_path)
    assert 0 < measured["loss"] < 10 and math.isfinite(measured["gradient_norm"]) and measured["gradient_norm"] > 0
    assert 0 <= measured["acc1"] <= 1 and measured["parameters"] > 1 and measured["tokens"] >= 4
    row = next(line for line in (ROOT / "docs" / "towers.md").read_text().splitlines() if line.startswith(f"| {name} ("))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == [f"{measured['parameters']:.1f} M", *(str(measured[k]) for k in ("size", "tokens", "width"))]
