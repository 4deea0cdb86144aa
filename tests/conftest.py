"""Small real inputs: drawn shapes with captions, tiny towers. No network, one thread a process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
COLOURS = ["red", "green", "blue", "orange", "purple", "black"]
SHAPES = ["circle", "square", "triangle", "cross"]

torch.set_num_threads(1)


def shape(colour: str, form: str, number: int = 0) -> Image.Image:
    """A drawn shape on white, its size and place varied by ``number``."""
    picture = Image.new("RGB", (64, 56), "white")
    draw = ImageDraw.Draw(picture)
    x, y, r = 22 + 5 * (number % 5), 20 + 4 * (number % 4), 12 + number % 6
    box = [x - r, y - r, x + r, y + r]
    if form == "circle":
        draw.ellipse(box, fill=colour)
    elif form == "square":
        draw.rectangle(box, fill=colour)
    elif form == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        draw.line([x - r, y, x + r, y], fill=colour, width=6)
        draw.line([x, y - r, x, y + r], fill=colour, width=6)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    picture.save(data, kind)
    return data.getvalue()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Embeddings that tests leave behind go into a folder of their own."""
    os.environ["CROSSMODAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A CSV of 48 pictures with two captions each (as two rows)."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["filepath,title"]
    for n in range(48):
        colour, form = COLOURS[n % 6], SHAPES[n // 6 % 4]
        name = f"{n:02d}.jpg" if n % 2 else f"{n:02d}.png"
        shape(colour, form, n).save(folder / name)
        lines += [f"{name},a {colour} {form}", f"{name},this {form} is {colour}"]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory) -> Path:
    """An ImageFolder of 4 classes with 3 pictures each."""
    folder = tmp_path_factory.mktemp("classes")
    for form in SHAPES:
        (folder / form).mkdir()
        for n in range(3):
            shape(COLOURS[n], form, n).save(folder / form / f"{n}.png")
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def tar_file(tmp_path_factory) -> Path:
    """A tar of 12 pictures: captions in JSON (two each) or text."""
    members = {}
    for n in range(12):
        colour, form = COLOURS[n % 6], SHAPES[n % 4]
        members[f"{n:03d}.png"] = encoded(shape(colour, form, n))
        if n % 2:
            members[f"{n:03d}.json"] = json.dumps({"captions": [f"a {colour} {form}", f"{form}, {colour}"]}).encode()
        else:
            members[f"{n:03d}.txt"] = f"one {colour} {form}\n".encode()
    return write_tar(tmp_path_factory.mktemp("tar") / "shapes.tar", members)


TINY = """\
out: runs/tiny
model:
  embed_dim: 32
  image: {{tower: timm:test_vit, kwargs: {{depth: 1}}}}
  text:
    tower: open_clip:ViT-B-32
    context_length: 32
    kwargs: {{layers: 1, width: 64, heads: 2}}
objectives:
  contrastive: {{weight: 1.0}}
data: {{train: {train}, val: {val}, image_size: 32, batch_size: 12, workers: 0, augment: {{rotate: 10, shift: 0.1, crop: [0.6, 1.0]}}}}
optim: {{lr: 1.0e-3, warmup: 2}}
train: {{steps: 4, precision: fp32, trackers: []}}
"""


@pytest.fixture
def tiny(tmp_path, pairs) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(train=pairs, val=pairs))
    return path


def run(*command: str, env: dict | None = None, cwd: Path | None = None, timeout: int = 300) -> subprocess.CompletedProcess:
    """A command line as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def launch(processes: int, *command: str, **options) -> subprocess.CompletedProcess:
    """``accelerate launch`` on gloo with several CPU processes, as the documentation says."""
    return run(
        "accelerate.commands.launch",
        *(["--multi_gpu"] if processes > 1 else []),
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "crossmodal",
        *command,
        **options,
    )


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def needs_shared(name: str) -> Path:
    """A development data file, or a skip that says it is not here."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not on this machine")
    return SHARED / name
