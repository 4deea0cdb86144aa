"""Captioning against loops written from the paper; the decoder and pooler against open_clip's CoCa."""

import json
import math

import open_clip
import pytest
import torch

from crossmodal import load, recipe
from crossmodal.errors import UserError
from crossmodal.model import Model
from crossmodal.recipe import DecoderPart
from crossmodal.training import task
from crossmodal.training.loop import fit
from tests.conftest import metrics
from tests.training.test_task import batch_for

CAPTIONS = ["a red circle", "two green squares beside the moon", "a", "one long black cross", "the moon!", "red", "the red moon", "a b"]
CAPTIONS.append(" ".join(["a very long caption, four times as long as the others"] * 2))  # so that like lengths go together
COCA = [
    "objectives={contrastive: {weight: 1.0}, captioning: {weight: 2.0}}",
    "model.pooler={queries: 4, heads: 2}",
    "model.decoder={layers: 1, heads: 2}",
]


def built_and_batch(tiny, *more):
    torch.manual_seed(0)
    built = task.build(recipe.read(tiny, [*COCA, *more])).eval()
    batch = batch_for(built, len(CAPTIONS))
    batch.texts = {"text": built.model.text.tokenize(CAPTIONS)}
    return built, batch


def test_loss_is_the_mean_over_all_words_and_no_padding(tiny):
    built, batch = built_and_batch(tiny)
    model, objective = built.model, built.objectives["captioning"]
    encoded = model.encode(batch, built.needs)
    assert len(model.text.parts(batch.texts["text"])) > 1
    total, count = objective.pair_terms(model, batch, encoded)["captioning"]
    assert count.item() == objective.pair_counts(batch)["captioning"].item()
    by_hand, words = 0.0, 0
    for n, caption in enumerate(CAPTIONS):
        alone = model.text.tokenize([caption])  # [1, start … end], no padding
        assert alone[0, 0] == model.text.start_id and alone[0, -1] == model.text.end_id
        states, context = model.text(alone)["tokens"], encoded["image:context"][n : n + 1]
        for t in range(alone.shape[1] - 1):
            hidden = model.decoder(context, states[:, : t + 1])[0, -1]
            by_hand -= (hidden @ model.decoder.head.weight.T).log_softmax(-1)[alone[0, t + 1]].item()
            words += 1
    assert count.item() == words
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


def test_no_word_is_told_in_advance(tiny):
    built, batch = built_and_batch(tiny)
    model = built.model
    ids = batch.texts["text"][1:2]
    changed = ids.clone()
    changed[0, 4] = 1000
    context = model.encode(batch, built.needs)["image:context"][1:2]
    one, other = (model.decoder(context, model.text(i)["tokens"]) for i in (ids, changed))
    assert torch.equal(one[:, :4], other[:, :4]) and not torch.allclose(one[:, 4:], other[:, 4:])


def test_the_picture_is_read(tiny):
    built, batch = built_and_batch(tiny)
    tokens = built.model.text(batch.texts["text"])["tokens"]
    context = built.model.encode(batch, built.needs)["image:context"]
    assert not torch.allclose(built.model.decoder(context, tokens), built.model.decoder(context.flip(0), tokens))


@pytest.mark.parametrize(
    "kind, fields, trained",
    [
        ("cascade", ("embed",), {"context", "context_norm", "embed", "embed_norm"}),
        ("cascade", ("context",), {"context", "context_norm"}),
        ("parallel", ("embed",), {"embed", "embed_norm"}),
        ("parallel", ("embed", "context"), {"context", "context_norm", "embed", "embed_norm"}),
        ("single", ("embed",), {"context", "context_norm"}),
    ],
)
def test_of_a_pooler_exactly_what_is_read_is_trained(tiny, kind, fields, trained):
    torch.manual_seed(0)
    said = recipe.read(tiny, [f"model.pooler={{kind: {kind}, queries: 3, width: 48}}"]).model
    model = Model(said, 32)
    needs = [f"image:{f}" for f in fields]
    model.require(needs, {"image": "image"})
    batch = batch_for(task.build(recipe.read(tiny)), 4)
    sum(
        x.square().sum()
        for x in (model.encode(batch, needs)[n] * torch.arange(1, 5).view(-1, *[1] * (2 if "context" in n else 1)) for n in needs)
    ).backward()
    got = {n.split(".")[0] for n, p in model.pooler.named_parameters() if p.grad is not None}
    assert got == trained == {n.split(".")[0] for n, p in model.pooler.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("model.text={tower: 'open_clip:ViT-B-16-SigLIP', kwargs: {layers: 1}}", "sees the whole text"),
        ("model.image={tower: 'open_clip:RN50'}", "patches or feature map, and this one gives none"),
        ("model.pooler={kind: single, queries: 1}", "leaves none for a decoder"),
        ("model.decoder.heads=7", "model.decoder.heads is 7, which does not divide the width 64"),
    ],
)
def test_towers_that_cannot_are_refused(tiny, override, sentence, monkeypatch):
    if "SigLIP" in override:  # its tokenizer stands on a hub
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda *a, **k: open_clip.SimpleTokenizer(context_length=k["context_length"]))
    with pytest.raises(UserError, match=sentence):
        task.build(recipe.read(tiny, [*COCA, "model.pooler=null", override]))


