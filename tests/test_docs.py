"""What the documentation shows is run: the notebook, and the README's commands and Python."""

import re
import shlex

import nbformat
import pytest
from nbclient import NotebookClient

from crossmodal import recipe
from crossmodal.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("QUICKSTART_STEPS", "4")
    monkeypatch.setenv("QUICKSTART_LIMIT", "300")
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    text = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "classes; chance is 0.05%" in text
    assert any("image/png" in o.get("data", {}) for o in notebook.cells[-1].outputs)


@pytest.fixture
def desk(tmp_path, pairs, class_folder, monkeypatch, tiny):
    """A folder in which the README's names exist: my.csv, my-val.csv, photos, photo.jpg, and a small mine.yaml."""
    links = {file.name: file for file in pairs.parent.iterdir()}
    links |= {"my.csv": pairs, "my-val.csv": pairs, "photo.jpg": pairs.parent / "01.jpg"}
    links |= {"another.png": pairs.parent / "00.png", "photos": class_folder}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_commands_and_python_run(desk, tiny, capsys):
    commands = [line.split("#")[0].strip() for b in blocks("bash") for line in b.splitlines()]
    ours = [shlex.split(c)[1:] for c in commands if c.startswith("crossmodal ")]
    assert len(ours) >= 7
    for command in ours:
        assert main(command) == 0, command
        if command[:2] == ["recipes", "copy"]:
            # The same road, with towers that train in seconds.
            speaks = "objectives:\n  captioning: {}\n", "model:\n  decoder: {layers: 1}\n"
            (desk / "mine.yaml").write_text(tiny.read_text().replace("objectives:\n", speaks[0]).replace("model:\n", speaks[1]))
    assert (desk / "hits.png").is_file() and (desk / "figures.json").is_file()
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert "a cat" in capsys.readouterr().out


def test_readme_recipe_and_launch_lines_are_real(desk, tmp_path):
    (said,) = blocks("yaml")
    (tmp_path / "said.yaml").write_text("out: runs/x\n" + said)
    assert recipe.read(tmp_path / "said.yaml").data.batch_size == 1024
    launches = re.findall(r"accelerate launch.*?-m crossmodal train mine.yaml", README)
    assert len(launches) == 2
    for name in re.findall(r"`make ([a-z-]+)`", README):
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_project_speaks_of_itself_alone():
    words = ("/work/", "pypi.org", "huggingface.co", "docker", "session ")
    endings, leave = {".py", ".md", ".yaml", ".cfg", ".toml", ".ipynb"}, {".venv", "build", "tests"}
    for path in ROOT.rglob("*"):
        if path.is_file() and path.suffix in endings and not leave & set(path.relative_to(ROOT).parts):
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert word not in text, f"{path} says {word!r}"
