"""The house: floors without circles, a packaging list that is whole, one door for every name."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import crossmodal
from crossmodal import registry
from crossmodal.errors import UserError
from tests.conftest import ROOT


def test_floors_hold():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_package_is_shipped():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    real = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "crossmodal").rglob("*.py")}
    assert real <= listed
    for name in listed - real:
        folder = ROOT.joinpath(*name.split(".")[1:])
        assert folder.is_dir(), f"{name} is listed in setup.cfg, but {folder} does not exist"
        assert any(folder.iterdir())


def test_public_names_exist_and_are_documented():
    for name in crossmodal.__all__:
        assert getattr(crossmodal, name).__doc__
    with pytest.raises(AttributeError):
        _ = crossmodal.nonsense


def test_registry_reads_aliases_without_importing():
    assert registry.declared("towers", "ALIASES") == {"hf": "transformers"}
    assert registry.declared("data.sources", "ENDINGS")[".tar"] == "webdataset"
    with pytest.raises(UserError, match="did you mean 'csv'"):
        registry.find("data.sources", "cvs", "Source")


def test_help_needs_no_torch():
    code = "import sys, crossmodal.cli; assert 'torch' not in sys.modules, 'torch'; assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_outside_objectives_names_one():
    """No string, attribute or comparison elsewhere knows an objective; a decoder's or a recipe's hint may speak of one in a sentence."""
    names = set(registry.names("objectives"))
    assert {"contrastive", "captioning", "dino"} <= names
    for file in (ROOT / "crossmodal").rglob("*.py"):
        if file.parent.name != "objectives":
            said = {n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not said & names, f"{file} names {said & names}"
            assert not any(f"objectives.{n}" in file.read_text() for n in names), file