def test_a_decoder_comes_by_itself_and_is_free_where_none_is_asked(tiny):
    built = task.build(recipe.read(tiny, ["objectives={captioning: {}}"]))
    assert built.model.decoder is not None and built.model.part.decoder == DecoderPart()
    assert task.build(recipe.read(tiny)).model.decoder is None


def coca_weights(folder):
    """A random open_clip CoCa of its own shape, but smaller; its weights in a file."""
    name = "coca_ViT-B-32"
    config = open_clip.get_model_config(name)
    config["embed_dim"] = 64
    config["vision_cfg"] |= {"layers": 2, "width": 64, "head_width": 32, "image_size": 64}
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2, "context_length": 24}
    config["multimodal_cfg"] |= {"layers": 2, "width": 64, "heads": 2, "context_length": 24}
    (folder / "coca_small.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "coca_small.json")
    torch.manual_seed(3)
    theirs = open_clip.create_model("coca_small", output_dict=True).eval()
    torch.nn.init.normal_(theirs.text_decoder.text_projection, std=0.1)  # left uninitialised there
    torch.save(theirs.state_dict(), folder / "coca.pt")
    return theirs, f"open_clip:coca_small/{folder / 'coca.pt'}"


def test_equals_open_clips_coca(tmp_path):
    theirs, ref = coca_weights(tmp_path)
    ours = load(ref)
    pictures = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokenizer = open_clip.get_tokenizer("coca_small")
    with torch.no_grad():
        images = ours.image.normalise(pictures)
        out = theirs(images, tokenizer(CAPTIONS[:3]))
        assert torch.allclose(ours.embed_images(pictures), out["image_features"], atol=1e-5)
        ids = ours.text.tokenize(CAPTIONS[:3])
        width = ids.shape[1]
        context = ours.image(pictures)["tokens"]
        logits = ours.decoder.logits(ours.decoder(context, ours.text(ids)["tokens"][:, :-1]), ours.text.embedding)
        scale = out["logits"].abs().max()
        assert torch.allclose(logits / scale, out["logits"][:, : width - 1] / scale, atol=1e-5)
        greedy = torch.full((3, 1), ours.text.start_id)  # its own generate does not run beside transformers 5
        for _ in range(11):
            words = theirs(images, greedy, output_labels=False)["logits"][:, -1].argmax(-1, keepdim=True)
            greedy = torch.cat([greedy, words], 1)
    assert torch.allclose(ours.encode_text(CAPTIONS[:3]), out["text_features"], atol=1e-5)
    body = [row[: next((i for i, t in enumerate(row) if t in (49407, 0)), len(row))] for row in greedy[:, 1:].tolist()]
    assert ours.caption(pictures, "greedy", max_length=12) == [ours.text.words(row) for row in body]


def test_trains_saves_and_captions(tiny, tmp_path, pairs):
    out = fit(recipe.read(tiny, [*COCA, f"out={tmp_path / 'run'}", "train.steps=25", "optim.lr=3e-3", "data.image_size=32"]))
    lines = metrics(out)
    assert lines[0]["captioning"] == pytest.approx(math.log(49408), rel=0.2), "at first every word is as likely"
    assert lines[-1]["captioning"] < 0.6 * lines[0]["captioning"]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["contrastive"] + 2 * lines[-1]["captioning"], rel=1e-4)
    model = load(out)
    pictures = sorted(pairs.parent.glob("*.png"))[:4]
    for method in ("greedy", "beam", "nucleus"):
        assert len(model.caption(pictures, method, max_length=8)) == 4
    assert model.caption(pictures, "nucleus", seed=5) == model.caption(pictures, "nucleus", seed=5)
    with pytest.raises(UserError, match="has no decoder"):
        Model(recipe.read(tiny).model, 32).caption(pictures)


def test_frozen_tower_keeps_its_tokens(tiny, tmp_path):
    more = ["model.image.freeze=true", "data.augment={crop: null}", "model.pooler={queries: 3}", "train.steps=3"]
    live = fit(recipe.read(tiny, [*COCA, *more, f"out={tmp_path / 'live'}"]))
    kept = fit(recipe.read(tiny, [*COCA, *more, f"out={tmp_path / 'kept'}", "data.cache_views=1"]))
    for a, b in zip(metrics(live), metrics(kept), strict=True):
        assert a["captioning"] == pytest.approx(b["captioning"], rel=1e-5)
