"""What pages of HTML have in common: their template, their style, pictures inside them, how figures are called. None needs a network."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

NAMES = {
    "acc1": "zero-shot top-1",
    "acc5": "zero-shot top-5",
    "mean_per_class_recall": "mean per-class recall",
    "image_retrieval_recall": "text→image recall",
    "text_retrieval_recall": "image→text recall",
    "ece": "calibration error (ECE)",
    "ece_fitted_temperature": "calibration error, fitted temperature",
    "mean_average_precision": "mean average precision",
    "knn": "k-NN",
    "pairs_per_second": "pairs per second",
    "lr": "learning rate",
    "logit_scale": "logit scale",
}


def template(name: str) -> jinja2.Template:
    """The page ``templates/NAME.html.j2``; everything put into it is escaped."""
    return _from_templates(f"{name}.html.j2", escape=True)


def markdown(name: str) -> jinja2.Template:
    """The text ``templates/NAME.md.j2``, in which nothing is escaped."""
    return _from_templates(f"{name}.md.j2", escape=False)


def _from_templates(file: str, escape: bool) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True).get_template(file)


def inline(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def name(key: str) -> str:
    """A figure's name as people say it: ``image_retrieval_recall@5_collapsed`` → "text→image recall @5, equal captions as one"."""
    head, at, k = key.partition("@")
    k, collapsed, _ = k.partition("_collapsed")
    return NAMES.get(head, head.replace("_", " ")) + (f" @{k}" if at else "") + (", equal captions as one" if collapsed else "")
