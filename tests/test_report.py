"""The page says what was asked, what came, and nothing a file name could smuggle in."""

import json

import pytest

from crossmodal import report
from crossmodal.data.sources import open_source
from crossmodal.embed import encode
from crossmodal.errors import UserError
from tests.test_model import tiny_model


def test_examples_mark_the_right_picture(pairs, class_folder):
    model = tiny_model()
    for spec, texts in ((str(pairs), True), (str(class_folder), False)):
        source = open_source(spec)
        pictures = encode(model, source, texts=texts)
        shown = report.examples(model, source, pictures, count=6)
        assert 1 <= len(shown) <= 6
        for example in shown:
            assert len(example.hits) == 5 and example.right.size == (96, 96)
            scores = [score for _, score, _ in example.hits]
            assert scores == sorted(scores, reverse=True)
        if texts:
            for example in shown:
                assert example.hits[0][2] == (example.place == 1)


def test_the_page_is_escaped_and_whole(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("out: <script>alert(1)</script>\n")
    lines = [{"step": s, "loss": 2.0 - s / 10, "contrastive": 2.0 - s / 10, "pairs_per_second": 9, "seconds": s} for s in range(1, 6)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "eval.jsonl").write_text(json.dumps({"step": 5, "acc1": 0.123}) + "\n")
    page = report.write(out).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "12.3 %" in page and "zero-shot top-1" in page
    assert page.count("<svg") == 2, "loss and pairs per second; one curve for a loss that is its only term"
    with pytest.raises(UserError, match="is no run folder"):
        report.write(tmp_path)
