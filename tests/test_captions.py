"""Scores of captions, the baseline of copying, and the command from end to end."""

import json

import pytest
import torch

from crossmodal import captions
from crossmodal.batch import Sample
from crossmodal.cli import main
from crossmodal.embed import Embeddings
from crossmodal.errors import UserError

WRITTEN = [
    ["A dog runs over the green grass.", "The brown dog is running."],
    ["Two men sit on a bench, talking.", "Men on a bench"],
    ["a child jumps into the blue pool", "A boy in swimming trunks jumps"],
    ["people ride bicycles down a hill", "Cyclists on a hill"],
]


def test_tokens_are_lower_case_words_without_punctuation():
    assert captions.tokenised("A dog's ball, 2.5 m away -- it's red!") == "a dog's ball 2.5 m away it's red"


def test_what_people_wrote_scores_best_and_something_else_nothing():
    best = captions.score([w[0] for w in WRITTEN], WRITTEN)
    assert best["BLEU-4"] == pytest.approx(100) and best["CIDEr"] > 3 and best["distinct"] == 1
    swapped = captions.score([w[0] for w in WRITTEN[1:] + WRITTEN[:1]], WRITTEN)
    assert swapped["CIDEr"] < 0.2 * best["CIDEr"] and swapped["BLEU-4"] < 20
    same = captions.score(["a dog runs over the green grass"] * 4, WRITTEN)
    assert same["distinct"] == 0.25 and swapped["CIDEr"] < same["CIDEr"] < best["CIDEr"]
    for name in ("CIDEr", "BLEU-4"):
        low, high = same[f"{name} interval"]
        assert low <= same[name] <= high and high > low


def test_bleu_is_that_of_the_corpus():
    """Papineni et al. 2002, section 2.3, counted by hand."""
    said, written = "The cat sat on the mat today.", ["the cat sat on a mat", "There is a cat on the mat now"]
    # Of seven words five occur, "the" once only; of six pairs all but the last; the cat sat, cat sat on, on the mat; the cat sat on.
    by_hand = 100 * (5 / 7 * 5 / 6 * 3 / 5 * 1 / 4) ** 0.25  # no brevity penalty: the closest reference is shorter
    assert captions.score([said] * 3, [written] * 3)["BLEU-4"] == pytest.approx(by_hand, rel=1e-6)


def test_a_picture_without_references_is_named():
    with pytest.raises(UserError, match="a picture has no caption to compare with"):
        captions.score(["a", "b"], [["a"], []])


def test_the_nearest_picture_s_first_caption_is_copied():
    def pictures(*image):
        n = len(image)
        nothing = torch.empty(0, dtype=torch.long)
        return Embeddings(torch.tensor(image), torch.empty(0, 2), nothing, list(range(n)), [""] * n, [], [None] * n)

    source = [Sample("0", b"", ("right", "to the right")), Sample("1", b"", ("up",)), Sample("2", b"")]
    train = pictures([1.0, 0.0], [0.0, 1.0], [0.6, 0.8])
    said = captions.copied(pictures([0.9, 0.1], [0.6, 0.8]), train, source)
    assert said == ["right", "up"], "the third is nearest, but has no caption to copy"
    with pytest.raises(UserError, match="have no captions"):
        captions.copied(train, train, [Sample("0", b"")] * 3)


@pytest.fixture
def run(tiny, tmp_path):
    small = ["objectives={contrastive: {}, captioning: {weight: 2.0}}", "model.pooler={queries: 4}", "model.decoder={layers: 1}"]
    assert main(["train", str(tiny), *small, f"out={tmp_path / 'run'}", "data.val=null"]) == 0
    return tmp_path / "run"


def test_the_command_captions_files_and_scores_a_source(run, pairs, tmp_path, capsys, tar_file):
    files = sorted(map(str, pairs.parent.glob("*.png")))[:2]
    assert main(["caption", str(run), *files, "--method", "greedy", "--max-length", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[-2:]] == files
    more = ["--report", str(tmp_path / "page.html"), "--output", str(tmp_path / "out.json"), "--copy-from", str(tar_file)]
    assert main(["caption", str(run), "--data", str(pairs), "--workers", "0", "--method", "nucleus", "--max-length", "6", *more]) == 0
    told = capsys.readouterr().out
    assert "48 pictures" in told and "copied from the nearest picture: CIDEr" in told
    out = json.loads((tmp_path / "out.json").read_text())
    assert len(out["captions"]) == 48 and set(out["metrics"]) == set(out["baseline"]) >= {"CIDEr", "BLEU-4", "distinct"}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 20 and "a red circle" in page


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "say what to caption"),
        (["no.png"], "no.png: no such file"),
        (["--data", "PAIRS", "a.png"], "say what to caption"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, pairs, capsys):
    assert main(["caption", "somewhere", *(str(pairs) if a == "PAIRS" else a for a in arguments)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_without_decoder_says_so(tiny, tmp_path, pairs, capsys):
    assert main(["train", str(tiny), f"out={tmp_path / 'run'}", "data.val=null"]) == 0
    assert main(["caption", str(tmp_path / "run"), str(next(pairs.parent.glob("*.png")))]) == 2
    assert "has no decoder" in capsys.readouterr().err
